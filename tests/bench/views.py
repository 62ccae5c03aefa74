"""What both planes advertise, as clients of theirs see it: a ListAndWatch stream and a watch of the slices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from dra_v1.kube import KubeApi
from tests.bench.stage import LIMIT_S, SLICES, Daemon, Stage

_BIG = (("grpc.max_receive_message_length", 64 << 20),)

Names = frozenset[str]


class View:
    """The devices that one plane shows.

    Attributes:
        names: of those that a pod may get.
        at: when it was seen (`time.perf_counter`).
    """

    def __init__(self) -> None:
        self.names: Names = frozenset()
        self.at = 0.0
        self._changed = asyncio.Event()

    def show(self, names: Names, at: float) -> None:
        """Take a new list."""
        self.names, self.at = names, at
        self._changed.set()

    async def wait(self, enough: Callable[[Names], bool]) -> float:
        """Wait for a list that is enough; when it came."""
        while not enough(self.names):
            self._changed.clear()
            await self._changed.wait()
        return self.at


class Views:
    """Both planes of a daemon."""

    def __init__(self, stage: Stage, daemon: Daemon, api: KubeApi) -> None:
        self.listed = View()
        self.stored = View()
        self._stage = stage
        self._daemon = daemon
        self._api = api
        self._slices: dict[str, Names] = {}

    async def both(self, enough: Callable[[Names], bool]) -> float:
        """Wait until both planes show what is enough; when the later one did."""
        async with asyncio.timeout(LIMIT_S):
            return max(await self.listed.wait(enough), await self.stored.wait(enough))

    async def follow_list(self) -> None:
        """Stream ListAndWatch, from the moment that it is served."""
        await self._stage.until(lambda: self._daemon.device_plugin_socket, "ListAndWatch to be served", 0.002)
        socket = self._daemon.device_plugin_socket
        async with grpc.aio.insecure_channel(f"unix:{socket}", options=_BIG) as channel:
            stub: pb_grpc.DevicePluginAsyncStub = pb_grpc.DevicePluginStub(channel)
            async for message in stub.ListAndWatch(pb.Empty(), wait_for_ready=True):
                at = time.perf_counter()
                self.listed.show(frozenset(d.ID for d in message.devices if d.health == "Healthy"), at)

    async def follow_slices(self) -> None:
        """Watch the driver's slices; those that are there already come first."""
        params = {"fieldSelector": f"spec.driver={self._daemon.driver}"}
        async for event in self._api.watch(SLICES, params=params):
            at = time.perf_counter()
            if event.type == "BOOKMARK":
                continue
            names = frozenset(device["name"] for device in event.object["spec"].get("devices") or ())
            self._slices[event.object["metadata"]["name"]] = names if event.type != "DELETED" else frozenset()
            self.stored.show(frozenset[str]().union(*self._slices.values()), at)


@contextlib.asynccontextmanager
async def views(stage: Stage, daemon: Daemon) -> AsyncIterator[Views]:
    """Both views while the context lasts; if one breaks, so does what is done in it."""
    async with stage.admin() as api, asyncio.TaskGroup() as group:
        made = Views(stage, daemon, api)
        tasks = [group.create_task(made.follow_list()), group.create_task(made.follow_slices())]
        yield made
        for task in tasks:
            task.cancel()
