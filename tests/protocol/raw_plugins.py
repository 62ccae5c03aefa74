"""Throw-away plugins on the raw stubs, for tests of the sandbox alone: they share no code with the libraries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from bridge.sandbox.kubelet.sockets import serve
from bridge.sandbox.paths import Paths
from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as dp_grpc
from dra_v1.api import dra_v1_pb2 as dra
from dra_v1.api import dra_v1_pb2_grpc as dra_grpc
from dra_v1.api import dra_v1beta1_pb2 as dra_old
from dra_v1.api import dra_v1beta1_pb2_grpc as dra_old_grpc
from dra_v1.api import health_v1_pb2 as health
from dra_v1.api import health_v1_pb2_grpc as health_grpc
from dra_v1.api import pluginregistration_pb2 as reg
from dra_v1.api import pluginregistration_pb2_grpc as reg_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]


class Registrar(reg_grpc.RegistrationServicer):
    """A socket in plugins_registry."""

    def __init__(self, socket: Path, kind: str, name: str, endpoint: Path, versions: Sequence[str]) -> None:
        self.socket = socket
        self.info = reg.PluginInfo(type=kind, name=name, endpoint=str(endpoint), supported_versions=versions)
        self.told: asyncio.Queue[reg.RegistrationStatus] = asyncio.Queue()
        self.delay = 0.0

    async def GetInfo(self, request: reg.InfoRequest, context: RpcContext) -> reg.PluginInfo:
        await asyncio.sleep(self.delay)
        return self.info

    async def NotifyRegistrationStatus(
        self, request: reg.RegistrationStatus, context: RpcContext
    ) -> reg.RegistrationStatusResponse:
        self.told.put_nowait(request)
        return reg.RegistrationStatusResponse()

    async def start(self) -> None:
        self.server = grpc.aio.server()
        reg_grpc.add_RegistrationServicer_to_server(self, self.server)
        await serve(self.server, self.socket, self.socket.parent.parent)

    async def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        await self.server.stop(None)

    async def status(self) -> reg.RegistrationStatus:
        return await asyncio.wait_for(self.told.get(), 20)


class RawDevicePlugin(dp_grpc.DevicePluginServicer):
    """A device plugin that lists what it is told and answers what it is told."""

    def __init__(self, paths: Paths, resource: str, ids: Sequence[str], name: str = "raw") -> None:
        self.paths, self.resource, self.name = paths, resource, name
        self.devices = dict.fromkeys(ids, "Healthy")
        self.numa: dict[str, int] = {}
        self.options = dp.DevicePluginOptions()
        self.allocated: list[list[str]] = []
        self.preferences: list[dp.ContainerPreferredAllocationRequest] = []
        self.prefer: Callable[[dp.ContainerPreferredAllocationRequest], Sequence[str]] = lambda request: ()
        self.started: list[list[str]] = []
        self.refuse = ""
        self.refuse_start = ""
        self.answer: Callable[[Sequence[str]], dp.ContainerAllocateResponse] = lambda ids: (
            dp.ContainerAllocateResponse(envs={"IDS": ",".join(sorted(ids))})
        )
        self._streams: set[asyncio.Queue[bool]] = set()
        self.registrar: Registrar | None = None

    @property
    def socket(self) -> Path:
        return self.paths.device_plugins / f"{self.name}.sock"

    async def GetDevicePluginOptions(self, request: dp.Empty, context: RpcContext) -> dp.DevicePluginOptions:
        return self.options

    async def ListAndWatch(
        self, request: dp.Empty, context: RpcContext
    ) -> AsyncIterator[dp.ListAndWatchResponse]:
        queue: asyncio.Queue[bool] = asyncio.Queue()
        queue.put_nowait(True)
        self._streams.add(queue)
        while await queue.get():
            devices = []
            for one, state in self.devices.items():
                device = dp.Device(ID=one, health=state)
                if one in self.numa:
                    device.topology.nodes.add(ID=self.numa[one])
                devices.append(device)
            yield dp.ListAndWatchResponse(devices=devices)

    def send(self) -> None:
        """Send the list as it is now."""
        for queue in self._streams:
            queue.put_nowait(True)

    async def Allocate(self, request: dp.AllocateRequest, context: RpcContext) -> dp.AllocateResponse:
        assert len(request.container_requests) == 1
        ids = list(request.container_requests[0].devices_ids)
        if self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuse)
        self.allocated.append(ids)
        return dp.AllocateResponse(container_responses=[self.answer(ids)])

    async def GetPreferredAllocation(
        self, request: dp.PreferredAllocationRequest, context: RpcContext
    ) -> dp.PreferredAllocationResponse:
        wanted = request.container_requests[0]
        self.preferences.append(wanted)
        answer = dp.ContainerPreferredAllocationResponse(deviceIDs=self.prefer(wanted))
        return dp.PreferredAllocationResponse(container_responses=[answer])

    async def PreStartContainer(
        self, request: dp.PreStartContainerRequest, context: RpcContext
    ) -> dp.PreStartContainerResponse:
        if self.refuse_start:
            await context.abort(grpc.StatusCode.INTERNAL, self.refuse_start)
        self.started.append(list(request.devices_ids))
        return dp.PreStartContainerResponse()

    async def serve(self) -> None:
        self.server = grpc.aio.server()
        dp_grpc.add_DevicePluginServicer_to_server(self, self.server)
        await serve(self.server, self.socket, self.paths.base)

    async def register(self, version: str = "v1beta1", resource: str = "", endpoint: str = "") -> None:
        """Register over kubelet.sock."""
        target = f"unix://{self.paths.device_plugins / 'kubelet.sock'}"
        async with grpc.aio.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            stub: dp_grpc.RegistrationAsyncStub = dp_grpc.RegistrationStub(channel)
            await stub.Register(
                dp.RegisterRequest(
                    version=version,
                    endpoint=endpoint or self.socket.name,
                    resource_name=resource or self.resource,
                ),
                wait_for_ready=True,
                timeout=20,
            )

    async def register_by_watcher(self) -> Registrar:
        """Register through plugins_registry."""
        path = self.paths.registry / f"{self.name}-reg.sock"
        self.registrar = Registrar(path, "DevicePlugin", self.resource, self.socket, ["v1beta1"])
        await self.registrar.start()
        return self.registrar

    async def stop(self) -> None:
        for queue in self._streams:
            queue.put_nowait(False)
        if self.registrar is not None:
            await self.registrar.stop()
            self.registrar = None
        self.socket.unlink(missing_ok=True)
        await self.server.stop(None)


class RawDraDriver(dra_grpc.DRAPluginServicer, health_grpc.DRAResourceHealthServicer):
    """A DRA driver that answers each claim with a CDI name per device, or as told."""

    def __init__(self, paths: Paths, driver: str, versions: Sequence[str] = ("v1.DRAPlugin",)) -> None:
        self.paths, self.driver, self.versions = paths, driver, versions
        folder = paths.plugins / driver
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "dra.sock"
        self.prepares: list[list[dra.Claim]] = []
        self.unprepares: list[list[dra.Claim]] = []
        self.prepare: Callable[[dra.Claim], dra.NodePrepareResourceResponse] = lambda claim: (
            dra.NodePrepareResourceResponse(error="nothing is known of this claim")
        )
        self.twist: Callable[[dra.NodePrepareResourcesResponse], None] = lambda answer: None
        self.unprepare_error = ""
        self.hold: Callable[[], Awaitable[None]] | None = None
        self.health: asyncio.Queue[health.NodeWatchResourcesResponse] = asyncio.Queue()
        self.registrar = Registrar(
            paths.registry / f"{driver}-reg.sock", "DRAPlugin", driver, self.socket, versions
        )

    async def NodePrepareResources(
        self, request: dra.NodePrepareResourcesRequest, context: RpcContext
    ) -> dra.NodePrepareResourcesResponse:
        self.prepares.append(list(request.claims))
        if self.hold is not None:
            await self.hold()
        answer = dra.NodePrepareResourcesResponse()
        for claim in request.claims:
            answer.claims[claim.uid].CopyFrom(self.prepare(claim))
        self.twist(answer)
        return answer

    async def NodeUnprepareResources(
        self, request: dra.NodeUnprepareResourcesRequest, context: RpcContext
    ) -> dra.NodeUnprepareResourcesResponse:
        self.unprepares.append(list(request.claims))
        answer = dra.NodeUnprepareResourcesResponse()
        for claim in request.claims:
            answer.claims[claim.uid].error = self.unprepare_error
        return answer

    async def NodeWatchResources(
        self, request: health.NodeWatchResourcesRequest, context: RpcContext
    ) -> AsyncIterator[health.NodeWatchResourcesResponse]:
        while True:
            yield await self.health.get()

    async def serve(self) -> None:
        self.server = grpc.aio.server()
        dra_grpc.add_DRAPluginServicer_to_server(self, self.server)
        dra_old_grpc.add_DRAPluginServicer_to_server(_Old(self), self.server)
        health_grpc.add_DRAResourceHealthServicer_to_server(self, self.server)
        await serve(self.server, self.socket, self.paths.base)

    async def start(self) -> None:
        await self.serve()
        await self.registrar.start()
        assert (await self.registrar.status()).plugin_registered

    async def stop(self) -> None:
        await self.registrar.stop()
        await self.server.stop(None)


class _Old(dra_old_grpc.DRAPluginServicer):
    def __init__(self, driver: RawDraDriver) -> None:
        self._driver = driver

    async def NodePrepareResources(
        self, request: dra_old.NodePrepareResourcesRequest, context: RpcContext
    ) -> dra_old.NodePrepareResourcesResponse:
        same = dra.NodePrepareResourcesRequest.FromString(request.SerializeToString())
        answer = await self._driver.NodePrepareResources(same, context)
        return dra_old.NodePrepareResourcesResponse.FromString(answer.SerializeToString())

    async def NodeUnprepareResources(
        self, request: dra_old.NodeUnprepareResourcesRequest, context: RpcContext
    ) -> dra_old.NodeUnprepareResourcesResponse:
        same = dra.NodeUnprepareResourcesRequest.FromString(request.SerializeToString())
        answer = await self._driver.NodeUnprepareResources(same, context)
        return dra_old.NodeUnprepareResourcesResponse.FromString(answer.SerializeToString())
