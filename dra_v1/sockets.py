"""Unix sockets of gRPC servers: where they may be, whose they are, and that they stay there.

Shared by the device plugin and the DRA library; knows neither protocol. A socket appears under its name only
when its server answers, replaces nobody who lives, and is removed only while it is still the file that this
process made.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import socket
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import grpc
from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from dra_v1 import points

logger = logging.getLogger(__name__)

SUN_PATH_LIMIT = 107
"""Bytes in the path of a unix socket: sun_path has 108, the last one is NUL."""

_HIDDEN_NAME_LENGTH = 9
_BLIND_POLL_SECONDS = 5.0
_CREDENTIALS = struct.Struct("3i")


class SocketError(Exception):
    """A socket cannot be served at its path; the message says why and what to do."""


class SocketPathTooLong(SocketError):
    """The path does not fit into a unix socket's address."""


class SocketFolderUnusable(SocketError):
    """The socket's folder is missing or not writable, or its name is taken by a file that is no socket."""


class SocketInUse(SocketError):
    """Somebody else who is alive serves at the path.

    Attributes:
        path: the socket.
        who: the process behind it, for people.
    """

    def __init__(self, path: Path, who: str) -> None:
        super().__init__(
            f"cannot serve at {path}: {who} serves there already; stop it, or give one of them another name"
        )
        self.path = path
        self.who = who


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Tells a file from its successor under the same name; an inode number alone may be used again."""

    device: int
    inode: int
    changed_ns: int


def identity_of(path: Path) -> FileIdentity | None:
    """Which file stands at `path` now; None if none can be seen there."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return FileIdentity(seen.st_dev, seen.st_ino, seen.st_ctime_ns)


def grpc_target(path: Path) -> str:
    """The gRPC address of a unix socket. gRPC reads it as a URI, so odd characters are escaped."""
    return "unix://" + quote(str(path))


def fits(path: Path) -> bool:
    """Whether a server can be bound at `path`, under the name itself and the hidden one it starts with."""
    folder = len(os.fsencode(path.parent)) + 1
    return folder + max(len(os.fsencode(path.name)), _HIDDEN_NAME_LENGTH) <= SUN_PATH_LIMIT


def fitting_path(folder: Path, stem: str, suffix: str = ".sock") -> Path:
    """A socket path in `folder` for the name `stem`, always the same one; hashed where that is too long.

    Raises:
        SocketPathTooLong: not even a hashed name fits, because the folder's own path is too long.
    """
    plain = folder / f"{stem}{suffix}"
    if fits(plain):
        return plain
    hashed = folder / f"{hashlib.sha256(stem.encode()).hexdigest()[:16]}{suffix}"
    if not fits(hashed):
        raise SocketPathTooLong(_too_long(hashed))
    return hashed


def listener_at(path: Path) -> str | None:
    """Who listens at a socket, for people: command and process number; None if nobody does any more.

    Connects and hangs up at once, which a gRPC server shrugs off. The kernel knows who called listen().
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:
            return f"a process that could not be asked for its name ({error.strerror})"
        pid, _, _ = _CREDENTIALS.unpack(
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    if pid == os.getpid():
        return "this process"
    if pid == 0:
        return "a process of another PID namespace"
    try:
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"process {pid}"
    return f"{command} (process {pid})"


def _too_long(path: Path) -> str:
    return (
        f"cannot serve at {path}: the path has {len(os.fsencode(path))} bytes, and a unix socket's may have "
        f"{SUN_PATH_LIMIT}; choose a shorter folder"
    )


def make_folder(folder: Path) -> None:
    """Make the folder of a socket of ours, and those above it.

    Raises:
        SocketFolderUnusable: with the reason and the way out.
    """
    points.reached(points.Point.SOCKET_FOLDER_MAKING)
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise SocketFolderUnusable(
            f"cannot make the folder {folder} for a socket: {error.strerror}; run as root, mount what is above it "
            "writable, and move away a file of its name"
        ) from error


def check_bindable(path: Path) -> None:
    """Check that a server may be bound at `path`. A dead socket there is no hindrance.

    Raises:
        SocketPathTooLong, SocketFolderUnusable, SocketInUse: with the reason and the way out.
    """
    if not fits(path):
        raise SocketPathTooLong(_too_long(path))
    folder = path.parent
    if not folder.is_dir():
        raise SocketFolderUnusable(
            f"cannot serve at {path}: the folder {folder} does not exist; it belongs to the kubelet's root "
            "(is the kubelet running with this root, and the folder mounted here?)"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SocketFolderUnusable(
            f"cannot serve at {path}: user {os.geteuid()} may not write to {folder}; "
            "run as root, or mount it writable"
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketFolderUnusable(f"cannot serve at {path}: there is a file that is no socket; move it away")
    if (who := listener_at(path)) is not None:
        raise SocketInUse(path, who)


class SocketServer:
    """gRPC services at one unix socket, which can be served again after somebody took the file away.

    The server is bound under a hidden name and renamed when it answers: nobody sees a socket that does not,
    the plugin watcher sees one appearance (it skips names with a leading dot), the mode is right from the
    start without touching the process's umask, and gRPC, which unlinks at its end whatever stands under the
    name it was given, never meets the name that a successor may have by then.

    Attributes:
        path: the socket.
    """

    def __init__(self, path: Path, add_services: Callable[[grpc.aio.Server], None]) -> None:
        self.path = path
        self._add_services = add_services
        self._server: grpc.aio.Server | None = None
        self._identity: FileIdentity | None = None
        self._lock = asyncio.Lock()

    def is_served(self) -> bool:
        """Whether the file at the path is the one this server made.

        The kernel keeps the inode while the socket is bound, so its number cannot have been used again.
        """
        mine, there = self._identity, identity_of(self.path)
        return (
            mine is not None
            and there is not None
            and (mine.device, mine.inode) == (there.device, there.inode)
        )

    async def serve(self) -> bool:
        """Serve at the path unless that is so already. True if it had to be done.

        Raises:
            SocketError: it cannot be done now; the message says why.
        """
        async with self._lock:
            if self.is_served():
                return False
            await self._stop_server(grace=None)
            check_bindable(self.path)
            await self._bind()
            return True

    async def _bind(self) -> None:
        server = grpc.aio.server()
        self._add_services(server)
        points.reached(points.Point.SOCKET_BINDING)
        hidden = self._hidden()
        try:
            server.add_insecure_port(grpc_target(hidden))
            hidden.chmod(0o600)
            await server.start()
            points.reached(points.Point.SOCKET_BOUND_ASIDE)
            hidden.rename(self.path)
            points.reached(points.Point.SOCKET_IN_PLACE)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            with suppress(FileNotFoundError):
                hidden.unlink()
            raise SocketError(f"cannot serve at {self.path}: {error}") from error
        self._server, self._identity = server, identity_of(self.path)

    def _hidden(self) -> Path:
        """A name to bind under that was never used. Those of servers that died before their socket was renamed are
        removed: the first half of the name is this path's own."""
        mark = "." + hashlib.sha256(os.fsencode(self.path.name)).hexdigest()[:4]
        for left in self.path.parent.glob(mark + "[0-9a-f]" * 4):
            if left.is_socket() and listener_at(left) is None:
                left.unlink(missing_ok=True)
        return self.path.with_name(mark + secrets.token_hex(2))

    def remove(self) -> None:
        """Take the socket's name away, if the file is still ours. Connections stay."""
        if self.is_served():
            points.reached(points.Point.SOCKET_REMOVING)
            with suppress(FileNotFoundError):
                self.path.unlink()
            points.reached(points.Point.SOCKET_REMOVED)
        self._identity = None

    async def stop(self, grace: float | None = None) -> None:
        """Remove the socket, refuse new calls, and give calls under way `grace` seconds."""
        async with self._lock:
            self.remove()
            await self._stop_server(grace)

    async def _stop_server(self, grace: float | None) -> None:
        server, self._server = self._server, None
        self._identity = None
        if server is not None:
            await server.stop(grace)


