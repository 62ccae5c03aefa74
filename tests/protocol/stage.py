"""The whole daemon on a simulated node, as the tests of the daemon see it.

`stage` runs it in this process (quick, and its clocks can be moved); `bridge.sandbox.daemon.DaemonProcess` is for
what only a process of its own can show: exit codes, `kill -9`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import grpc
import yaml

from bridge.config import load
from bridge.daemon.logs import fields_of
from bridge.daemon.run import run
from bridge.daemon.settings import Settings
from bridge.ledger.holds import Hold, Phase, Plane
from bridge.ledger.store import read_account
from bridge.platform import budget
from bridge.platform.api import podresources_pb2 as podres
from bridge.platform.api.podresources_pb2_grpc import PodResourcesListerStub
from bridge.sandbox import make
from bridge.sandbox.daemon import DaemonProcess, config_for
from bridge.sandbox.kubelet.runtime import Container
from bridge.sandbox.node import Sandbox
from dra_v1.api import dra_v1_pb2 as dra
from dra_v1.api.dra_v1_pb2_grpc import DRAPluginStub

GROUP, RESOURCE, DRIVER = "acc", "device-bridge.io/acc", "acc.device-bridge.io"
NX_RESOURCE, NX_DRIVER = "device-bridge.io/nx", "nx.device-bridge.io"
POOL = "/dev/crypto/acc{}"
ACC: dict[str, Any] = {"name": GROUP, "kind": "device-node", "options": {"include": ["/dev/crypto/acc*"]}}
NX: dict[str, Any] = {"name": "nx", "kind": "nx-gzip", "options": {"requireCapabilities": False}}


def acc(number: int) -> str:
    """The name of a device of the group `acc`."""
    return f"crypto-acc{number}"


class Clock:
    """Stands for the module `time` where the daemon looks at its sources: it can be moved forward.

    Attributes:
        looks: how often the daemon has asked for the time.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.looks = 0
        self._asked = asyncio.Event()

    def monotonic(self) -> float:
        self.looks += 1
        self._asked.set()
        return time.monotonic() + self.ahead

    async def go(self, seconds: float) -> None:
        """Move forward, and wait until the daemon has looked at its sources several times since."""
        self.skip(seconds)
        await self.looked()

    def skip(self, seconds: float) -> None:
        """Move forward; a daemon that holds nothing would look at nothing."""
        self.ahead += seconds

    async def looked(self, times: int = 8) -> None:
        """Wait until the daemon has asked for the time so often again (twice a look, and once more to be over)."""
        until = self.looks + times
        async with asyncio.timeout(8):
            while self.looks < until:
                self._asked.clear()
                await self._asked.wait()


