"""Registration with the kubelet through its plugin watcher: for DRA drivers and for device plugins.

The plugin serves, the kubelet dials (kubelet-contract A.2 b). The socket is the registration: it appears, the
kubelet asks who is there; it goes, the plugin is deregistered; it survives a kubelet restart. Here it is also
put back when somebody else takes it away. Knows nothing of the plugin's own API.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from dra_v1 import points
from dra_v1.api import pluginregistration_pb2 as pb
from dra_v1.api import pluginregistration_pb2_grpc as pb_grpc
from dra_v1.folders import FolderWatch
from dra_v1.sockets import SocketError, SocketServer

logger = logging.getLogger(__name__)

PLUGINS_REGISTRY = Path("/var/lib/kubelet/plugins_registry")
"""Where the kubelet looks for registration sockets."""

RECHECK_SECONDS = 60.0
"""How often a socket is looked after where the kernel reported no change."""


REFUSED_S = 10.0
LONGEST_REFUSED_S = 120.0
"""How long a refusal is left standing, doubled each time; a kubelet that tries again by itself does so sooner."""


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """What the kubelet last said about a plugin.

    Attributes:
        registered: None until the kubelet has said anything.
        error: why not, in the kubelet's words or in ours if it could not even be asked.
        since: when it said so, in seconds since the epoch; two statuses that differ in this alone are equal.
    """

    registered: bool | None = None
    error: str = ""
    since: float = field(default_factory=time.time, compare=False)


class StatusBoard:
    """Holds a plugin's registration status and lets callers wait for a change."""

    def __init__(self, on_change: Callable[[RegistrationStatus], None] | None = None) -> None:
        self.status = RegistrationStatus()
        self._on_change = on_change
        self._changed = asyncio.Condition()

    async def set(self, status: RegistrationStatus) -> None:
        """Take over a status and wake everybody who waits."""
        if status == self.status:
            return
        self.status = status
        if self._on_change is not None:
            self._on_change(status)
        async with self._changed:
            self._changed.notify_all()

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin. Waits for ever: set a limit outside."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.status.registered is True)


class WatcherRegistration(pb_grpc.RegistrationServicer):
    """One plugin's registration socket.

    Attributes:
        socket_path: the socket, below the kubelet's plugins_registry; its name must not begin with a dot.
    """

    def __init__(
        self,
        *,
        type: Literal["DRAPlugin", "DevicePlugin"],
        name: str,
        endpoint: Path,
        versions: Sequence[str],
        socket_path: Path,
        on_status: Callable[[RegistrationStatus], None] | None = None,
    ) -> None:
        """Describe the plugin; nothing happens before `start`.

        Args:
            type: which of the kubelet's plugin handlers is meant.
            name: the DRA driver's name, or the extended resource's.
            endpoint: absolute path of the socket with the plugin's own API. It must be served already when
                this is started: the kubelet dials it at once.
            versions: in order of preference; the kubelet takes the first one that it knows.
            socket_path: where to serve; see `sockets.fitting_path` for names that may be long.
            on_status: called with every new status, from the event loop.
        """
        self.socket_path = socket_path
        self._info = pb.PluginInfo(
            type=type, name=name, endpoint=str(endpoint), supported_versions=list(versions)
        )
        self._board = StatusBoard(on_status)
        self._server = SocketServer(
            socket_path, lambda server: pb_grpc.add_RegistrationServicer_to_server(self, server)
        )
        self._keeper: asyncio.Task[None] | None = None
        self._watch: FolderWatch | None = None
        self._refused_at: float | None = None
        self._patience = REFUSED_S

    @property
    def status(self) -> RegistrationStatus:
        """What the kubelet last said."""
        return self._board.status

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin. Waits for ever: set a limit outside."""
        await self._board.wait_registered()

    async def start(self) -> None:
        """Serve, and keep the socket in its place.

        Raises:
            SocketError: it cannot be served; among them SocketInUse if somebody else does.
        """
        if self._keeper is not None:
            return
        await self._server.serve()
        self._keeper = asyncio.create_task(self._keep(), name=f"registration {self._info.name}")

    async def renew(self) -> None:
        """Make the kubelet register the plugin again: a socket made anew is a new registration.

        Raises:
            SocketError: it cannot be served now; it is tried again in the background all the same.
        """
        await self._server.stop()
        await self._board.set(RegistrationStatus(None, "waiting for the kubelet to see the socket"))
        await self._server.serve()

    async def stop(self) -> None:
        """Deregister: remove the socket, then stop serving."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self._server.stop()

    async def _keep(self) -> None:
        self._watch = watch = FolderWatch(self.socket_path.parent)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(SocketError),
            wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.1),
            before_sleep=self._say_not_served,
            sleep=watch.wait,
        )
        try:
            while True:
                if await retrying(self._server.serve):
                    logger.info("registration socket served again", extra=self._extra())
                await watch.wait(self._rest())
                await self._ask_again()
        finally:
            watch.close()

    def _rest(self) -> float:
        """Seconds until the socket has to be looked after, or a refusal has stood long enough."""
        if self._refused_at is None:
            return RECHECK_SECONDS
        return max(0.0, self._refused_at + self._patience - time.monotonic())

    async def _ask_again(self) -> None:
        """Make the socket anew some time after a refusal: kubelets before 1.37 do not try one twice."""
        if self._refused_at is None or self._rest() > 0:
            return
        self._refused_at = None
        self._patience = min(2 * self._patience, LONGEST_REFUSED_S)
        await self._server.stop()

    async def _say_not_served(self, state: RetryCallState) -> None:
        error = str(state.outcome.exception()) if state.outcome else ""
        await self._board.set(RegistrationStatus(False, error))
        if state.attempt_number == 1:
            logger.warning(
                "registration socket cannot be served, trying on", extra=self._extra() | {"error": error}
            )

    def _extra(self) -> dict[str, object]:
        return {"plugin": self._info.name, "path": str(self.socket_path)}

    async def GetInfo(
        self, request: pb.InfoRequest, context: grpc.aio.ServicerContext[pb.InfoRequest, pb.PluginInfo]
    ) -> pb.PluginInfo:
        """Say who this is. The kubelet waits one second: nothing is awaited here."""
        points.reached(points.Point.INFO_ANSWER)
        return self._info

    async def NotifyRegistrationStatus(
        self,
        request: pb.RegistrationStatus,
        context: grpc.aio.ServicerContext[pb.RegistrationStatus, pb.RegistrationStatusResponse],
    ) -> pb.RegistrationStatusResponse:
        """Take the kubelet's word."""
        self._refused_at = None if request.plugin_registered else time.monotonic()
        if self._watch is not None:
            self._watch.nudge()
        if request.plugin_registered:
            self._patience = REFUSED_S
            logger.info("registered with the kubelet", extra=self._extra())
        elif self.status != RegistrationStatus(False, request.error):
            # It tries for ever, and a cluster without DRA refuses for ever: the same words are said once.
            logger.error(
                "the kubelet refused the registration", extra=self._extra() | {"error": request.error}
            )
        await self._board.set(RegistrationStatus(request.plugin_registered, request.error))
        points.reached(points.Point.NOTIFY_ANSWER)
        return pb.RegistrationStatusResponse()
