"""Registered DRA drivers: instances, their connections, the calls, and the wiping of slices (B.1, B.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc

from bridge.sandbox.cluster.objects import ApiProblem
from bridge.sandbox.kubelet.context import ConnectionClosing, Context, answered, dial, rpc_text
from bridge.sandbox.kubelet.health import HealthWatch
from bridge.sandbox.kubelet.watcher import PluginRefused
from bridge.sandbox.tasks import spawn
from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import dra_v1beta1_pb2 as v1beta1
from dra_v1.api import dra_v1beta1_pb2_grpc as v1beta1_grpc
from dra_v1.api.dra_v1_pb2_grpc import DRAPluginStub

if TYPE_CHECKING:
    from dra_v1.api.dra_v1_pb2_grpc import DRAPluginAsyncStub


ALPHA = "v1alpha3.NodeService"


def _quoted(words: Sequence[str]) -> str:
    """Write a list as Go's %q does."""
    return "[" + " ".join(f'"{word}"' for word in words) + "]"


class DraCallError(Exception):
    """A call to a DRA driver that failed."""


class Instance:
    """One registered instance of a driver.

    Attributes:
        service: the DRA version in use: the first of the plugin's list that the kubelet supports.
        connected: whether its socket answers.
    """

    def __init__(self, driver: str, endpoint: str, service: str, timeout: float, *, old: bool) -> None:
        self.driver, self.endpoint, self.service = driver, endpoint, service
        self._failed = " failed: " if old else ": "
        self.connected = True
        self.channel = dial(endpoint)
        self.tasks: list[asyncio.Task[None]] = []
        self._timeout = timeout

    async def prepare(self, claims: Sequence[v1.Claim]) -> v1.NodePrepareResourcesResponse:
        """Call NodePrepareResources (45 s); raises DraCallError."""
        request = v1.NodePrepareResourcesRequest(claims=claims)
        try:
            if self.service == "v1.DRAPlugin":
                stub: DRAPluginAsyncStub = DRAPluginStub(self.channel)
                return await answered(stub.NodePrepareResources(request, timeout=self._timeout))
            old: v1beta1_grpc.DRAPluginAsyncStub = v1beta1_grpc.DRAPluginStub(self.channel)
            message = v1beta1.NodePrepareResourcesRequest.FromString(request.SerializeToString())
            answer = await answered(old.NodePrepareResources(message, timeout=self._timeout))
            return v1.NodePrepareResourcesResponse.FromString(answer.SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise DraCallError(f"NodePrepareResources{self._failed}{rpc_text(error)}") from error
        except ConnectionClosing as error:
            raise DraCallError(f"NodePrepareResources{self._failed}{error}") from error

    async def unprepare(self, claims: Sequence[v1.Claim]) -> v1.NodeUnprepareResourcesResponse:
        """Call NodeUnprepareResources (45 s); raises DraCallError."""
        request = v1.NodeUnprepareResourcesRequest(claims=claims)
        try:
            if self.service == "v1.DRAPlugin":
                stub: DRAPluginAsyncStub = DRAPluginStub(self.channel)
                return await answered(stub.NodeUnprepareResources(request, timeout=self._timeout))
            old: v1beta1_grpc.DRAPluginAsyncStub = v1beta1_grpc.DRAPluginStub(self.channel)
            message = v1beta1.NodeUnprepareResourcesRequest.FromString(request.SerializeToString())
            answer = await answered(old.NodeUnprepareResources(message, timeout=self._timeout))
            return v1.NodeUnprepareResourcesResponse.FromString(answer.SerializeToString())
        except grpc.aio.AioRpcError as error:
            raise DraCallError(f"NodeUnprepareResources{self._failed}{rpc_text(error)}") from error
        except ConnectionClosing as error:
            raise DraCallError(f"NodeUnprepareResources{self._failed}{error}") from error

    async def close(self) -> None:
        """Close the connection and end what follows it."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.channel.close()


class DraPlugins:
    """The drivers of the node; a plugin watcher's handler for type `DRAPlugin`.

    Attributes:
        health: device health by (driver, pool, device), from the drivers' health streams.
        on_health: called with a driver's name when its devices' health has changed.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._instances: dict[str, list[Instance]] = {}
        self._wipes: dict[str, asyncio.Task[None]] = {}
        self.health = HealthWatch(context)
        self.on_registered: Callable[[str], None] = lambda driver: None

    # -- the watcher's handler

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Check a plugin; raises PluginRefused."""
        profile = self._context.profile
        where = (
            f"invalid versions of plugin {name}"
            if profile.old_dra
            else f"invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}"
        )
        if not versions:
            raise PluginRefused(f"{where}: empty list of supported gRPC services (aka supported versions)")
        if self._service(versions) is None:
            raise PluginRefused(
                f"{where}: none of services supported by the plugin ({_quoted(versions)}) "
                f"are supported by the kubelet ({_quoted(profile.dra_services)})"
            )

    def _service(self, versions: Sequence[str]) -> str | None:
        known = self._context.profile.dra_services
        # 1.32 takes whoever names no version that it knows for a driver of an alpha version.
        fallback = ALPHA if self._context.profile.old_dra else None
        return next((v for v in versions if v in known), fallback)

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Take an instance: the newest is used; a pending wipe of the driver's slices is called off."""
        service = self._service(versions)
        assert service is not None
        instances = self._instances.setdefault(name, [])
        if any(known.endpoint == endpoint for known in instances):
            raise PluginRefused(f"endpoint {endpoint} already registered for DRA driver plugin {name}")
        if instances and self._context.profile.wipe_at_once:
            for known in instances:
                await known.close()
            instances.clear()
        instance = Instance(
            name,
            endpoint,
            service,
            self._context.timings.prepare_timeout,
            old=self._context.profile.old_dra,
        )
        instances.append(instance)
        instance.tasks.append(spawn(self._context.observe, f"monitor of {name}", self._monitor(instance)))
        if (task := self.health.follow(instance.driver, instance.channel, versions)) is not None:
            instance.tasks.append(task)
        self._keep_slices(name)
        self._context.tell("DriverRegistered", name, endpoint=endpoint, service=service)
        self.on_registered(name)

    async def deregister(self, name: str, endpoint: str) -> None:
        """Let an instance go; slices are wiped some time after the last one."""
        for instance in [i for i in self._instances.get(name, []) if i.endpoint == endpoint]:
            self._instances[name].remove(instance)
            await instance.close()
        self._context.tell("DriverDeregistered", name, endpoint=endpoint)
        self._check_wipe(name)

    def get(self, driver: str) -> Instance:
        """Return the newest connected instance (else the newest); raises DraCallError."""
        instances = self._instances.get(driver) or []
        if not instances:
            if self._context.profile.old_dra:
                raise DraCallError(
                    f"failed to get gRPC client for driver {driver}: "
                    f"plugin name {driver} not found in the list of registered DRA plugins"
                )
            raise DraCallError(f"DRA driver {driver} is not registered")
        return next((i for i in reversed(instances) if i.connected), instances[-1])

    # -- connections and slices

    async def _monitor(self, instance: Instance) -> None:
        """Follow the connection's state (1.34 on): a driver that does not answer loses its slices too."""
        state = instance.channel.get_state(try_to_connect=True)
        while True:
            await instance.channel.wait_for_state_change(state)
            state = instance.channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.CONNECTING:
                continue
            connected = state is grpc.ChannelConnectivity.READY
            if connected == instance.connected:
                continue
            instance.connected = connected
            what = "DriverConnected" if connected else "DriverDisconnected"
            self._context.tell(what, instance.driver, endpoint=instance.endpoint)
            if connected:
                self._keep_slices(instance.driver)
            elif not self._context.profile.wipe_at_once:
                self._check_wipe(instance.driver)

    def _check_wipe(self, driver: str) -> None:
        if any(instance.connected for instance in self._instances.get(driver, [])) or driver in self._wipes:
            return
        delay = 0.0 if self._context.profile.wipe_at_once else self._context.timings.wipe_delay
        self._wipes[driver] = spawn(self._context.observe, f"wipe of {driver}", self._wipe(driver, delay))

    def _keep_slices(self, driver: str) -> None:
        if (task := self._wipes.pop(driver, None)) is not None:
            task.cancel()

    def wipe_all(self) -> None:
        """Delete all slices of this node, whoever wrote them: what a starting kubelet does (1.31 on)."""
        self._wipes[""] = spawn(self._context.observe, "wipe at start", self._wipe("", 0.0))

    async def _wipe(self, driver: str, delay: float) -> None:
        await asyncio.sleep(delay)
        fields = f"spec.nodeName={self._context.node_name}" + (f",spec.driver={driver}" if driver else "")
        while True:
            try:
                if not self._context.api.serves("resourceslices"):
                    return
                wiped = self._context.api.delete_all("resourceslices", fields=fields)
                break
            except ApiProblem:
                await asyncio.sleep(self._context.timings.pod_retry)
        self._wipes.pop(driver, None)
        self._context.tell("SlicesWiped", driver or "*", count=len(wiped))

    async def close(self) -> None:
        """End everything without telling anybody, as a dying kubelet does."""
        for task in self._wipes.values():
            task.cancel()
        for instances in self._instances.values():
            for instance in instances:
                await instance.close()
