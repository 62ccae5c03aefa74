"""Throw-away plugins on the raw stubs that note every RPC: they share no code with the libraries.

So a fault of the libraries is not mirrored in what is expected of the kubelet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as dp_grpc
from dra_v1.api import pluginregistration_pb2 as reg
from dra_v1.api import pluginregistration_pb2_grpc as reg_grpc
from tests.protocol.suite.journal import LIMIT_S, Journal
from tests.protocol.suite.node import Node, channel_to

if TYPE_CHECKING:
    from deviceplugin_v1beta1.api.deviceplugin_pb2_grpc import RegistrationAsyncStub

RpcContext = grpc.aio.ServicerContext[Any, Any]

HEALTHY = "Healthy"


class Registrar(reg_grpc.RegistrationServicer):
    """A registration socket; `info` is what it answers."""

    def __init__(self, journal: Journal, who: str, socket: Path, info: reg.PluginInfo) -> None:
        self.journal, self.who, self.socket, self.info = journal, who, socket, info
        self._server: grpc.aio.Server | None = None

    async def GetInfo(self, request: reg.InfoRequest, context: RpcContext) -> reg.PluginInfo:
        self.journal.note(self.who, "GetInfo", request)
        return self.info

    async def NotifyRegistrationStatus(
        self, request: reg.RegistrationStatus, context: RpcContext
    ) -> reg.RegistrationStatusResponse:
        self.journal.note(self.who, "NotifyRegistrationStatus", request)
        return reg.RegistrationStatusResponse()

    async def start(self, *more: Callable[[grpc.aio.Server], None]) -> None:
        """Serve, and other services on the same socket."""
        self._server = grpc.aio.server()
        reg_grpc.add_RegistrationServicer_to_server(self, self._server)
        for add in more:
            add(self._server)
        self._server.add_insecure_port(f"unix://{self.socket}")
        await self._server.start()

    async def stop(self) -> None:
        """Remove the socket and stop."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def told(self, since: int = 0) -> reg.RegistrationStatus:
        """Wait for the first status that came after the `since`-th call."""
        (call, *_) = await self.journal.wait("NotifyRegistrationStatus", self.who, since=since)
        assert isinstance(call.request, reg.RegistrationStatus)
        return call.request


