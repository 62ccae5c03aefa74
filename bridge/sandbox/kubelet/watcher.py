"""The plugin watcher: sockets that appear under `plugins_registry` are dialled and registered (A.2 b).

What lies in the folder is the desired state; a reconciler brings the registrations there, with backoff per socket.
"""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from bridge.sandbox.kubelet.context import Context, dial, rpc_text
from bridge.sandbox.kubelet.endpoint import DIAL_SECONDS
from bridge.sandbox.tasks import spawn
from dra_v1.api import pluginregistration_pb2 as pb
from dra_v1.api.pluginregistration_pb2_grpc import RegistrationStub

if TYPE_CHECKING:
    from dra_v1.api.pluginregistration_pb2_grpc import RegistrationAsyncStub


GET_INFO_SECONDS = 1.0
NOTIFY_SECONDS = 5.0

Stamp = tuple[int, int]


class Handler(Protocol):
    """What takes plugins of one type."""

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Check a plugin; raises PluginRefused."""

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        """Take a plugin; raises PluginRefused."""

    async def deregister(self, name: str, endpoint: str) -> None:
        """Let a plugin go."""


class PluginRefused(Exception):
    """A plugin that its handler does not take."""


@dataclass(frozen=True, slots=True)
class _Registered:
    stamp: Stamp
    handler: Handler
    name: str
    endpoint: str


@dataclass(slots=True)
class _Backoff:
    delay: float
    until: float


class _Wake(FileSystemEventHandler):
    def __init__(self, loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
        self._loop, self._wake = loop, wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in ("created", "deleted", "moved"):
            self._loop.call_soon_threadsafe(self._wake.set)


class PluginWatcher:
    """Watches the folder and keeps registrations in step with it."""

    def __init__(self, context: Context, handlers: dict[str, Handler]) -> None:
        self._context, self._handlers = context, handlers
        self._registered: dict[Path, _Registered] = {}
        self._backoff: dict[Path, _Backoff] = {}
        self._observer: BaseObserver | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch; sockets that are there are registered as if they had just appeared."""
        folder = self._context.paths.registry
        folder.mkdir(parents=True, exist_ok=True)
        wake = asyncio.Event()
        wake.set()
        # Made only here: one that is never started keeps an inotify instance for ever.
        observer = self._observer = Observer()
        observer.schedule(_Wake(asyncio.get_running_loop(), wake), str(folder), recursive=True)
        await asyncio.to_thread(observer.start)
        self._task = spawn(self._context.observe, "plugin watcher", self._run(wake))

    async def stop(self) -> None:
        """Stop watching; plugins are not told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._observer is not None:
            self._observer.stop()
            await asyncio.to_thread(self._observer.join)

    async def _run(self, wake: asyncio.Event) -> None:
        while True:
            try:
                await asyncio.wait_for(wake.wait(), self._next())
            except TimeoutError:
                self._context.tell("WatcherRetries", str(self._context.paths.registry))
            wake.clear()
            await self._reconcile()

    def _next(self) -> float | None:
        """Return the seconds until the next retry is due; None to wait for an event."""
        if not self._backoff:
            return None
        return max(0.0, min(b.until for b in self._backoff.values()) - time.monotonic())

    def _sockets(self) -> dict[Path, Stamp]:
        found: dict[Path, Stamp] = {}
        for path in self._context.paths.registry.rglob("*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISSOCK(status.st_mode) and not path.name.startswith("."):
                found[path] = (status.st_ino, status.st_mtime_ns)
        return found

    async def _reconcile(self) -> None:
        there = self._sockets()
        for path, registered in list(self._registered.items()):
            if there.get(path) != registered.stamp:
                del self._registered[path]
                await registered.handler.deregister(registered.name, registered.endpoint)
                self._context.tell("PluginDeregistered", registered.name, socket=path.name)
        for path in set(self._backoff) - set(there):
            del self._backoff[path]
        now = time.monotonic()
        due = [p for p in there if p not in self._registered and self._due(p, now)]
        await asyncio.gather(*(self._register(path, there[path]) for path in due))

    def _due(self, path: Path, now: float) -> bool:
        backoff = self._backoff.get(path)
        return backoff is None or backoff.until <= now

    async def _register(self, path: Path, stamp: Stamp) -> None:
        channel = dial(str(path))
        try:
            await asyncio.wait_for(channel.channel_ready(), DIAL_SECONDS)
            stub: RegistrationAsyncStub = RegistrationStub(channel)
            registered = await self._introduce(path, stamp, stub)
            self._registered[path] = registered
            self._backoff.pop(path, None)
            self._context.tell(
                "WatcherRegistered", registered.name, socket=path.name, endpoint=registered.endpoint
            )
        except (PluginRefused, TimeoutError) as error:
            self._later(path, str(error) or "context deadline exceeded")
        except grpc.aio.AioRpcError as error:
            self._later(path, rpc_text(error))
        finally:
            await channel.close()

    async def _introduce(self, path: Path, stamp: Stamp, stub: RegistrationAsyncStub) -> _Registered:
        info = await stub.GetInfo(pb.InfoRequest(), timeout=GET_INFO_SECONDS)
        endpoint, versions = info.endpoint or str(path), list(info.supported_versions)
        handler = self._handlers.get(info.type)
        if handler is None:
            await self._refuse(stub, f"no handler registered for plugin type: {info.type} at socket {path}")
            raise PluginRefused(f"no handler registered for plugin type: {info.type} at socket {path}")
        try:
            handler.validate(info.name, endpoint, versions)
        except PluginRefused as error:
            await self._refuse(stub, f"plugin validation failed with err: {error}")
            raise
        try:
            await handler.register(info.name, endpoint, versions)
        except PluginRefused as error:
            await self._refuse(stub, f"plugin registration failed with err: {error}")
            if not self._context.profile.retries_registration:
                self._context.tell("RegistrationFailed", path.name, error=str(error))
                return _Registered(stamp, handler, info.name, endpoint)
            raise
        try:
            await stub.NotifyRegistrationStatus(
                pb.RegistrationStatus(plugin_registered=True), timeout=NOTIFY_SECONDS
            )
        except grpc.aio.AioRpcError:
            await handler.deregister(info.name, endpoint)
            raise
        return _Registered(stamp, handler, info.name, endpoint)

    async def _refuse(self, stub: RegistrationAsyncStub, why: str) -> None:
        status = pb.RegistrationStatus(plugin_registered=False, error=f"RegisterPlugin error -- {why}")
        await stub.NotifyRegistrationStatus(status, timeout=NOTIFY_SECONDS)

    def _later(self, path: Path, why: str) -> None:
        times = self._context.timings
        last = self._backoff.get(path)
        delay = min(last.delay * 2, times.watcher_retry_most) if last else times.watcher_retry
        self._backoff[path] = _Backoff(delay, time.monotonic() + delay)
        self._context.tell("RegistrationFailed", path.name, error=why)
