"""One device plugin as the kubelet sees it: socket, service, device list and registration, from start to stop.

Order: served, first list known, registered; at the end registration first, then the streams, then the socket. What
the author's code does wrong surfaces: the server stops, so that the kubelet sees no list that has frozen.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from deviceplugin_v1beta1.names import check_resource_name, file_stem
from deviceplugin_v1beta1.plugin import Device, DevicePlugin, DevicesEnded
from deviceplugin_v1beta1.registration import VERSION, LegacyRoute, Route, WatcherRoute
from deviceplugin_v1beta1.service import DevicePluginService
from dra_v1.registration import PLUGINS_REGISTRY, RegistrationStatus, WatcherRegistration
from dra_v1.sockets import SocketServer, check_bindable, fitting_path, make_folder

logger = logging.getLogger(__name__)

PLUGINS_DIR = Path("/var/lib/kubelet/device-plugins")
"""Where the kubelet has kubelet.sock, and where a legacy plugin's socket has to be."""

SOCKET_DIR = Path("/var/lib/kubelet/plugins")
"""Where a plugin's own folder is made if the watcher route is given none."""

STOP_GRACE = 5.0
"""Seconds that calls under way get at the end."""

FORGOTTEN_SECONDS = 5.0
"""A registered plugin whose list nobody reads for so long registers again; the kubelet would never come back."""

FORGOTTEN_LIMIT = 60.0
_OLD_CLIENT_SECONDS = 0.3


class DevicePluginServer:
    """Serves one plugin for one resource name.

    Attributes:
        resource_name: the extended resource.
        socket_path: the plugin's endpoint.
    """

    def __init__(
        self,
        plugin: DevicePlugin,
        resource_name: str,
        *,
        registration: Literal["watcher", "legacy"] = "watcher",
        plugins_dir: Path = PLUGINS_DIR,
        registry_dir: Path = PLUGINS_REGISTRY,
        socket_dir: Path | None = None,
        on_status: Callable[[RegistrationStatus], None] | None = None,
        on_read: Callable[[bool], None] | None = None,
    ) -> None:
        """Put the parts together, inside a running event loop; nothing happens before `start`.

        Args:
            plugin: the author's part.
            resource_name: an extended resource, "example.com/name".
            registration: "watcher" survives kubelet restarts by itself; "legacy" is what most plugins use.
            plugins_dir: the kubelet's device-plugins (legacy).
            registry_dir: the kubelet's plugins_registry (watcher).
            socket_dir: where the endpoint is (watcher); made if missing. Default: a folder of the resource's name
                below the kubelet's plugins.
            on_status: called with every new registration status, from the event loop.
            on_read: told whether the kubelet reads the device list, at each change: it stops when it ends, and when
                it was given another plugin under the name.

        Raises:
            ResourceNameError: the kubelet would refuse the name.
            SocketPathTooLong: a folder's path leaves no room for a socket's name.
        """
        check_resource_name(resource_name)
        stem = file_stem(resource_name)
        self.resource_name = resource_name
        self._plugin = plugin
        self._service = DevicePluginService(plugin, resource_name, on_read)
        self._own_folder = registration == "watcher"
        folder = (socket_dir or SOCKET_DIR / stem) if self._own_folder else plugins_dir
        self.socket_path = fitting_path(folder, stem)
        self._socket = SocketServer(self.socket_path, self._add_service)
        self._registration_path: Path | None = None
        self._route = (
            self._watcher_route(fitting_path(registry_dir, stem, "-reg.sock"), on_status)
            if registration == "watcher"
            else LegacyRoute(
                resource_name, self.socket_path, self._service.options, self._serve, on_status=on_status
            )
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _watcher_route(self, path: Path, on_status: Callable[[RegistrationStatus], None] | None) -> Route:
        self._registration_path = path
        registration = WatcherRegistration(
            type="DevicePlugin",
            name=self.resource_name,
            endpoint=self.socket_path,
            versions=[VERSION],
            socket_path=path,
            on_status=on_status,
        )
        return WatcherRoute(registration, self.socket_path, self._serve)

    def _add_service(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_DevicePluginServicer_to_server(self._service, server)

    @property
    def status(self) -> RegistrationStatus:
        """What the kubelet last said of the registration, or why it could not be asked."""
        return self._route.status

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin. Waits for ever: set a limit outside."""
        await self._route.wait_registered()

    async def start(self) -> None:
        """Serve; then, in the background, register as soon as the plugin has given its first list.

        Raises:
            SocketError: a socket cannot be served, among them SocketInUse if somebody else does.
        """
        if self._own_folder:
            make_folder(self.socket_path.parent)
        if self._registration_path is not None:
            check_bindable(self._registration_path)
        await self._socket.serve()
        for work in (self._feed(), self._register()):
            task = asyncio.create_task(work, name=f"device plugin {self.resource_name}")
            task.add_done_callback(self._fail)
            self._tasks.append(task)

    async def wait(self) -> None:
        """Return when the server has been stopped.

        Raises:
            DevicesEnded: the plugin's devices() came to its end.
            Exception: whatever devices() raised, DeviceListError for a list that cannot be shown. The server has
                stopped by itself then.
        """
        await asyncio.shield(self._ended)

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, and stop: all that a driver's main function has to do.

        Raises:
            Exception: as `start` and `wait` do.
        """
        loop, signals = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._end)
        try:
            async with self:
                await self.wait()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def stop(self) -> None:
        """Deregister, end the streams, let calls under way finish, and remove the socket."""
        closing, self._closing = self._closing, None
        await (closing or self._close())
        self._end()

    async def sent(self, devices: Callable[[], Collection[Device]]) -> None:
        """Return when the kubelet has been sent what `devices` gives; at once while it reads no list."""
        await self._service.sent(devices)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self) -> bool:
        read = self._service.open_streams > 0
        newly = await self._socket.serve()
        if newly and read:
            # Older kubelets mark the resource unhealthy when the old connection's end reaches them after the new
            # registration (kubelet-contract A.2): let that end arrive first.
            await asyncio.sleep(_OLD_CLIENT_SECONDS)
        return newly

    async def _feed(self) -> None:
        async for devices in self._plugin.devices():
            self._service.show(devices)
        raise DevicesEnded(
            f"devices() of the plugin for {self.resource_name} came to its end; it must wait for changes instead"
        )

    async def _register(self) -> None:
        await self._service.shown()
        await self._route.start()
        pause = FORGOTTEN_SECONDS
        while True:
            await self._route.wait_registered()
            begun = time.monotonic()
            try:
                async with asyncio.timeout(pause):
                    await self._service.wait_streams(open=True)
            except TimeoutError:
                logger.warning("nobody reads the device list, registering again", extra=self._extra())
                pause = min(2 * pause, FORGOTTEN_LIMIT)
                await self._route.renew()
                continue
            await self._service.wait_streams(open=False)
            if time.monotonic() - begun > FORGOTTEN_LIMIT:
                pause = FORGOTTEN_SECONDS

    def _fail(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None or self._ended.done():
            return
        logger.error("device plugin stops", extra=self._extra() | {"error": str(error)}, exc_info=error)
        self._ended.set_exception(error)
        self._ended.exception()  # it has been logged; whoever waits is told, and asyncio need not complain
        self._closing = asyncio.create_task(self._close(), name=f"close {self.resource_name}")

    async def _close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._route.stop()
        self._service.close()
        await self._socket.stop(STOP_GRACE)

    def _extra(self) -> dict[str, object]:
        return {"resource": self.resource_name, "path": str(self.socket_path)}
