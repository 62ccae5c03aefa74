"""Unix sockets of gRPC servers: where they may be, whose they are, and that they stay there.

Shared by the device plugin and the DRA library; knows neither protocol. A socket appears under its name only
when its server answers, replaces nobody who lives, and is removed only while it is still the file that this
process made.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import grpc

from dra_v1 import points
from dra_v1.folders import FileIdentity, identity_of

SUN_PATH_LIMIT = 107
"""Bytes in the path of a unix socket: sun_path has 108, the last one is NUL."""

_HIDDEN_NAME_LENGTH = 9
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


@contextmanager
def taking(path: Path) -> Iterator[Path]:
    """A hidden name to bind a server under, which takes `path` when the block is over and the server answers.

    Nobody sees a socket that does not answer, the plugin watcher sees one appearing (it skips names with a leading
    dot), the mode is the owner's alone without touching the process's umask, and gRPC, which unlinks at its end
    whatever stands under the name it was given, never meets the name that a successor may have by then.
    """
    hidden = _hidden(path)
    try:
        yield hidden
        points.reached(points.Point.SOCKET_BOUND_ASIDE)
        hidden.chmod(0o600)
        hidden.rename(path)
        points.reached(points.Point.SOCKET_IN_PLACE)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def _hidden(path: Path) -> Path:
    """A name to bind under that was never used. Those of servers that died before their socket was renamed are
    removed: the first half of the name is this path's own."""
    mark = "." + hashlib.sha256(os.fsencode(path.name)).hexdigest()[:4]
    for left in path.parent.glob(mark + "[0-9a-f]" * 4):
        if left.is_socket() and listener_at(left) is None:
            left.unlink(missing_ok=True)
    return path.with_name(mark + secrets.token_hex(2))


class SocketServer:
    """gRPC services at one unix socket, which can be served again after somebody took the file away.

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
        try:
            with taking(self.path) as hidden:
                server.add_insecure_port(grpc_target(hidden))
                await server.start()
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            raise SocketError(f"cannot serve at {self.path}: {error}") from error
        self._server, self._identity = server, identity_of(self.path)

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
