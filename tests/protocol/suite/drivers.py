"""A throw-away DRA driver on the raw stubs that notes every RPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import dra_v1_pb2_grpc as v1_grpc
from dra_v1.api import dra_v1beta1_pb2 as v1beta1
from dra_v1.api import dra_v1beta1_pb2_grpc as v1beta1_grpc
from dra_v1.api import health_v1_pb2 as health
from dra_v1.api import health_v1_pb2_grpc as health_grpc
from dra_v1.api import health_v1alpha1_pb2 as old_health
from dra_v1.api import health_v1alpha1_pb2_grpc as old_health_grpc
from dra_v1.api import pluginregistration_pb2 as reg
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plugins import Registrar

RpcContext = grpc.aio.ServicerContext[Any, Any]

BOTH = ("v1.DRAPlugin", "v1beta1.DRAPlugin")


class DraDriver(v1_grpc.DRAPluginServicer, health_grpc.DRAResourceHealthServicer):
    """A driver that prepares a device for each claim, or does what it is told.

    Attributes:
        who: its name in the journal.
        answer: what NodePrepareResources answers for one claim.
        twist: changes the whole answer before it is sent.
        refuse_prepare: gRPC error of NodePrepareResources; empty: none.
        unprepare_error: error of each claim in NodeUnprepareResources.
        services: `v1` or `v1beta1` of each NodePrepareResources.
    """

    def __init__(
        self,
        node: Node,
        journal: Journal,
        driver: str,
        versions: Sequence[str] = BOTH,
        *,
        instance: str = "",
    ) -> None:
        self.node, self.journal, self.who, self.driver = node, journal, driver + instance, driver
        self.answer: Callable[[v1.Claim], v1.NodePrepareResourceResponse] = lambda claim: (
            v1.NodePrepareResourceResponse(devices=[v1.Device(pool_name=node.name, device_name="dev0")])
        )
        self.twist: Callable[[v1.NodePrepareResourcesResponse], None] = lambda answer: None
        self.refuse_prepare = self.unprepare_error = ""
        self.services: list[str] = []
        self._health: asyncio.Queue[health.NodeWatchResourcesResponse] = asyncio.Queue()
        folder = node.kubelet / "plugins" / driver
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / f"dra{instance}.sock"
        info = reg.PluginInfo(
            type="DRAPlugin", name=driver, endpoint=node.inside(self.socket), supported_versions=versions
        )
        self.registrar = Registrar(journal, self.who, node.registry / f"{driver}{instance}-reg.sock", info)
        self._server: grpc.aio.Server | None = None

    # The service

    async def NodePrepareResources(
        self, request: v1.NodePrepareResourcesRequest, context: RpcContext, *, service: str = "v1"
    ) -> v1.NodePrepareResourcesResponse:
        self.services.append(service)
        self.journal.note(self.who, "NodePrepareResources", request)
        if self.refuse_prepare:
            await context.abort(grpc.StatusCode.INTERNAL, self.refuse_prepare)
        answer = v1.NodePrepareResourcesResponse()
        for claim in request.claims:
            answer.claims[claim.uid].CopyFrom(self.answer(claim))
        self.twist(answer)
        return answer

    async def NodeUnprepareResources(
        self, request: v1.NodeUnprepareResourcesRequest, context: RpcContext
    ) -> v1.NodeUnprepareResourcesResponse:
        self.journal.note(self.who, "NodeUnprepareResources", request)
        answer = v1.NodeUnprepareResourcesResponse()
        for claim in request.claims:
            answer.claims[claim.uid].error = self.unprepare_error
        return answer

    async def NodeWatchResources(
        self, request: health.NodeWatchResourcesRequest, context: RpcContext
    ) -> AsyncIterator[health.NodeWatchResourcesResponse]:
        self.journal.note(self.who, "NodeWatchResources", request)
        while True:
            yield await self._health.get()

    # Its life

    async def serve(self) -> None:
        """Listen."""
        self._server = grpc.aio.server()
        v1_grpc.add_DRAPluginServicer_to_server(self, self._server)
        v1beta1_grpc.add_DRAPluginServicer_to_server(_V1beta1(self), self._server)
        health_grpc.add_DRAResourceHealthServicer_to_server(self, self._server)
        old_health_grpc.add_DRAResourceHealthServicer_to_server(_OldHealth(self), self._server)
        self._server.add_insecure_port(f"unix://{self.socket}")
        await self._server.start()

    async def start(self) -> None:
        """Serve, and wait until the kubelet has taken the registration."""
        before = len(self.journal)
        await self.serve()
        await self.registrar.start()
        told = await self.registrar.told(before)
        assert told.plugin_registered, told.error

    async def hang_up(self) -> None:
        """Stop serving, but leave the registration socket."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def tell_health(self, *devices: health.DeviceHealth) -> None:
        """Send health to whoever watches."""
        self._health.put_nowait(health.NodeWatchResourcesResponse(devices=devices))

    def relent(self) -> None:
        """Fail nothing any more."""
        self.refuse_prepare = self.unprepare_error = ""
        self.twist = lambda answer: None

    async def stop(self) -> None:
        """Leave nothing behind."""
        await self.registrar.stop()
        await self.hang_up()
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()

    # What it was asked

    def prepared(self, since: int = 0) -> list[list[v1.Claim]]:
        """Return the claims of each NodePrepareResources, by name."""
        found = []
        for call in self.journal.of("NodePrepareResources", self.who, since):
            assert isinstance(call.request, v1.NodePrepareResourcesRequest)
            found.append(sorted(call.request.claims, key=lambda claim: claim.name))
        return found

    def unprepared(self, since: int = 0) -> list[list[v1.Claim]]:
        """Return the claims of each NodeUnprepareResources, by name."""
        found = []
        for call in self.journal.of("NodeUnprepareResources", self.who, since):
            assert isinstance(call.request, v1.NodeUnprepareResourcesRequest)
            found.append(sorted(call.request.claims, key=lambda claim: claim.name))
        return found


class _V1beta1(v1beta1_grpc.DRAPluginServicer):
    """The same under the older service's name."""

    def __init__(self, driver: DraDriver) -> None:
        self._driver = driver

    async def NodePrepareResources(
        self, request: v1beta1.NodePrepareResourcesRequest, context: RpcContext
    ) -> v1beta1.NodePrepareResourcesResponse:
        same = v1.NodePrepareResourcesRequest.FromString(request.SerializeToString())
        answer = await self._driver.NodePrepareResources(same, context, service="v1beta1")
        return v1beta1.NodePrepareResourcesResponse.FromString(answer.SerializeToString())

    async def NodeUnprepareResources(
        self, request: v1beta1.NodeUnprepareResourcesRequest, context: RpcContext
    ) -> v1beta1.NodeUnprepareResourcesResponse:
        same = v1.NodeUnprepareResourcesRequest.FromString(request.SerializeToString())
        answer = await self._driver.NodeUnprepareResources(same, context)
        return v1beta1.NodeUnprepareResourcesResponse.FromString(answer.SerializeToString())


class _OldHealth(old_health_grpc.DRAResourceHealthServicer):
    """Health under the older service's name."""

    def __init__(self, driver: DraDriver) -> None:
        self._driver = driver

    async def NodeWatchResources(
        self, request: old_health.NodeWatchResourcesRequest, context: RpcContext
    ) -> AsyncIterator[old_health.NodeWatchResourcesResponse]:
        same = health.NodeWatchResourcesRequest()
        async for answer in self._driver.NodeWatchResources(same, context):
            yield old_health.NodeWatchResourcesResponse.FromString(answer.SerializeToString())