class Log(logging.Handler):
    """What the daemon in this process has logged.

    Attributes:
        records: all of it, from level `info` on.
        said: set at each record.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        self.said = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._loop.call_soon_threadsafe(self.said.set)

    def of(self, message: str, since: int = 0) -> list[logging.LogRecord]:
        """All records with that message, from the `since`-th record on."""
        return [record for record in self.records[since:] if record.getMessage() == message]

    async def wait(self, message: str, since: int = 0) -> dict[str, Any]:
        """Wait for a message; the fields of its first record."""
        try:
            async with asyncio.timeout(20):
                while not (found := self.of(message, since)):
                    self.said.clear()
                    await self.said.wait()
        except TimeoutError:
            said = "\n".join(f"{r.getMessage()} {fields_of(r)}" for r in self.records)
            raise TimeoutError(f"the daemon did not log {message!r}, but:\n{said}") from None
        return fields_of(found[0])


class Node:
    """A sandbox, a daemon, and how tests look at both.

    Attributes:
        log: what the daemon says while it is in this process.
    """

    def __init__(self, box: Sandbox, config: dict[str, Any]) -> None:
        self.box, self.config, self.log = box, config, Log()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> Path:
        """The folder of the ledger."""
        return self.box.paths.plugins / "device-bridge"

    # -- the daemon in this process

    async def start(self, *, accept_empty_ledger: bool = False, refused: Collection[str] = ()) -> None:
        """Start the daemon and wait until both planes of all groups that are offered, but those, stand."""
        file = self.box.paths.base / "bridge.yaml"
        await asyncio.to_thread(file.write_text, yaml.safe_dump(self.config))
        root = self.box.paths.root
        settings = Settings(
            file,
            self.box.node,
            self.box.paths.kubeconfig,
            root / "dev",
            root / "sys",
            accept_empty_ledger=accept_empty_ledger,
        )
        self._stop = asyncio.Event()
        since, said = len(self.box.observe), len(self.log.records)
        self._task = asyncio.create_task(run(load(file), settings, stop=self._stop))
        ready = asyncio.create_task(self._ready(since, said, refused))
        done, _ = await asyncio.wait([self._task, ready], return_when=asyncio.FIRST_COMPLETED)
        if self._task in done:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
            ended, self._task = self._task, None
            ended.result()
            raise AssertionError("the daemon ended by itself")
        await ready

    async def _ready(self, since: int, said: int, refused: Collection[str]) -> None:
        wait = self.box.observe.wait
        await self.log.wait("serving", said)
        for group in self.config["groups"]:
            mode = group.get("mode", self.config["mode"])
            name = group["name"]
            if name in refused:
                continue
            if mode != "device-plugin" and self.box.api.registry.serves("resourceslices"):
                await wait("DriverRegistered", f"{name}.device-bridge.io", since=since)
            if mode != "dra":
                await wait("DevicesListed", f"device-bridge.io/{name}", since=since)

    async def stop(self) -> None:
        """Stop it as SIGTERM does; raises what broke it."""
        if self._task is not None:
            self._stop.set()
            task, self._task = self._task, None
            await task

    async def ended(self) -> None:
        """Wait until it ends by itself; raises what broke it."""
        assert self._task is not None, "it was never started"
        task, self._task = self._task, None
        async with asyncio.timeout(20):
            await task

    # -- the DRA plane

    def offered(self, driver: str = DRIVER) -> list[str]:
        """Devices in the stored slices, in order."""
        return [d["name"] for s in self.box.slices(driver) for d in s["spec"].get("devices", ())]

    async def offers(self, *names: str, driver: str = DRIVER) -> None:
        """Wait until the slices show just these devices."""
        await self.box.until(lambda: self.offered(driver) == list(names), f"slices with {names}")

    def allocated(self, claim: str) -> list[dict[str, Any]]:
        """The results of a claim's allocation."""
        found = self.box.get("resourceclaims", claim) or {}
        results: list[dict[str, Any]] = (
            found.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
        )
        return results

    def claim_on(self, name: str, *devices: str, driver: str = DRIVER, **more: Any) -> dict[str, Any]:
        """Make a claim that is allocated already, as a scheduler that knows nothing better would."""
        self.box.create("resourceclaims", make.claim(name, make.claim_spec(make.request("acc"))))
        results = [
            {"request": "req", "driver": driver, "pool": self.box.node, "device": device, **more}
            for device in devices
        ]
        status = {"status": {"allocation": {"devices": {"results": results, "config": []}}}}
        return self.box.api.registry.patch(
            "resourceclaims", name, status, namespace="default", kind="merge", subresource="status"
        )

    @contextlib.asynccontextmanager
    async def dra(self, driver: str = DRIVER) -> AsyncIterator[Any]:
        """A client of the daemon's DRA socket, beside the kubelet."""
        socket = self.box.paths.plugins / driver / "dra.sock"
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost"))
        async with grpc.aio.insecure_channel(f"unix://{socket}", options=options) as channel:
            yield DRAPluginStub(channel)

    async def prepare(self, *claims: dict[str, Any], driver: str = DRIVER, timeout: float = 20) -> Any:
        """Call NodePrepareResources; the answers by UID."""
        refs = [_ref(claim) for claim in claims]
        async with self.dra(driver) as stub:
            answer = await stub.NodePrepareResources(
                dra.NodePrepareResourcesRequest(claims=refs), timeout=timeout
            )
        return dict(answer.claims)

    async def unprepare(self, *claims: dict[str, Any], driver: str = DRIVER) -> Any:
        """Call NodeUnprepareResources; the answers by UID."""
        refs = [_ref(claim) for claim in claims]
        async with self.dra(driver) as stub:
            answer = await stub.NodeUnprepareResources(
                dra.NodeUnprepareResourcesRequest(claims=refs), timeout=20
            )
        return dict(answer.claims)

    def health(self, device: str, driver: str = DRIVER) -> str:
        """What the health stream last said of a device, as the kubelet has it."""
        found = self.box.kubelet.dra.health_of(driver, self.box.node, device)
        return found.word if found is not None else "nothing"

    # -- the device plugin plane

    def healthy(self, resource: str = RESOURCE) -> set[str]:
        """IDs that ListAndWatch last showed as healthy, as the kubelet has them."""
        return set(self.box.kubelet.devices.healthy.get(resource, ()))

    def unhealthy(self, resource: str = RESOURCE) -> set[str]:
        """IDs that it showed as unhealthy."""
        return set(self.box.kubelet.devices.unhealthy.get(resource, ()))

    async def lists(self, healthy: set[str], unhealthy: set[str], resource: str = RESOURCE) -> None:
        """Wait until the kubelet has been shown just these IDs."""
        seen = 0
        async with asyncio.timeout(20):
            while (self.healthy(resource), self.unhealthy(resource)) != (healthy, unhealthy):
                seen = len(self.box.observe)
                await self.box.observe.wait("DevicesListed", resource, since=seen)

    async def allocate(self, *ids: str, resource: str = RESOURCE) -> Any:
        """Call Allocate for one container, past the kubelet's own choice; raises EndpointError."""
        return await self.box.kubelet.devices.endpoints[resource].allocate(ids)

    async def podresources(self) -> dict[str, set[str]]:
        """IDs by pod name, as the kubelet's podresources says."""
        async with grpc.aio.insecure_channel(f"unix://{self.box.paths.pod_resources}") as channel:
            stub: Any = PodResourcesListerStub(channel)
            answer = await stub.List(podres.ListPodResourcesRequest())
        found: dict[str, set[str]] = {}
        for pod in answer.pod_resources:
            for container in pod.containers:
                for device in container.devices:
                    found.setdefault(pod.name, set()).update(device.device_ids)
        return found

    # -- the ledger, as it stands on disk

    def holds(self, state: Path | None = None) -> list[Hold]:
        """All holds."""
        return list(read_account(state or self.state))

    def ledger(self) -> dict[str, tuple[Plane, str]]:
        """Share to plane and holder."""
        return {hold.share: (hold.plane, str(hold.holder)) for hold in self.holds()}

    def phases(self) -> dict[str, Phase]:
        """Share to phase."""
        return {hold.share: hold.phase for hold in self.holds()}

    async def holds_are(self, shares: set[str]) -> None:
        """Wait until the ledger on disk has just these shares out; looked at after each line of the log."""
        async with asyncio.timeout(10):
            while True:
                self.log.said.clear()
                if set(self.ledger()) == shares:
                    return
                await self.log.said.wait()

    # -- pods

    async def run_pod(self, name: str, **more: Any) -> list[str]:
        """Make a pod (see `make.pod`), wait until it runs; its device nodes, by their path inside."""
        self.box.create_pod(make.pod(name, **more))
        await self.box.wait_phase(name, "Running")
        return self.nodes(name)

    def container(self, pod: str, name: str = "main") -> Container:
        """A pod's running container."""
        found = self.box.container(pod, name)
        assert found is not None and found.running, f"{pod} has no running container {name}"
        return found

    def nodes(self, pod: str, name: str = "main") -> list[str]:
        """Device nodes that a container got, by their names inside."""
        return sorted(node.container_path for node in self.container(pod, name).got.nodes)

    def nodes_of_any(self, pod: str, name: str = "main") -> list[str]:
        """Device nodes of a container, none if it was never started."""
        found = self.box.container(pod, name)
        return [] if found is None else sorted(node.container_path for node in found.got.nodes)


