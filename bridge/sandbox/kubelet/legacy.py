"""The `Registration` service on `kubelet.sock`, and the wiping of sockets beside it at kubelet start (A.2 a)."""

from __future__ import annotations

import contextlib
import os
import stat

import grpc

from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.devices import DeviceManager, RegistrationRefused
from bridge.sandbox.kubelet.endpoint import EndpointError
from bridge.sandbox.kubelet.sockets import serve
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api.deviceplugin_pb2_grpc import (
    RegistrationServicer,
    add_RegistrationServicer_to_server,
)


class LegacyRegistration(RegistrationServicer):
    """kubelet.sock."""

    def __init__(self, context: Context, manager: DeviceManager) -> None:
        self._context, self._manager = context, manager
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Remove every socket directly in the folder, then listen: what a starting kubelet does."""
        folder = self._context.paths.device_plugins
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            # A plugin may remove its own socket at the same moment.
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(path.lstat().st_mode):
                    path.unlink()
                    self._context.tell("SocketWiped", path.name)
        self._server = grpc.aio.server()
        add_RegistrationServicer_to_server(self, self._server)
        await serve(self._server, folder / "kubelet.sock", self._context.paths.base)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Register(
        self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext[pb.RegisterRequest, pb.Empty]
    ) -> pb.Empty:
        """Accept a plugin; it is dialled before this answers. `request.options` is ignored."""
        folder = self._context.paths.device_plugins
        socket = os.path.normpath(folder / request.endpoint)
        try:
            await self._manager.register(request.resource_name, socket, [request.version])
        except (RegistrationRefused, EndpointError) as error:
            self._context.tell("RegistrationRefused", request.resource_name, error=str(error))
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return pb.Empty()
