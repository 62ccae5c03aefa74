"""A kubelet's side of the device plugin API over real gRPC, as little as tests of the library need."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from dra_v1.api import pluginregistration_pb2 as reg
from dra_v1.api import pluginregistration_pb2_grpc as reg_grpc
from dra_v1.folders import FolderWatch, identity_of
from dra_v1.sockets import SocketServer, grpc_target

LIMIT = 20.0
"""Seconds that a test waits for what has to happen."""

T = TypeVar("T")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder)


async def until(folder: Path, holds: Callable[[], bool]) -> None:
    """Wait for a condition that changes with the names in a folder."""
    watch = FolderWatch(folder)
    try:
        async with asyncio.timeout(LIMIT):
            while not holds():
                await watch.wait(1)
    finally:
        watch.close()


@asynccontextmanager
async def dial(path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that shares nothing with earlier ones to the same path."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(grpc_target(path), options=options) as channel:
        yield channel


class Connection:
    """What the kubelet has of one registered plugin.

    Attributes:
        lists: every message of its ListAndWatch, None at the end.
    """

    def __init__(self, resource: str, endpoint: Path) -> None:
        self.resource = resource
        self.endpoint = endpoint
        self.lists: asyncio.Queue[dict[str, str] | None] = asyncio.Queue()
        self._channel = grpc.aio.insecure_channel(
            grpc_target(endpoint), options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.stub = pb_grpc.DevicePluginStub(self._channel)
        self.options = pb.DevicePluginOptions()
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self.options = await self.stub.GetDevicePluginOptions(pb.Empty(), timeout=LIMIT)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for message in self.stub.ListAndWatch(pb.Empty()):
                self.lists.put_nowait({device.ID: device.health for device in message.devices})
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.lists.put_nowait(None)

    async def next_list(self) -> dict[str, str] | None:
        async with asyncio.timeout(LIMIT):
            return await self.lists.get()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()


class KubeletPeer(pb_grpc.RegistrationServicer):
    """kubelet.sock with its Registration service, and the plugin watcher's questions.

    Attributes:
        refusal: if set, what Register and the watcher answer.
    """

    def __init__(self, root: Path) -> None:
        self.plugins_dir = root / "device-plugins"
        self.registry_dir = root / "plugins_registry"
        self.socket_dir = root / "plugins" / "p"
        self.refusal = ""
        self.attempts: asyncio.Queue[pb.RegisterRequest] = asyncio.Queue()
        self._registered: asyncio.Queue[Connection] = asyncio.Queue()
        self._connections: list[Connection] = []
        self._socket: SocketServer | None = None
        self.plugins_dir.mkdir()
        self.registry_dir.mkdir()

    async def start(self) -> None:
        """As the kubelet: delete every socket in the folder, then serve."""
        for path in self.plugins_dir.iterdir():
            if path.is_socket():
                path.unlink()
        self._socket = SocketServer(
            self.plugins_dir / "kubelet.sock",
            lambda server: pb_grpc.add_RegistrationServicer_to_server(self, server),
        )
        await self._socket.serve()

    async def stop(self) -> None:
        """The process ends: connections break, and kubelet.sock stays behind as a dead file in real life."""
        for connection in self._connections:
            await connection.close()
        self._connections.clear()
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.stop()

    async def Register(
        self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext[pb.RegisterRequest, pb.Empty]
    ) -> pb.Empty:
        """Dial back before the answer, as the kubelet does."""
        self.attempts.put_nowait(request)
        if self.refusal:
            await context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        await self._connect(request.resource_name, self.plugins_dir / request.endpoint)
        return pb.Empty()

    async def _connect(self, resource: str, endpoint: Path) -> None:
        connection = Connection(resource, endpoint)
        self._connections.append(connection)
        await connection.open()
        self._registered.put_nowait(connection)

    async def registered(self) -> Connection:
        """The next plugin that registers through kubelet.sock or was seen by the watcher."""
        async with asyncio.timeout(LIMIT):
            return await self._registered.get()

    async def see(self, path: Path) -> reg.PluginInfo:
        """What the plugin watcher does for a registration socket, once it is there."""
        await until(path.parent, lambda: identity_of(path) is not None)
        async with dial(path) as channel:
            stub = reg_grpc.RegistrationStub(channel)
            info = await stub.GetInfo(reg.InfoRequest(), timeout=LIMIT)
            if not self.refusal and info.type == "DevicePlugin":
                await self._connect(info.name, Path(info.endpoint))
            await stub.NotifyRegistrationStatus(
                reg.RegistrationStatus(plugin_registered=not self.refusal, error=self.refusal), timeout=LIMIT
            )
        return info


@asynccontextmanager
async def kubelet_at(root: Path) -> AsyncIterator[KubeletPeer]:
    """A running kubelet peer below `root`."""
    peer = KubeletPeer(root)
    await peer.start()
    try:
        yield peer
    finally:
        with suppress(asyncio.CancelledError):
            await peer.stop()