def _ref(claim: dict[str, Any]) -> dra.Claim:
    meta = claim["metadata"]
    return dra.Claim(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])


@contextlib.asynccontextmanager
async def stage(
    *groups: dict[str, Any],
    devices: int = 2,
    mode: str = "dual",
    profile: str = "1.37",
    start: bool = True,
    **daemon: Any,
) -> AsyncIterator[Node]:
    """A node with a class `acc`, so many accelerators, and the daemon in this process.

    Args:
        groups: of the configuration; `ACC` if none are given.
        devices: how many nodes `/dev/crypto/acc<n>` there are.
        mode: the file's mode.
        profile: the Kubernetes release.
        start: False leaves the daemon to the test.
        daemon: settings of the configuration's `daemon` section.
    """
    async with Sandbox(profile=profile) as box:
        box.tree.add_many(POOL, devices)
        if box.api.registry.serves("deviceclasses"):
            box.create_class("acc", DRIVER)
        config: dict[str, Any] = config_for(box.paths, [dict(g) for g in groups] or [dict(ACC)], mode)
        config["daemon"] |= daemon
        node = Node(box, config)
        budget.SPREAD_S = 0.0  # here is no fleet
        loggers = [logging.getLogger(name) for name in ("bridge", "dra_v1", "deviceplugin_v1beta1")]
        for logger in loggers:
            logger.addHandler(node.log)
            logger.setLevel(logging.INFO)
        try:
            if start:
                await box.observe.wait("KubeletSynced")
                await node.start()
            yield node
        finally:
            try:
                await node.stop()
            finally:
                for logger in loggers:
                    logger.removeHandler(node.log)
                    logger.setLevel(logging.NOTSET)


@contextlib.asynccontextmanager
async def process(node: Node) -> AsyncIterator[DaemonProcess]:
    """The daemon of a node as a process of its own, serving both planes of `acc`."""
    daemon = DaemonProcess(node.box.paths, node.box.node, node.config)
    async with daemon:
        await serves(node, 0)
        yield daemon


async def serves(node: Node, since: int) -> None:
    """Wait until the daemon's process has registered and listed, from the `since`-th observation on."""
    await node.box.observe.wait("DriverRegistered", DRIVER, since=since)
    await node.box.observe.wait("DevicesListed", RESOURCE, since=since)
