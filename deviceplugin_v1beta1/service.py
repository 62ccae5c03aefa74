"""The DevicePlugin service: turns the kubelet's calls into the author's methods and back.

ListAndWatch keeps three promises: complete lists only, none that equals the last one sent on the same stream, and a
slow reader delays nobody and is sent the newest list when it reads on. Knows nothing of sockets and registration.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from deviceplugin_v1beta1.plugin import (
    AllocationRefused,
    ContainerResponse,
    Device,
    DevicePlugin,
    Preferring,
    PreStarting,
    checked,
)
from dra_v1 import points

logger = logging.getLogger(__name__)

MESSAGE_LIMIT = 2000
"""Bytes of an error text that are sent: gRPC carries it in a header, escaped to up to three times its length,
and refuses the whole answer where that exceeds 8 KiB."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class _Shown:
    """One list of devices: what makes it differ from another, and its wire form, built once for all streams."""

    devices: frozenset[Device]
    message: pb.ListAndWatchResponse


class DevicePluginService(pb_grpc.DevicePluginServicer):
    """One plugin's side of the API.

    `on_read` is told whether the kubelet reads the list, at each change until the end; one that begins anew has ceased
    before.

    Attributes:
        open_streams: how many ListAndWatch streams the kubelet holds open.
    """

    def __init__(
        self, plugin: DevicePlugin, resource_name: str, on_read: Callable[[bool], None] | None = None
    ) -> None:
        self.open_streams = 0
        self._on_read = on_read
        self._plugin = plugin
        self._resource_name = resource_name
        self._preferring = plugin if isinstance(plugin, Preferring) else None
        self._pre_starting = plugin if isinstance(plugin, PreStarting) else None
        self._shown: _Shown | None = None
        self._sent: dict[object, _Shown] = {}
        self._closed = False
        self._news = asyncio.Event()
        self._streams_changed = asyncio.Event()

    @property
    def options(self) -> pb.DevicePluginOptions:
        """What the plugin offers beyond the two methods that each one has."""
        return pb.DevicePluginOptions(
            pre_start_required=self._pre_starting is not None,
            get_preferred_allocation_available=self._preferring is not None,
        )

    def show(self, devices: Sequence[Device]) -> None:
        """Let every stream show this list from now on. Raises DeviceListError."""
        listed = checked(devices)
        message = pb.ListAndWatchResponse(devices=[_device(device) for device in listed])
        self._shown = _Shown(frozenset(listed), message)
        self._wake()

    async def shown(self) -> None:
        """Return as soon as there is a list to show."""
        while self._shown is None:
            await self._news.wait()

    def close(self) -> None:
        """End all streams, those to come included."""
        self._closed = True
        self._wake()

    async def wait_streams(self, *, open: bool) -> None:
        """Return as soon as some stream is open, or none is."""
        while (self.open_streams > 0) is not open:
            self._streams_changed.clear()
            await self._streams_changed.wait()

    async def sent(self, devices: Callable[[], Collection[Device]]) -> None:
        """Return when every open stream has been sent what `devices` gives at that moment; at once if none is open."""
        while True:
            wanted = frozenset(devices()) if self.open_streams else frozenset[Device]()
            sent = self._sent.values()
            if len(sent) == self.open_streams and all(shown.devices == wanted for shown in sent):
                return
            self._streams_changed.clear()
            await self._streams_changed.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _other_than(self, sent: _Shown | None) -> _Shown | None:
        """The newest list as soon as it differs from `sent`; None at the end."""
        while not self._closed:
            shown = self._shown
            if shown is not None and (sent is None or shown.devices != sent.devices):
                return shown
            await self._news.wait()
        return None

    def _count_stream(self, change: int) -> None:
        before, self.open_streams = self.open_streams, self.open_streams + change
        self._streams_changed.set()
        if self._on_read is None or self._closed:
            return
        if change > 0 and before:
            self._on_read(False)  # it began anew, and its end was not noticed yet
        if change > 0 or not self.open_streams:
            self._on_read(bool(self.open_streams))

    async def GetDevicePluginOptions(
        self,
        request: pb.Empty,
        context: grpc.aio.ServicerContext[pb.Empty, pb.DevicePluginOptions],
    ) -> pb.DevicePluginOptions:
        """Say which of the optional calls make sense."""
        points.reached(points.Point.OPTIONS_ANSWER)
        return self.options

    async def ListAndWatch(
        self,
        request: pb.Empty,
        context: grpc.aio.ServicerContext[pb.Empty, pb.ListAndWatchResponse],
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """Send the list, and again when it differs. gRPC asks for the next one when this one is on its way."""
        stream = object()
        self._count_stream(+1)
        try:
            sent: _Shown | None = None
            while (sent := await self._other_than(sent)) is not None:
                points.reached(points.Point.LIST_SENDING)
                yield sent.message
                points.reached(points.Point.LIST_SENT)
                self._sent[stream] = sent
                self._streams_changed.set()
        finally:
            self._sent.pop(stream, None)
            self._count_stream(-1)

    async def GetPreferredAllocation(
        self,
        request: pb.PreferredAllocationRequest,
        context: grpc.aio.ServicerContext[pb.PreferredAllocationRequest, pb.PreferredAllocationResponse],
    ) -> pb.PreferredAllocationResponse:
        """Pass on the plugin's wish.

        A plugin that fails here costs its wish only: an error would fail the pod, for mere advice
        (kubelet-contract A.6).
        """
        wishes = [await self._wish(asked) for asked in request.container_requests]
        points.reached(points.Point.PREFERRED_ANSWER)
        return pb.PreferredAllocationResponse(container_responses=wishes)

    async def _wish(
        self, asked: pb.ContainerPreferredAllocationRequest
    ) -> pb.ContainerPreferredAllocationResponse:
        must = list(asked.must_include_deviceIDs)
        chosen: Sequence[str] = must
        if self._preferring is not None:
            try:
                chosen = await self._preferring.preferred(
                    tuple(asked.available_deviceIDs), tuple(must), asked.allocation_size
                )
            except Exception:
                logger.exception("no preference could be given", extra={"resource": self._resource_name})
        return pb.ContainerPreferredAllocationResponse(deviceIDs=chosen)

    async def Allocate(
        self,
        request: pb.AllocateRequest,
        context: grpc.aio.ServicerContext[pb.AllocateRequest, pb.AllocateResponse],
    ) -> pb.AllocateResponse:
        """Give devices: one answer per container, or an error for all."""
        containers = [tuple(container.devices_ids) for container in request.container_requests]
        try:
            answers = await self._plugin.allocate(containers)
            if len(answers) != len(containers):
                raise RuntimeError(f"the plugin gave {len(answers)} answers for {len(containers)} containers")
            points.reached(points.Point.ALLOCATE_ANSWER)
            return pb.AllocateResponse(container_responses=[_container(answer) for answer in answers])
        except AllocationRefused as refused:
            await self._refuse(context, refused, _ids(containers))
        except Exception as error:
            logger.exception("allocation failed in the plugin", extra=self._extra(_ids(containers)))
            await context.abort(grpc.StatusCode.INTERNAL, self._failure("allocate", _ids(containers), error))

    async def PreStartContainer(
        self,
        request: pb.PreStartContainerRequest,
        context: grpc.aio.ServicerContext[pb.PreStartContainerRequest, pb.PreStartContainerResponse],
    ) -> pb.PreStartContainerResponse:
        """Let the plugin prepare devices for the start of a container."""
        points.reached(points.Point.PRE_START_ANSWER)
        if self._pre_starting is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this plugin needs no call before a start")
        ids = tuple(request.devices_ids)
        try:
            await self._pre_starting.pre_start(ids)
            return pb.PreStartContainerResponse()
        except AllocationRefused as refused:
            await self._refuse(context, refused, _ids([ids]))
        except Exception as error:
            logger.exception("call before a start failed in the plugin", extra=self._extra(_ids([ids])))
            await context.abort(grpc.StatusCode.INTERNAL, self._failure("prepare", _ids([ids]), error))

    async def _refuse(
        self,
        context: grpc.aio.ServicerContext[_Request, _Response],
        refused: AllocationRefused,
        ids: str,
    ) -> NoReturn:
        points.reached(points.Point.ALLOCATE_REFUSAL)
        logger.warning("allocation refused", extra=self._extra(ids) | {"error": str(refused)})
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, _cut(str(refused)))

    def _failure(self, verb: str, ids: str, error: Exception) -> str:
        kind = type(error).__name__
        return _cut(f"the device plugin of {self._resource_name} failed to {verb} {ids}: {kind}: {error}")

    def _extra(self, ids: str) -> dict[str, object]:
        return {"resource": self._resource_name, "device": ids}


def _cut(text: str) -> str:
    return text.encode()[:MESSAGE_LIMIT].decode(errors="ignore")


def _ids(containers: Sequence[Sequence[str]]) -> str:
    return ", ".join(one for ids in containers for one in ids) or "no devices"


def _device(device: Device) -> pb.Device:
    health = "Healthy" if device.healthy else "Unhealthy"
    if not device.numa_nodes:
        return pb.Device(ID=device.id, health=health)
    nodes = [pb.NUMANode(ID=node) for node in device.numa_nodes]
    return pb.Device(ID=device.id, health=health, topology=pb.TopologyInfo(nodes=nodes))


def _container(answer: ContainerResponse) -> pb.ContainerAllocateResponse:
    return pb.ContainerAllocateResponse(
        envs=answer.envs,
        mounts=[
            pb.Mount(container_path=m.container_path, host_path=m.host_path, read_only=m.read_only)
            for m in answer.mounts
        ],
        devices=[
            pb.DeviceSpec(container_path=d.container_path, host_path=d.host_path, permissions=d.permissions)
            for d in answer.devices
        ],
        annotations=answer.annotations,
        cdi_devices=[pb.CDIDevice(name=name) for name in answer.cdi_devices],
    )