class DevicePlugin(dp_grpc.DevicePluginServicer):
    """A device plugin that lists what it is told to and answers what it is told to.

    Attributes:
        who: its name in the journal and of its sockets.
        devices: id to health, as the next list says.
        numa: NUMA node by id, where there is one.
        refuse, refuse_start: text with which Allocate and PreStartContainer fail; empty: they do not.
        prefer: what GetPreferredAllocation answers.
        answer: what Allocate answers for some ids.
    """

    def __init__(self, node: Node, journal: Journal, who: str, resource: str, ids: Sequence[str]) -> None:
        self.node, self.journal, self.who, self.resource = node, journal, who, resource
        self.devices = dict.fromkeys(ids, HEALTHY)
        self.numa: dict[str, int] = {}
        self.options = dp.DevicePluginOptions()
        self.refuse = self.refuse_start = ""
        self.prefer: Callable[[dp.ContainerPreferredAllocationRequest], Sequence[str]] = lambda request: ()
        self.answer: Callable[[Sequence[str]], dp.ContainerAllocateResponse] = lambda ids: (
            dp.ContainerAllocateResponse(envs={"SUITE_IDS": ",".join(sorted(ids))})
        )
        name = f"{who}{node.number}"
        self.socket = node.device_plugins / f"{name}.sock"
        info = reg.PluginInfo(
            type="DevicePlugin",
            name=resource,
            endpoint=node.inside(self.socket),
            supported_versions=["v1beta1"],
        )
        self.registrar = Registrar(journal, who, node.registry / f"{name}-reg.sock", info)
        self._streams: set[asyncio.Queue[bool]] = set()
        self._server: grpc.aio.Server | None = None

    # The service

    async def GetDevicePluginOptions(self, request: dp.Empty, context: RpcContext) -> dp.DevicePluginOptions:
        self.journal.note(self.who, "GetDevicePluginOptions", request)
        return self.options

    async def ListAndWatch(
        self, request: dp.Empty, context: RpcContext
    ) -> AsyncIterator[dp.ListAndWatchResponse]:
        self.journal.note(self.who, "ListAndWatch", request)
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

    async def Allocate(self, request: dp.AllocateRequest, context: RpcContext) -> dp.AllocateResponse:
        self.journal.note(self.who, "Allocate", request)
        if self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuse)
        answers = [self.answer(list(asked.devices_ids)) for asked in request.container_requests]
        return dp.AllocateResponse(container_responses=answers)

    async def GetPreferredAllocation(
        self, request: dp.PreferredAllocationRequest, context: RpcContext
    ) -> dp.PreferredAllocationResponse:
        self.journal.note(self.who, "GetPreferredAllocation", request)
        answers = [
            dp.ContainerPreferredAllocationResponse(deviceIDs=self.prefer(asked))
            for asked in request.container_requests
        ]
        return dp.PreferredAllocationResponse(container_responses=answers)

    async def PreStartContainer(
        self, request: dp.PreStartContainerRequest, context: RpcContext
    ) -> dp.PreStartContainerResponse:
        self.journal.note(self.who, "PreStartContainer", request)
        if self.refuse_start:
            await context.abort(grpc.StatusCode.INTERNAL, self.refuse_start)
        return dp.PreStartContainerResponse()

    # Its life

    def move(self, folder: Path) -> None:
        """Have its socket in another folder, before it serves."""
        self.socket = folder / self.socket.name
        self.registrar.info.endpoint = self.node.inside(self.socket)

    async def serve(self) -> None:
        """Listen on its own socket."""
        self._server = grpc.aio.server()
        dp_grpc.add_DevicePluginServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix://{self.socket}")
        await self._server.start()

    async def register(self, version: str = "v1beta1", resource: str = "", endpoint: str = "") -> None:
        """Register over kubelet.sock; raises grpc.aio.AioRpcError."""
        async with channel_to(self.node.device_plugins / "kubelet.sock") as channel:
            stub: RegistrationAsyncStub = dp_grpc.RegistrationStub(channel)
            asked = dp.RegisterRequest(
                version=version,
                endpoint=endpoint or self.socket.name,
                resource_name=resource or self.resource,
            )
            await stub.Register(asked, wait_for_ready=True, timeout=LIMIT_S)

    async def start(self) -> None:
        """Serve and register over kubelet.sock; wait until the devices are offered."""
        await self.serve()
        await self.register()
        await self.node.offers(self.resource, len(self.devices))

    async def hang_up(self) -> None:
        """Stop serving: every stream ends."""
        self._leave_streams()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def end_streams(self) -> None:
        """End ListAndWatch, and go on serving."""
        self._leave_streams()

    def _leave_streams(self) -> None:
        for queue in self._streams:
            queue.put_nowait(False)
        self._streams.clear()

    def send(self) -> None:
        """Send the list as it is now."""
        for queue in self._streams:
            queue.put_nowait(True)

    def relent(self) -> None:
        """Fail nothing any more."""
        self.refuse = self.refuse_start = ""

    async def stop(self) -> None:
        """Leave nothing behind."""
        await self.registrar.stop()
        await self.hang_up()
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()

    # What it was asked

    def allocated(self, since: int = 0) -> list[list[str]]:
        """Return the ids of each Allocate; each had one container request."""
        found = []
        for call in self.journal.of("Allocate", self.who, since):
            assert isinstance(call.request, dp.AllocateRequest)
            (asked,) = call.request.container_requests
            found.append(sorted(asked.devices_ids))
        return found

    def preferences(self) -> list[dp.ContainerPreferredAllocationRequest]:
        """Return what each GetPreferredAllocation asked; each had one container request."""
        found = []
        for call in self.journal.of("GetPreferredAllocation", self.who):
            assert isinstance(call.request, dp.PreferredAllocationRequest)
            (asked,) = call.request.container_requests
            found.append(asked)
        return found

    def pre_started(self) -> list[list[str]]:
        """Return the ids of each PreStartContainer."""
        found = []
        for call in self.journal.of("PreStartContainer", self.who):
            assert isinstance(call.request, dp.PreStartContainerRequest)
            found.append(sorted(call.request.devices_ids))
        return found
