"""A DRA driver in under 60 lines: publishes device nodes that match a glob, one claim per device."""

import argparse
import asyncio
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dra_v1 import Claim, ClaimRef, DraPlugin, KubeApi, PreparedClaim, PreparedDevice, SliceDevice


class NodeDriver:
    """Answers with entries of one CDI file that was written at start, so it has nothing to remember."""

    def __init__(self, kind: str, nodes: Sequence[Path], cdi_dir: Path) -> None:
        self.kind, self.names = kind, [path.name.lower().replace("_", "-") for path in nodes]
        edits = [{"deviceNodes": [{"path": str(path)}]} for path in nodes]
        named = [{"name": n, "containerEdits": e} for n, e in zip(self.names, edits, strict=True)]
        cdi_dir.mkdir(parents=True, exist_ok=True)
        file = cdi_dir / f"{kind.replace('/', '-')}.json"
        file.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": kind, "devices": named}))

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim]:
        """Name the CDI device of every device of every claim."""
        return {claim.ref.uid: PreparedClaim(tuple(self._devices(claim))) for claim in claims}

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, None]:
        """Nothing was made for a claim, so nothing has to be undone."""
        return {claim.uid: None for claim in claims}

    def _devices(self, claim: Claim) -> Iterator[PreparedDevice]:
        for r in claim.results:
            yield PreparedDevice((r.request,), r.pool, r.device, (f"{self.kind}={r.device}",), r.share_id)


async def main() -> None:
    """Serve, register and publish until SIGTERM."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--driver-name", default="nodes.example.com")
    args.add_argument("--node-name", required=True)
    args.add_argument("--glob", default="/dev/crypto/*", help="absolute path with wildcards")
    args.add_argument("--kubeconfig", help="default: this pod's ServiceAccount")
    args.add_argument("--kubelet-root", type=Path, default=Path("/var/lib/kubelet"))
    args.add_argument("--cdi-dir", type=Path, default=Path("/var/run/cdi"))
    o = args.parse_args()
    kube = KubeApi.from_kubeconfig(o.kubeconfig) if o.kubeconfig else KubeApi.in_cluster()
    driver = NodeDriver(o.driver_name + "/node", sorted(Path("/").glob(o.glob.lstrip("/"))), o.cdi_dir)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    places = {"driver_name": o.driver_name, "node_name": o.node_name, "kubelet_root": o.kubelet_root}
    async with kube, DraPlugin(**places, driver=driver, kube=kube) as plugin:
        await plugin.publish([SliceDevice(name) for name in driver.names])
        await asyncio.Event().wait()


try:
    asyncio.run(main())
except (asyncio.CancelledError, KeyboardInterrupt, ValueError) as end:  # a kubeconfig or name is wrong
    raise SystemExit(str(end) or 0) from None