class FolderWatch:
    """Wakes its owner when a name in a folder appears, disappears or is replaced, and every so often anyway.

    A wake-up says only "look again". The folder may be missing, or be removed and made again.

    Attributes:
        folder: the folder, itself only, not what is below.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        _observed.add(self.folder, self._wake)

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody is left to be woken
            self._loop.call_soon_threadsafe(self._changed.set)

    def nudge(self) -> None:
        """Make `wait` return now (from the event loop's thread)."""
        self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Return after the next change, or after `seconds`; sooner where the kernel cannot tell of any."""
        if not _observed.arm(self.folder):
            seconds = min(seconds, _BLIND_POLL_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        _observed.arm(self.folder)

    def close(self) -> None:
        """Stop watching."""
        _observed.remove(self.folder, self._wake)


class _Handler(FileSystemEventHandler):
    """Passes every change of one folder on to those who wait for it."""

    def __init__(self) -> None:
        self.listeners: set[Callable[[], None]] = set()
        self.watch: ObservedWatch | None = None
        self.identity: tuple[int, int] | None = None

    def on_any_event(self, event: FileSystemEvent) -> None:
        for wake in tuple(self.listeners):
            wake()


class _ObservedFolders:
    """The one watchdog observer of this process, alive while a folder is watched.

    One observer for all folders, since each one costs threads that a daemon on every node pays for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._observer: BaseObserver | None = None
        self._handlers: dict[Path, _Handler] = {}

    def add(self, folder: Path, wake: Callable[[], None]) -> None:
        with self._lock:
            self._handlers.setdefault(folder, _Handler()).listeners.add(wake)
        self.arm(folder)

    def arm(self, folder: Path) -> bool:
        """Make sure that the kernel watches the folder that stands there now. False if it cannot."""
        with self._lock:
            handler = self._handlers.get(folder)
            if handler is None:
                return False
            now = identity_of(folder)
            identity = (now.device, now.inode) if now else None
            if identity != handler.identity or (identity is not None and handler.watch is None):
                self._disarm(handler)
                if identity is not None:
                    self._schedule(folder, handler, identity)
            return handler.watch is not None

    def _schedule(self, folder: Path, handler: _Handler, identity: tuple[int, int]) -> None:
        try:
            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            handler.watch = self._observer.schedule(
                handler, str(folder), event_filter=[FileCreatedEvent, FileDeletedEvent, FileMovedEvent]
            )
            handler.identity = identity
        except OSError as error:
            logger.warning(
                "folder cannot be watched, it is polled instead",
                extra={"path": str(folder), "error": str(error)},
            )

    def _disarm(self, handler: _Handler) -> None:
        if handler.watch is not None and self._observer is not None:
            self._observer.unschedule(handler.watch)
        handler.watch = handler.identity = None

    def remove(self, folder: Path, wake: Callable[[], None]) -> None:
        with self._lock:
            handler = self._handlers.get(folder)
            if handler is None:
                return
            handler.listeners.discard(wake)
            if handler.listeners:
                return
            self._disarm(handler)
            del self._handlers[folder]
            if not self._handlers and self._observer is not None:
                self._observer.stop()
                self._observer.join()
                self._observer = None


_observed = _ObservedFolders()
