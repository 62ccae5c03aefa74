"""What the author of a device plugin writes, and the values that go in and out. Knows no gRPC.

A plugin has devices() and allocate(); preferred() and pre_start() are offered to the kubelet only if they are there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from deviceplugin_v1beta1.names import DEVICE_ID_LIMIT


class AllocationRefused(Exception):
    """The devices cannot be given; the message reaches the pod's status, so it should say why and what to do.

    The kubelet does not ask again for the same pod: it fails, and its controller makes another
    (kubelet-contract A.4).
    """


class DeviceListError(ValueError):
    """A list of devices that the kubelet could not use: an id that is empty, too long, or given twice."""


class DevicesEnded(Exception):
    """devices() came to its end. A plugin without news waits; one that ends would stay frozen as it was."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device as the kubelet counts it.

    Attributes:
        id: at most 63 characters, and the same after restarts and reboots: the kubelet remembers it.
        healthy: an unhealthy device stays counted but is given to nobody; a missing one is gone.
        numa_nodes: where it is; a single device that says so makes the kubelet align the whole resource.
    """

    id: str
    healthy: bool = True
    numa_nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device node of the host that a container gets; permissions are any of r, w, m."""

    host_path: str
    container_path: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host that a container gets."""

    host_path: str
    container_path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerResponse:
    """What one container gets for its devices.

    The kubelet keeps it and uses it again whenever the container restarts, so it must stay true for the pod's life,
    reboots included. A node belongs in `devices` or behind a CDI name, never in both (kubelet-contract A.5).

    Attributes:
        envs: environment variables.
        mounts: files and folders.
        devices: device nodes.
        annotations: for the container runtime.
        cdi_devices: fully qualified CDI names, "vendor.example/class=name".
    """

    envs: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    devices: Sequence[DeviceSpec] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    cdi_devices: Sequence[str] = ()


class DevicePlugin(Protocol):
    """What every plugin does."""

    def devices(self) -> AsyncIterator[Sequence[Device]]:
        """Yield the complete list of devices, at once and again after every change; never end.

        It is read by one task. An exception stops the server, and with it all devices become unhealthy.
        """
        ...

    async def allocate(self, containers: Sequence[Sequence[str]]) -> Sequence[ContainerResponse]:
        """Give each container the devices with these ids: all, or none.

        The kubelet waits without limit and admits no other pod meanwhile: answer in milliseconds. It may give the
        same id again without a word about its release.

        Raises:
            AllocationRefused: with the reason.
        """
        ...


@runtime_checkable
class Preferring(Protocol):
    """A plugin with a wish as to which devices are taken."""

    async def preferred(
        self, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> Sequence[str]:
        """Choose `size` of the available ids, with all of must_include. Advice: fewer is no refusal."""
        ...


@runtime_checkable
class PreStarting(Protocol):
    """A plugin that does something before each start of a container, restarts included."""

    async def pre_start(self, ids: Sequence[str]) -> None:
        """Prepare the devices within 30 s. An exception keeps the container from starting; it is tried again."""
        ...


def checked(devices: Sequence[Device]) -> tuple[Device, ...]:
    """The list, if the kubelet can use it.

    Raises:
        DeviceListError: names every id that is wrong.
    """
    problems = []
    seen: set[str] = set()
    for device in devices:
        if not device.id:
            problems.append("a device has an empty id")
        elif len(device.id) > DEVICE_ID_LIMIT:
            problems.append(
                f'id "{device.id}" has {len(device.id)} characters, {DEVICE_ID_LIMIT} are allowed'
            )
        elif device.id in seen:
            problems.append(f'id "{device.id}" is there twice')
        seen.add(device.id)
    if problems:
        raise DeviceListError("the list of devices cannot be shown to the kubelet: " + "; ".join(problems))
    return tuple(devices)
