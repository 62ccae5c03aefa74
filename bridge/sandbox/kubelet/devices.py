"""The device manager: what plugins list, what containers were given, capacity and the checkpoint.

Follows kubelet-contract A.3 to A.7 step by step; choosing and granting is in `admission`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from bridge.sandbox.cluster.objects import may_register
from bridge.sandbox.kubelet import checkpoint
from bridge.sandbox.kubelet.allocations import Allocations
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.endpoint import Endpoint, EndpointError
from bridge.sandbox.tasks import spawn
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb

VERSION = "v1beta1"


class RegistrationRefused(Exception):
    """A registration that the kubelet does not accept."""


class DeviceManager:
    """Resources, devices and grants.

    Attributes:
        healthy, unhealthy: ids by resource, as last listed.
        listed: the devices themselves, by resource and id.
        allocations: grants, checkpointed.
        allocated: ids in use by resource; ahead of `allocations` while an Allocate is under way.
        endpoints: the registered plugin of each resource.
        sources_ready: whether the API server's pods have all been seen since the start.
        changed: set whenever capacity may have changed.
    """

    def __init__(self, context: Context, active_pods: Callable[[], set[str]]) -> None:
        self.context, self._active_pods = context, active_pods
        self.healthy: dict[str, set[str]] = {}
        self.unhealthy: dict[str, set[str]] = {}
        self.listed: dict[str, dict[str, pb.Device]] = {}
        self.allocations = Allocations()
        self.allocated: dict[str, set[str]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self._clients: dict[tuple[str, str], Endpoint] = {}
        self.sources_ready = False
        self.changed = asyncio.Event()
        self.on_health: Callable[[str], None] = lambda resource: None
        self._path = context.paths.device_plugins / checkpoint.DEVICES

    # -- registration

    async def register(self, resource: str, socket: str, versions: Sequence[str]) -> Endpoint:
        """Accept a plugin: check, dial, ask for options, replace the endpoint, open the stream (A.2).

        Raises:
            RegistrationRefused: bad version or resource name.
            EndpointError: the plugin does not answer.
        """
        self.validate(resource, versions)
        endpoint = Endpoint(resource, socket)
        await endpoint.connect(self.context.timings.dial)
        if self.context.profile.many_endpoints and (resource, socket) in self._clients:
            await endpoint.abandon()
            raise EndpointError(f"device plugin already connected: {socket}")
        self.endpoints[resource] = self._clients[(resource, socket)] = endpoint
        self.context.tell("PluginRegistered", resource, socket=socket)
        endpoint.follow(self._listed, self._ended)
        return endpoint

    def validate(self, resource: str, versions: Sequence[str]) -> None:
        """Check what a plugin says about itself over kubelet.sock; raises RegistrationRefused."""
        if VERSION not in versions:
            raise RegistrationRefused(
                f'requested API version "{",".join(versions)}" is not supported by kubelet. '
                f'Supported version is ["{VERSION}"]'
            )
        if not may_register(resource):
            raise RegistrationRefused(f'the ResourceName "{resource}" is invalid')

    def validate_watched(self, resource: str, versions: Sequence[str]) -> None:
        """Check what a plugin says about itself in its registration socket; raises RegistrationRefused."""
        if VERSION not in versions:
            raise RegistrationRefused(
                f"manager version, {VERSION}, is not among plugin supported versions [{' '.join(versions)}]"
            )
        if not may_register(resource):
            raise RegistrationRefused(
                f'invalid name of device plugin socket: the ResourceName "{resource}" is invalid'
            )

    async def deregister(self, resource: str, socket: str) -> None:
        """Drop the plugin at `socket`, replaced or not, as when its registration socket goes."""
        if (endpoint := self._clients.get((resource, socket))) is not None:
            await endpoint.stop()

    # -- the stream

    def _listed(self, endpoint: Endpoint, devices: Sequence[pb.Device]) -> None:
        """Replace all that is known of the resource; each message is the complete list."""
        resource = endpoint.resource
        before = (self.healthy.get(resource), self.unhealthy.get(resource))
        self.listed[resource] = {device.ID: device for device in devices}
        self.healthy[resource] = {d.ID for d in devices if d.health == "Healthy"}
        self.unhealthy[resource] = {d.ID for d in devices if d.health != "Healthy"} - self.healthy[resource]
        self.write_checkpoint()
        self.context.tell(
            "DevicesListed",
            resource,
            healthy=len(self.healthy[resource]),
            unhealthy=len(self.unhealthy[resource]),
        )
        self.changed.set()
        if before != (self.healthy[resource], self.unhealthy[resource]):
            self.on_health(resource)

    def _ended(self, endpoint: Endpoint, why: str) -> None:
        """Mark everything unhealthy at once, unless another plugin of the resource is still there.

        Before 1.37 this is keyed by the resource's name, not by the endpoint: where two plugins overlapped, the end
        of the old one also disconnects the new one (kubernetes#121994).
        """
        resource = endpoint.resource
        self.context.tell("PluginDisconnected", resource, socket=endpoint.socket, why=why)
        if self._clients.get((resource, endpoint.socket)) is endpoint:
            del self._clients[(resource, endpoint.socket)]
        others = [other for (name, _), other in self._clients.items() if name == resource]
        if self.context.profile.many_endpoints and others:
            self.endpoints[resource] = others[0]
            return
        current = self.endpoints.get(resource)
        if current is None:
            return
        if resource in self.healthy:
            self.unhealthy.setdefault(resource, set()).update(self.healthy[resource])
            self.healthy[resource] = set()
        if current.stopped_at is None:
            current.silence()
            spawn(self.context.observe, f"closing {resource}", current.abandon())
        self.changed.set()
        self.on_health(resource)

    # -- numbers

    def capacity(self) -> tuple[dict[str, int], dict[str, int], set[str]]:
        """Return capacity, allocatable, and resources that have just been dropped, to be told as 0 (A.3)."""
        now = time.monotonic()
        grace = self.context.timings.endpoint_grace
        gone = {
            name
            for name in {*self.healthy, *self.unhealthy}
            if (endpoint := self.endpoints.get(name)) is None
            or (endpoint.stopped_at is not None and now - endpoint.stopped_at > grace)
        }
        for name in gone:
            self.healthy.pop(name, None)
            self.unhealthy.pop(name, None)
            self.endpoints.pop(name, None)
        if gone:
            self.write_checkpoint()
        allocatable = {name: len(ids) for name, ids in self.healthy.items()}
        total = {name: count + len(self.unhealthy.get(name, ())) for name, count in allocatable.items()}
        return total, allocatable, gone

    def collect(self) -> None:
        """Free the devices of pods that are not active (UpdateAllocatedDevices); not written to the checkpoint."""
        if not self.sources_ready:
            return
        if ended := self.allocations.pods() - self._active_pods():
            self.allocations.drop(ended)
            self.allocated = self.allocations.devices()
            self.context.tell("AllocationsCollected", ",".join(sorted(ended)))

    # -- checkpoint

    def write_checkpoint(self) -> None:
        """Write the checkpoint: at each list, successful admission and capacity clean-up, as the real one."""
        registered = {name: sorted(ids) for name, ids in self.healthy.items()}
        data = {"PodDeviceEntries": self.allocations.to_data(), "RegisteredDevices": registered}
        checkpoint.write(self._path, data)

    def restore(self) -> None:
        """Read the checkpoint at start: grants come back, resources have no devices until they register again."""
        try:
            data = checkpoint.read(self._path)
        except checkpoint.CheckpointCorrupt as error:
            # As the real one: it starts from nothing, and running pods' devices look free (H14).
            self.context.tell("CheckpointCorrupt", checkpoint.DEVICES, error=str(error))
            return
        if data is None:
            return
        self.allocations = Allocations.from_data(data["PodDeviceEntries"])
        self.allocated = self.allocations.devices()
        for resource in data["RegisteredDevices"]:
            self.healthy[resource], self.unhealthy[resource] = set(), set()
            self.endpoints[resource] = Endpoint.restored(resource)

    async def abandon(self) -> None:
        """Close all connections as a dying kubelet does."""
        for endpoint in self.endpoints.values():
            await endpoint.abandon()
