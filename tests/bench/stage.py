"""The node, the devices and the daemon of one run of the bench."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import yaml

from dra_v1.kube import KubeApi
from tests.cluster import Cluster
from tests.cluster.processes import Process

REPOSITORY = Path(__file__).parents[2]
KUBELET_ROOT = Path("/var/lib/kubelet")
SLICES = "/apis/resource.k8s.io/v1/resourceslices"
METRICS = ("127.0.0.1", 9464)
LIMIT_S = 60.0
FOLDER = "/dev/bridge-test"
_REQUEST = re.compile(
    r'device_bridge_api_requests_total{code="\d+",resource="(?P<resource>[^"]*)",verb="(?P<verb>\w+)"} (?P<count>\S+)'
)
MAJOR = 120
"""Reserved for local use: the devices are looked at, never opened."""


class Stage:
    """What all measurements share. Its sockets are made in the node's network: enter `cluster.in_network()`.

    Attributes:
        cluster: the node.
        kubeconfig: the daemon's identity, with the rights that it ships with.
        state_dir: the daemon's folder, as the node sees it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.apply(REPOSITORY / "kustomize/base/rbac.yaml")
        self.kubeconfig = cluster.kubeconfig_for_service_account("device-bridge", "device-bridge")
        self.state_dir = KUBELET_ROOT / "plugins/device-bridge"
        self._minors = itertools.count()
        self._starts = itertools.count(1)

    def outside(self, path: Path) -> Path:
        """A path of the node, as this process reaches it."""
        return self.cluster.node.outside(path)

    def popen(self, argv: list[str], name: str) -> Process:
        """Start a program in the node; byte code is kept, as an installed program has it."""
        return self.cluster.popen(argv, name=name, cwd=REPOSITORY, env={"PYTHONDONTWRITEBYTECODE": ""})

    async def until(self, true: Callable[[], object], what: str, pause_s: float = 0.005) -> None:
        """Wait until something is true. Raises TimeoutError that says what was not."""
        deadline = time.monotonic() + LIMIT_S
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {LIMIT_S:g} s in vain for {what}")
            await asyncio.sleep(pause_s)

    # Devices

    def plug(self, name: str) -> None:
        """Make a device node."""
        self.cluster.mknod(f"{FOLDER}/{name}", "c", MAJOR, next(self._minors))

    def unplug(self, name: str) -> None:
        """Remove it."""
        self.cluster.rm(f"{FOLDER}/{name}")

    # The API server

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[KubeApi]:
        """The administrator's client."""
        async with KubeApi.from_kubeconfig(self.cluster.admin_kubeconfig) as api:
            yield api

    async def delete_slices(self) -> None:
        """Remove every ResourceSlice."""
        await asyncio.to_thread(self.cluster.api.request, "DELETE", SLICES)

    # The daemon

    def configure(self, group: str, replicas: int = 1, binding: str = "auto") -> Path:
        """Write the configuration of one group in dual mode: every device named `<group>-…`."""
        options = {"include": [f"{FOLDER}/{group}-*"], "replicas": replicas}
        self._allow(f"{group}.device-bridge.io")
        path = self.cluster.workdir / f"{group}.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "device-bridge.io/v1alpha1",
                    "kind": "BridgeConfig",
                    "mode": "dual",
                    "groups": [
                        {"name": group, "kind": "device-node", "binding": binding, "options": options}
                    ],
                    "daemon": {"metricsAddress": ":".join(map(str, METRICS))},
                }
            )
        )
        return path

    def _allow(self, driver: str) -> None:
        """Grant what two-phase binding needs: everything is measured with it."""
        role, binding = yaml.safe_load_all((REPOSITORY / "kustomize/base/driver-rbac.yaml").read_text())
        role["rules"][0]["resourceNames"] = [driver]
        for body in (role, binding):
            self.cluster.apply(body)

    def start(self, config: Path, *, again: bool = False) -> Daemon:
        """Start the daemon with an empty ledger, or `again` with the one that there is, and do not wait for it."""
        if not again:
            shutil.rmtree(self.outside(self.state_dir), ignore_errors=True)
            self.outside(self.state_dir).mkdir(parents=True)
        name = f"bridge-{next(self._starts)}"
        argv = [sys.executable, "-m", "tests.bench.unlisted", "run", "--config", str(config)]
        argv += ["--kubeconfig", str(self.kubeconfig), "--node-name", self.cluster.node_name]
        return Daemon(self.popen(argv, name), name, self, config.stem)

    @contextlib.asynccontextmanager
    async def running(self, config: Path, devices: int) -> AsyncIterator[Daemon]:
        """A daemon that is registered and has published so many devices; it ends with the context."""
        daemon = self.start(config)
        try:
            await self.until(daemon.ready, "the daemon to be ready", 0.05)
            async with self.admin() as api:
                async with asyncio.timeout(LIMIT_S):
                    while sum(map(len, (await published(api, daemon.driver)).values())) < devices:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            yield daemon
        finally:
            await asyncio.to_thread(daemon.stop)


class Daemon:
    """One run of the daemon.

    Attributes:
        driver: its DRA driver's name.
        dra_socket: where Prepare is served, as this process reaches it.
        device_plugin_socket: where Allocate is.
    """

    def __init__(self, process: Process, name: str, stage: Stage, group: str) -> None:
        self._process = process
        self._name = name
        self._stage = stage
        self._log = 0
        self.driver = f"{group}.device-bridge.io"
        self.dra_socket = stage.outside(KUBELET_ROOT / "plugins" / self.driver / "dra.sock")
        self._sockets = stage.outside(stage.state_dir)
        self._pid = 0

    @property
    def device_plugin_socket(self) -> Path | None:
        """Where Allocate is served; None while it is not."""
        return next(
            (p for p in self._sockets.glob("*.sock") if p.name not in ("floor.sock", "control.sock")), None
        )

    def ready(self) -> bool:
        """Whether the kubelet has registered both planes. Raises RuntimeError if the daemon has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self._stage.cluster.logs(self._name).splitlines()[-20:])
            raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{tail}")
        connection = http.client.HTTPConnection(*METRICS, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End it. Raises RuntimeError unless it ends in order."""
        if (status := self._process.stop(30)) != 0:
            raise RuntimeError(f"the daemon ended with {status}:\n{self._stage.cluster.logs(self._name)}")

    @property
    def pid(self) -> int:
        """Its process, as this machine sees it."""
        self._pid = self._pid or self._process.inner_pid
        return self._pid

    def requests(self) -> dict[str, float]:
        """Requests to the API server so far, by verb and resource."""
        connection = http.client.HTTPConnection(*METRICS, timeout=5)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if match := _REQUEST.match(line):
                what = f"{match['verb']} {match['resource']}"
                found[what] = found.get(what, 0.0) + float(match["count"])
        return found

    def resident_mib(self) -> float:
        """Resident memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"process {self.pid} shows no VmRSS")

    def cpu_s(self) -> float:
        """CPU seconds used so far by all of its threads, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log_lines(self) -> Iterator[Mapping[str, object]]:
        """What it has logged since the last time this was asked."""
        with (self._stage.cluster.workdir / f"logs/{self._name}.log").open("rb") as file:
            file.seek(self._log)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._log += len(line)
                yield json.loads(line)


async def published(api: KubeApi, driver: str) -> dict[str, list[str]]:
    """Device names by slice, as stored."""
    found = await api.list(SLICES, params={"fieldSelector": f"spec.driver={driver}"})
    return {
        one["metadata"]["name"]: [device["name"] for device in one["spec"].get("devices") or ()]
        for one in found["items"]
    }
