"""What a scenario may ask of a node, simulated or real, and how it waits for what the node shows."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from bridge.platform.api import podresources_pb2 as podres
from bridge.platform.api.podresources_pb2_grpc import PodResourcesListerStub
from tests.protocol.suite.plan import Got, Object, Pod, Request

if TYPE_CHECKING:
    from bridge.platform.api.podresources_pb2_grpc import PodResourcesListerAsyncStub

T = TypeVar("T")


class NotShown(AssertionError):
    """What a scenario waited for did not happen."""


class Node(ABC):
    """One node and its cluster, as far as scenarios look at them.

    Attributes:
        version: major and minor number of the Kubernetes release.
        name: the Node object's name.
        namespace: the scenario's own.
        resource, other_resource: extended resources that no other scenario has.
        driver, other_driver: DRA drivers that no other scenario has; each has a DeviceClass of its name.
        kubelet: the kubelet's root as this process reaches it.
        cdi: a folder of CDI specs that the runtime reads.
        simulated: whether times are those of a simulation.
    """

    version: tuple[int, int]
    name: str
    namespace: str
    kubelet: Path
    cdi: Path
    simulated: bool
    poll_s: float
    limit_s: float

    def __init__(self, number: int) -> None:
        self.resource, self.other_resource = f"example.com/acc{number}", f"example.com/more{number}"
        self.driver, self.other_driver = f"d{number}.example.com", f"e{number}.example.com"
        self.number = number

    # Where things are

    @property
    def device_plugins(self) -> Path:
        """The folder of kubelet.sock."""
        return self.kubelet / "device-plugins"

    @property
    def registry(self) -> Path:
        """The folder of registration sockets."""
        return self.kubelet / "plugins_registry"

    @abstractmethod
    def inside(self, path: Path) -> str:
        """Return a path below `kubelet` as the kubelet itself has it."""

    # Pods

    @abstractmethod
    async def create(self, pod: Pod) -> str:
        """Create a pod and return its UID."""

    @abstractmethod
    async def pod(self, name: str) -> Object | None:
        """Return a pod's object."""

    @abstractmethod
    async def delete(self, name: str, *, force: bool = False) -> None:
        """Ask for a pod's deletion, or (`force`) remove its object at once; does not wait."""

    @abstractmethod
    async def got(self, pod: str, box: str = "main") -> Got:
        """Return what a container that has started found in itself."""

    @abstractmethod
    async def alive(self, container_id: str) -> bool:
        """Say whether a container runs, whatever the kubelet thinks of it."""

    @abstractmethod
    async def events(self, pod: str, reason: str) -> list[str]:
        """Return the messages of a pod's events of one reason."""

    # The node

    @abstractmethod
    async def status(self) -> Object:
        """Return the Node's status."""

    @abstractmethod
    async def stop_kubelet(self) -> None:
        """End the kubelet; containers run on."""

    @abstractmethod
    async def start_kubelet(self) -> None:
        """Start the kubelet."""

    # DRA

    @abstractmethod
    async def publish(self, driver: str, devices: Sequence[str]) -> None:
        """Make the driver's DeviceClass and a slice of its devices; the pool has the node's name."""

    @abstractmethod
    async def slices(self, driver: str) -> list[Object]:
        """Return the driver's slices."""

    @abstractmethod
    async def claim(self, name: str, *requests: Request) -> str:
        """Create a ResourceClaim and return its UID."""

    @abstractmethod
    async def claim_status(self, name: str) -> Object | None:
        """Return a claim's status; None if there is no such claim."""

    @abstractmethod
    async def clear(self) -> None:
        """Remove all pods and claims of the scenario, and wait until the pods are gone."""

    # Made of these

    async def until(self, probe: Callable[[], Awaitable[T]], what: str, within: float = 0) -> T:
        """Ask until the answer is true, and return it.

        Raises:
            NotShown: with the last answer.
        """
        limit = within or self.limit_s
        last: T | None = None
        try:
            async with asyncio.timeout(limit):
                while not (last := await probe()):  # noqa: ASYNC110  # an API server sets no asyncio.Event
                    await asyncio.sleep(self.poll_s)
                return last
        except TimeoutError:
            raise NotShown(f"not within {limit} s: {what}; last: {last!r}") from None

    async def restart_kubelet(self) -> None:
        """End the kubelet and start it again."""
        await self.stop_kubelet()
        await self.start_kubelet()

    async def phase(self, pod: str, *phases: str) -> Object:
        """Wait for a pod's phase and return its object."""
        last: Object = {}

        async def probe() -> bool:
            nonlocal last
            last = await self.pod(pod) or {}
            return last.get("status", {}).get("phase") in phases

        try:
            await self.until(probe, f"pod {pod} {phases}")
        except NotShown as error:
            raise NotShown(f"{error}\n{json.dumps(last.get('status'))}") from None
        return last

    async def running(self, pod: str) -> Object:
        """Wait until all containers of a pod have started and are up, and return its object."""
        shown = await self.phase(pod, "Running")

        async def probe() -> bool:
            nonlocal shown
            shown = await self.pod(pod) or {}
            states = shown["status"].get("containerStatuses", [])
            return bool(states) and all("running" in state["state"] for state in states)

        await self.until(probe, f"containers of {pod} to run")
        return shown

    async def container_id(self, pod: str) -> str:
        """Return the ID of the first container of a running pod."""
        found: str = (await self.running(pod))["status"]["containerStatuses"][0]["containerID"]
        return found.partition("://")[2]

    async def gone(self, pod: str) -> None:
        """Wait until a pod's object is gone."""

        async def probe() -> bool:
            return await self.pod(pod) is None

        await self.until(probe, f"pod {pod} gone")

    async def count(self, kind: str, resource: str) -> int | None:
        """Return `capacity` or `allocatable` of a resource; None if the Node does not name it."""
        value = (await self.status()).get(kind, {}).get(resource)
        return None if value is None else int(value)

    async def offers(self, resource: str, allocatable: int, capacity: int | None = None) -> None:
        """Wait until the Node shows these numbers; capacity is the same as allocatable if not given."""
        wanted = (allocatable if capacity is None else capacity, allocatable)

        async def probe() -> bool:
            return (
                await self.count("capacity", resource),
                await self.count("allocatable", resource),
            ) == wanted

        await self.until(probe, f"(capacity, allocatable) of {resource} {wanted}")

    async def pod_resources(self) -> dict[tuple[str, str], podres.ContainerResources]:
        """Return what podresources' List says of the scenario's containers, by pod and container."""
        async with self._lister() as channel:
            stub: PodResourcesListerAsyncStub = PodResourcesListerStub(channel)
            answer = await stub.List(
                podres.ListPodResourcesRequest(), wait_for_ready=True, timeout=self.limit_s
            )
        return {
            (pod.name, box.name): box
            for pod in answer.pod_resources
            if pod.namespace == self.namespace
            for box in pod.containers
        }

    async def healthy(self, resource: str) -> set[str]:
        """Return the devices of a resource that GetAllocatableResources lists."""
        async with self._lister() as channel:
            stub: PodResourcesListerAsyncStub = PodResourcesListerStub(channel)
            answer = await stub.GetAllocatableResources(
                podres.AllocatableResourcesRequest(), timeout=self.limit_s
            )
        return {
            one for device in answer.devices if device.resource_name == resource for one in device.device_ids
        }

    def _lister(self) -> grpc.aio.Channel:
        return channel_to(self.kubelet / "pod-resources" / "kubelet.sock")

    def checkpoint(self) -> Object:
        """Return the device manager's checkpoint."""
        file = self.device_plugins / "kubelet_internal_checkpoint"
        found: Object = json.loads(file.read_text())
        return found

    def claims_checkpoint(self) -> set[str]:
        """Return the UIDs of the claims in the DRA manager's checkpoint."""
        data = json.loads(json.loads((self.kubelet / "dra_manager_state").read_text())["Data"])
        return {entry["ClaimUID"] for entry in data["ClaimInfoStateList"] or []}

    def write_cdi(self, kind: str, env: Mapping[str, str]) -> None:
        """Write a CDI spec whose devices, by name, each set `SUITE_<device>` to a value."""
        devices = [
            {"name": name, "containerEdits": {"env": [f"SUITE_{name}={value}"]}}
            for name, value in env.items()
        ]
        spec = {"cdiVersion": "0.5.0", "kind": kind, "devices": devices}
        file = self.cdi / f"{kind.replace('/', '-')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(spec))


def channel_to(socket: Path) -> grpc.aio.Channel:
    """Open a channel that is shared with nobody."""
    return grpc.aio.insecure_channel(f"unix://{socket}", (("grpc.use_local_subchannel_pool", 1),))


def ids_of(box: podres.ContainerResources, resource: str) -> set[str]:
    """Return the device ids of a resource that podresources lists for a container."""
    return {one for device in box.devices if device.resource_name == resource for one in device.device_ids}


def entries_of(checkpoint: Object, uids: Collection[str]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return a checkpoint's entries of some pods by (pod uid, container, resource)."""
    return {
        (entry["PodUID"], entry["ContainerName"], entry["ResourceName"]): entry
        for entry in checkpoint["Data"]["PodDeviceEntries"] or []
        if entry["PodUID"] in uids
    }
