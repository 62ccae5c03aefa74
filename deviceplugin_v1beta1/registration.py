"""The two routes by which the kubelet learns of a device plugin, each one kept open through kubelet restarts.

`WatcherRoute`: a registration socket in plugins_registry, which the kubelet finds. `LegacyRoute`: a call of the
kubelet's own Registration service (kubelet-contract A.2). Both look after the plugin's endpoint too, since a new
endpoint needs a new registration: the kubelet never dials twice (A.3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential_jitter

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from dra_v1 import points
from dra_v1.folders import FileIdentity, FolderWatch, identity_of
from dra_v1.registration import RECHECK_SECONDS, RegistrationStatus, StatusBoard, WatcherRegistration
from dra_v1.sockets import SocketError, grpc_target

logger = logging.getLogger(__name__)

VERSION = "v1beta1"

REGISTER_TIMEOUT = 20.0
"""Seconds for one Register: before it answers, the kubelet takes up to 10 to dial back, and then asks once."""

Serve = Callable[[], Awaitable[bool]]
"""Makes sure that the plugin's endpoint is served; True if it had to be done anew. Raises SocketError."""


class RegistrationFailed(Exception):
    """The kubelet cannot be asked now, or has refused."""


class Route(Protocol):
    """How a served plugin becomes known to the kubelet, and stays so."""

    @property
    def status(self) -> RegistrationStatus:
        """What the kubelet last said."""
        ...

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin."""
        ...

    async def start(self) -> None:
        """Begin. The endpoint must be served."""
        ...

    async def renew(self) -> None:
        """Make the kubelet register the plugin once more."""
        ...

    async def stop(self) -> None:
        """Take the registration back as far as the route can."""
        ...


class WatcherRoute:
    """The plugin watcher: the endpoint may live anywhere, and a kubelet restart needs nothing from us."""

    def __init__(self, registration: WatcherRegistration, endpoint: Path, serve: Serve) -> None:
        self._registration = registration
        self._endpoint = endpoint
        self._serve = serve
        self._keeper: asyncio.Task[None] | None = None

    @property
    def status(self) -> RegistrationStatus:
        """What the kubelet last said."""
        return self._registration.status

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin."""
        await self._registration.wait_registered()

    async def start(self) -> None:
        """Show the registration socket. Raises SocketError if it cannot be served."""
        await self._registration.start()
        self._keeper = asyncio.create_task(self._keep_endpoint(), name=f"endpoint {self._endpoint}")

    async def renew(self) -> None:
        """Show the registration socket anew. A failure is logged; the registration keeps trying by itself."""
        try:
            await self._registration.renew()
        except SocketError as error:
            logger.warning(
                "registration could not be renewed, trying on",
                extra={"path": str(self._registration.socket_path), "error": str(error)},
            )

    async def stop(self) -> None:
        """Remove the registration socket."""
        keeper, self._keeper = self._keeper, None
        await _end(keeper)
        await self._registration.stop()

    async def _keep_endpoint(self) -> None:
        watch = FolderWatch(self._endpoint.parent)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(SocketError),
            wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.1),
            before_sleep=self._say_not_served,
            sleep=watch.wait,
        )
        try:
            while True:
                if await retrying(self._serve):
                    logger.info("endpoint served again", extra={"path": str(self._endpoint)})
                    await self.renew()
                await watch.wait(RECHECK_SECONDS)
        finally:
            watch.close()

    def _say_not_served(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            logger.warning(
                "endpoint cannot be served, trying on",
                extra={"path": str(self._endpoint), "error": _error_of(state)},
            )


class LegacyRoute:
    """The kubelet's Registration service on kubelet.sock.

    A starting kubelet deletes every socket in its folder and makes kubelet.sock anew, so both are watched: ours is
    served again, and the new kubelet is told, again and again until it has answered (H13).
    """

    def __init__(
        self,
        resource_name: str,
        endpoint: Path,
        options: pb.DevicePluginOptions,
        serve: Serve,
        on_status: Callable[[RegistrationStatus], None] | None = None,
    ) -> None:
        self._request = pb.RegisterRequest(
            version=VERSION, endpoint=endpoint.name, resource_name=resource_name, options=options
        )
        self._kubelet = endpoint.parent / "kubelet.sock"
        self._serve = serve
        self._board = StatusBoard(on_status)
        self._registered_with: FileIdentity | None = None
        self._watch: FolderWatch | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def status(self) -> RegistrationStatus:
        """What the kubelet last said."""
        return self._board.status

    async def wait_registered(self) -> None:
        """Return as soon as the kubelet has registered the plugin."""
        await self._board.wait_registered()

    async def start(self) -> None:
        """Call the kubelet from the background until it has answered."""
        self._watch = FolderWatch(self._kubelet.parent)
        self._keeper = asyncio.create_task(
            self._keep(self._watch), name=f"registration {self._request.resource_name}"
        )

    async def renew(self) -> None:
        """Call the kubelet once more."""
        self._registered_with = None
        await self._board.set(RegistrationStatus(None, "registering again"))
        if self._watch is not None:
            self._watch.nudge()

    async def stop(self) -> None:
        """Stop calling. This route has no deregistration: the end of the stream is the news."""
        keeper, self._keeper = self._keeper, None
        await _end(keeper)
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    async def _keep(self, watch: FolderWatch) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((SocketError, RegistrationFailed)),
            wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.1),
            before_sleep=self._say_failed,
            sleep=self._pause,
        )
        while True:
            await retrying(self._attempt)
            await watch.wait(RECHECK_SECONDS)

    async def _attempt(self) -> None:
        """Bring both ends up to date: our socket in its place, and the kubelet that is there now told of it."""
        if await self._serve():
            self._registered_with = None
        kubelet = identity_of(self._kubelet)
        if kubelet is not None and kubelet == self._registered_with:
            return
        await self._register()
        self._registered_with = kubelet
        logger.info("registered with the kubelet", extra=self._extra())
        await self._board.set(RegistrationStatus(True))

    async def _register(self) -> None:
        points.reached(points.Point.REGISTER_CALLING)
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        try:
            async with grpc.aio.insecure_channel(grpc_target(self._kubelet), options=options) as channel:
                await pb_grpc.RegistrationStub(channel).Register(self._request, timeout=REGISTER_TIMEOUT)
            points.reached(points.Point.REGISTER_CALLED)
        except grpc.aio.AioRpcError as error:
            raise RegistrationFailed(
                f"cannot register {self._request.resource_name} at {self._kubelet}: "
                f"{error.code().name}: {error.details()}"
            ) from error

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until another kubelet is there; the folder's other news are none of our business."""
        watch = self._watch
        tried, until = identity_of(self._kubelet), time.monotonic() + seconds
        while watch is not None and (left := until - time.monotonic()) > 0:
            await watch.wait(left)
            if identity_of(self._kubelet) not in (tried, None):
                return

    async def _say_failed(self, state: RetryCallState) -> None:
        error = _error_of(state)
        await self._board.set(RegistrationStatus(False, error))
        if state.attempt_number == 1:
            logger.warning("registration failed, trying on", extra=self._extra() | {"error": error})

    def _extra(self) -> dict[str, object]:
        return {"resource": self._request.resource_name, "path": str(self._kubelet)}


def _error_of(state: RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome is not None else ""


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
