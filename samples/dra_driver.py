"""A DRA driver in under 60 lines: publishes device nodes that match a glob, one claim per device."""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from dra_v1 import Claim, ClaimRef, DraPlugin, KubeApi, PreparedClaim, PreparedDevice, SliceDevice


class NodeDriver:
    """Answers with entries of one CDI file that was written at start, so it has nothing to remember."""

    def __init__(self, kind: str, nodes: Sequence[Path], cdi_dir: Path) -> None:
        self.kind = kind
        self.nodes = {re.sub(r"[^a-z0-9]+", "-", str(path).lower()).strip("-"): str(path) for path in nodes}
        devices = [
            {"name": n, "containerEdits": {"deviceNodes": [{"path": p}]}} for n, p in self.nodes.items()
        ]
        spec = {"cdiVersion": "0.5.0", "kind": kind, "devices": devices}
        cdi_dir.mkdir(parents=True, exist_ok=True)
        (cdi_dir / f"{kind.replace('/', '-')}.json").write_text(json.dumps(spec))

    def _prepared(self, claim: Claim) -> PreparedClaim:
        got = ((r, f"{self.kind}={r.device}") for r in claim.results)
        return PreparedClaim(
            tuple(PreparedDevice((r.request,), r.pool, r.device, (n,), r.share_id) for r, n in got)
        )

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim]:
        """Name the CDI device of every device of every claim."""
        return {claim.ref.uid: self._prepared(claim) for claim in claims}

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, None]:
        """Nothing was made for a claim, so nothing has to be undone."""
        return {claim.uid: None for claim in claims}


async def main() -> None:
    """Serve, register and publish until SIGTERM."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--driver-name", default="nodes.example.com")
    args.add_argument("--node-name", default=os.environ.get("NODE_NAME", os.uname().nodename))
    args.add_argument("--glob", default="/dev/crypto/*", help="absolute path with wildcards")
    args.add_argument("--kubeconfig", help="default: this pod's ServiceAccount")
    args.add_argument("--kubelet-root", type=Path, default=Path("/var/lib/kubelet"))
    args.add_argument("--cdi-dir", type=Path, default=Path("/var/run/cdi"))
    o = args.parse_args()
    driver = NodeDriver(o.driver_name + "/node", sorted(Path("/").glob(o.glob.lstrip("/"))), o.cdi_dir)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    kube = KubeApi.from_kubeconfig(o.kubeconfig) if o.kubeconfig else KubeApi.in_cluster()
    places = {"driver_name": o.driver_name, "node_name": o.node_name, "kubelet_root": o.kubelet_root}
    async with kube, DraPlugin(**places, driver=driver, kube=kube) as plugin:
        await plugin.publish([SliceDevice(name) for name in driver.nodes])
        await asyncio.Event().wait()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(main())
