"""One device plugin as the kubelet talks to it: dial, options, the ListAndWatch stream, the calls.

The kubelet never dials again: when the stream ends, the plugin has to register anew (kubelet-contract A.3).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import grpc

from bridge.sandbox.kubelet.context import ConnectionClosing, answered, dial, rpc_text
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api.deviceplugin_pb2_grpc import DevicePluginStub

if TYPE_CHECKING:
    from deviceplugin_v1beta1.api.deviceplugin_pb2_grpc import DevicePluginAsyncStub


DIAL_SECONDS = 10.0
PRE_START_SECONDS = 30.0


class EndpointError(Exception):
    """A call to a device plugin that failed; the text is what Go's error says."""


class Endpoint:
    """The connection to the plugin of one resource.

    Attributes:
        resource: the resource's name.
        socket: the plugin's socket.
        options: what GetDevicePluginOptions answered.
        stopped_at: monotonic time at which the stream ended, None while it runs.
    """

    def __init__(self, resource: str, socket: str) -> None:
        self.resource, self.socket = resource, socket
        self.options = pb.DevicePluginOptions()
        self.stopped_at: float | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stream: asyncio.Task[None] | None = None
        self._abandoned = False

    @staticmethod
    def restored(resource: str) -> Endpoint:
        """Return the endpoint of a plugin that was registered before the kubelet restarted."""
        endpoint = Endpoint(resource, "")
        endpoint.stopped_at = time.monotonic()
        return endpoint

    @property
    def _stub(self) -> DevicePluginAsyncStub:
        if self._channel is None or self.stopped_at is not None:
            raise EndpointError(f"endpoint {self.resource} has been stopped")
        stub: DevicePluginAsyncStub = DevicePluginStub(self._channel)
        return stub

    async def connect(self, within: float = DIAL_SECONDS) -> None:
        """Dial and ask for the options, each within some seconds.

        Raises:
            EndpointError: if nobody answers.
        """
        self._channel = dial(self.socket)
        try:
            await asyncio.wait_for(self._channel.channel_ready(), within)
            self.options = await self._stub.GetDevicePluginOptions(pb.Empty(), timeout=within)
        except TimeoutError as error:
            await self._channel.close()
            raise EndpointError(
                f"failed to dial device plugin {self.socket}: context deadline exceeded"
            ) from error
        except grpc.aio.AioRpcError as error:
            await self._channel.close()
            raise EndpointError(f"failed to get device plugin options: {rpc_text(error)}") from error

    def follow(
        self, listed: Callable[[Endpoint, Sequence[pb.Device]], None], ended: Callable[[Endpoint, str], None]
    ) -> None:
        """Open ListAndWatch: `listed` gets each complete list, `ended` the reason of its end, once."""
        self._stream = asyncio.create_task(self._follow(listed, ended))

    async def _follow(
        self, listed: Callable[[Endpoint, Sequence[pb.Device]], None], ended: Callable[[Endpoint, str], None]
    ) -> None:
        why = "the plugin ended the stream"
        try:
            async for message in self._stub.ListAndWatch(pb.Empty()):
                if self._abandoned:
                    return
                listed(self, message.devices)
        except grpc.aio.AioRpcError as error:
            why = rpc_text(error)
        except asyncio.CancelledError:
            why = "the kubelet closed the connection"
        self.stopped_at = time.monotonic()
        if self._abandoned:
            return
        ended(self, why)
        if self._channel is not None:
            await self._channel.close()

    async def stop(self) -> None:
        """Close the connection; the stream's end is told as ever."""
        if self._stream is not None and not self._stream.done():
            self._stream.cancel()
            await asyncio.wait({self._stream})
        elif self._channel is not None:
            await self._channel.close()

    def silence(self) -> None:
        """Take no more lists and tell no end, from this moment on."""
        self._abandoned = True
        self.stopped_at = time.monotonic()

    async def abandon(self) -> None:
        """Close the connection as a dying kubelet does: nobody is told."""
        self.silence()
        if self._channel is not None:
            await self._channel.close()

    async def allocate(self, ids: Iterable[str]) -> pb.ContainerAllocateResponse:
        """Call Allocate for one container: one request inside, no deadline, first answer taken (A.4).

        Raises:
            EndpointError: on refusal, on an empty answer, and if the plugin goes away meanwhile.
        """
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
        try:
            answer = await answered(self._stub.Allocate(request))
        except grpc.aio.AioRpcError as error:
            raise EndpointError(rpc_text(error)) from error
        except ConnectionClosing as error:
            raise EndpointError(str(error)) from error
        if not answer.container_responses:
            raise EndpointError(f"no containers return in allocation response {answer}")
        return answer.container_responses[0]

    async def preferred(self, available: Iterable[str], must: Iterable[str], size: int) -> set[str]:
        """Call GetPreferredAllocation; nothing is preferred where the plugin does not offer it (A.6).

        Raises:
            EndpointError: on an error, which fails the pod's admission.
        """
        if not self.options.get_preferred_allocation_available:
            return set()
        container = pb.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
        )
        try:
            answer = await answered(
                self._stub.GetPreferredAllocation(
                    pb.PreferredAllocationRequest(container_requests=[container])
                )
            )
        except grpc.aio.AioRpcError as error:
            text = f"device plugin GetPreferredAllocation rpc failed with err: {rpc_text(error)}"
            raise EndpointError(text) from error
        except ConnectionClosing as error:
            text = f"device plugin GetPreferredAllocation rpc failed with err: {error}"
            raise EndpointError(text) from error
        return set(answer.container_responses[0].deviceIDs) if answer.container_responses else set()

    async def pre_start(self, ids: Iterable[str]) -> None:
        """Call PreStartContainer (30 s).

        Raises:
            EndpointError: on refusal.
        """
        try:
            await answered(
                self._stub.PreStartContainer(
                    pb.PreStartContainerRequest(devices_ids=ids), timeout=PRE_START_SECONDS
                )
            )
        except grpc.aio.AioRpcError as error:
            text = f"device plugin PreStartContainer rpc failed with err: {rpc_text(error)}"
            raise EndpointError(text) from error
        except ConnectionClosing as error:
            text = f"device plugin PreStartContainer rpc failed with err: {error}"
            raise EndpointError(text) from error
