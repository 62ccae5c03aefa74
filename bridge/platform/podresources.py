"""What the kubelet says its pods hold: the podresources API, read only (kubelet-contract A.8).

Evidence with gaps: no pod UIDs, no ordinary init containers, no pod that was force-deleted and still runs, and
partial lists after a kubelet restart. Presence proves use; absence alone proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bridge.platform.api import podresources_pb2 as pb
from bridge.platform.api import podresources_pb2_grpc as pb_grpc
from bridge.platform.endpoint import Unavailable, UnixEndpoint

TIMEOUT = 5.0
"""Seconds for one call."""


@dataclass(frozen=True, slots=True, order=True)
class PodRef:
    """A pod by name; a later pod may have the same one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Devices of one resource that one container holds through the device plugin API."""

    pod: PodRef
    container: str
    resource: str
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class ClaimDevice:
    """One device of a claim; `share_id` only for a share of a device."""

    driver: str
    pool: str
    device: str
    share_id: str | None
    cdi_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A claim that one container uses, with the devices that it sees of it."""

    pod: PodRef
    container: str
    claim_namespace: str
    claim_name: str
    devices: tuple[ClaimDevice, ...]


@dataclass(frozen=True, slots=True)
class PodResources:
    """One answer of List.

    Attributes:
        pods: every pod that was listed, with devices or without.
        devices: one entry per container and resource.
        claims: one entry per container and claim.
    """

    pods: frozenset[PodRef]
    devices: tuple[DeviceUse, ...]
    claims: tuple[ClaimUse, ...]


@dataclass(frozen=True, slots=True)
class Allocatable:
    """What the kubelet counts as healthy, in use or not: once an id is gone here, it has taken in our list.

    Attributes:
        ids: by resource. A resource without a healthy device is missing.
    """

    ids: Mapping[str, frozenset[str]]


class PodResourcesClient:
    """Asks the kubelet; one open channel."""

    def __init__(self, socket: Path) -> None:
        """`socket` is the kubelet's pod-resources/kubelet.sock."""
        self._endpoint = UnixEndpoint(socket)

    async def list(self) -> PodResources | Unavailable:
        """All active pods of the node with what they hold."""
        answer = await self._endpoint.call(
            "list the resources of pods",
            lambda channel: pb_grpc.PodResourcesListerStub(channel).List(
                pb.ListPodResourcesRequest(), timeout=TIMEOUT
            ),
        )
        return answer if isinstance(answer, Unavailable) else _pod_resources(answer)

    async def allocatable(self) -> Allocatable | Unavailable:
        """The healthy devices of every resource."""
        answer = await self._endpoint.call(
            "get the allocatable resources",
            lambda channel: pb_grpc.PodResourcesListerStub(channel).GetAllocatableResources(
                pb.AllocatableResourcesRequest(), timeout=TIMEOUT
            ),
        )
        return answer if isinstance(answer, Unavailable) else Allocatable(_by_resource(answer.devices))

    async def close(self) -> None:
        """Close the channel."""
        await self._endpoint.close()


def _pod_resources(answer: pb.ListPodResourcesResponse) -> PodResources:
    pods = [(PodRef(pod.namespace, pod.name), pod.containers) for pod in answer.pod_resources]
    containers = [(pod, container) for pod, inside in pods for container in inside]
    return PodResources(
        pods=frozenset(pod for pod, _ in pods),
        devices=tuple(
            DeviceUse(pod, container.name, resource, ids)
            for pod, container in containers
            for resource, ids in _by_resource(container.devices).items()
        ),
        claims=tuple(use for pod, container in containers for use in _claims(pod, container)),
    )


def _by_resource(devices: Iterable[pb.ContainerDevices]) -> dict[str, frozenset[str]]:
    """Gather the ids of each resource; the kubelet gives one entry per NUMA node."""
    gathered: dict[str, set[str]] = {}
    for entry in devices:
        gathered.setdefault(entry.resource_name, set()).update(entry.device_ids)
    return {resource: frozenset(ids) for resource, ids in gathered.items()}


def _claims(pod: PodRef, container: pb.ContainerResources) -> Iterator[ClaimUse]:
    for claim in container.dynamic_resources:
        devices = tuple(
            ClaimDevice(
                driver=part.driver_name,
                pool=part.pool_name,
                device=part.device_name,
                share_id=part.share_id if part.HasField("share_id") else None,
                cdi_ids=tuple(device.name for device in part.cdi_devices),
            )
            for part in claim.claim_resources
        )
        yield ClaimUse(pod, container.name, claim.claim_namespace, claim.claim_name, devices)
