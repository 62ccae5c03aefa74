"""A disk that loses its power: what SQLite wrote, and what of it was on the disk at each sync.

Sits between SQLite and the system by the table of functions that SQLite opens its files with, so that the code under
test is as it is shipped.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OPEN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_METHODS = 19
_X_WRITE, _X_TRUNCATE, _X_SYNC = 3, 4, 5
"""Places in SQLite's table of a file's functions."""


_KEPT: list[Any] = []
"""What open files call; a file may be open for longer than anybody here knows."""

FULL, WRITE_ERROR = 13, 778
"""SQLITE_FULL; SQLITE_IOERR_WRITE, as where a file system was remounted read-only."""


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_int),
        ("size", ctypes.c_int),
        ("longest", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Moment:
    """The disk between two syncs.

    Attributes:
        synced: content of each file, by name, that a power loss cannot take.
        log: what was written to the write-ahead log since it was synced, until the next sync came, or until the end:
            (offset, bytes).
        writes: the same of the database itself; a power loss leaves any of it.
    """

    synced: dict[str, bytes]
    log: tuple[tuple[int, bytes], ...]
    writes: tuple[tuple[int, bytes], ...]

    @property
    def written(self) -> int:
        """How many bytes of the log were written since it was synced."""
        return sum(len(content) for _, content in self.log)

    def wal(self, reached: int) -> bytes:
        """The log where the first so many of the bytes written since have reached the disk."""
        found = bytearray(self.synced.get("ledger.db-wal", b""))
        for offset, content in self.log:
            put(found, offset, content[: max(0, reached)])
            reached -= len(content)
        return bytes(found)


@dataclass
class Disk:
    """What was written below one folder.

    Attributes:
        moments: one for each sync, the last one as of now.
        fails: what SQLite is told instead of writing or syncing, one of its result codes; 0 for nothing.
    """

    folder: Path
    current: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    fails: int = 0
    _writes: list[tuple[int, bytes]] = field(default_factory=list)
    _log: list[tuple[int, bytes]] = field(default_factory=list)

    def opened(self, name: str) -> None:
        path = self.folder / name
        content = path.read_bytes() if path.exists() else b""
        self.current[name] = bytearray(content)
        # What was there before is on the disk: it was synced before it got its name.
        self.synced.setdefault(name, content)

    def wrote(self, name: str, offset: int, content: bytes) -> None:
        put(self.current[name], offset, content)
        if (since := self._since(name)) is not None:
            since.append((offset, content))

    def cut(self, name: str, size: int) -> None:
        del self.current[name][size:]

    def sync(self, name: str) -> None:
        self.mark()
        self.synced[name] = bytes(self.current[name])
        if (since := self._since(name)) is not None:
            since.clear()

    def mark(self) -> int:
        """Close the present moment; how many there are."""
        self.moments.append(Moment(dict(self.synced), tuple(self._log), tuple(self._writes)))
        return len(self.moments)

    def _since(self, name: str) -> list[tuple[int, bytes]] | None:
        return {"ledger.db": self._writes, "ledger.db-wal": self._log}.get(name)


def put(file: bytearray, offset: int, content: bytes) -> None:
    """Write into a file's content, and beyond its end."""
    if content:
        file.extend(bytes(max(0, offset + len(content) - len(file))))
        file[offset : offset + len(content)] = content


@contextlib.contextmanager
def disk_below(folder: Path) -> Iterator[Disk]:
    """Everything that SQLite writes below a folder. Raises AttributeError where Python has SQLite built in."""
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    vfs = library.sqlite3_vfs_find(None).contents
    before = vfs.open
    plain = _OPEN(before)
    disk = Disk(folder)

    def opens(vfs: int, path: int | None, file: int, flags: int, out: int | None) -> int:
        result = int(plain(vfs, path, file, flags, out))
        opened = Path(ctypes.string_at(path).decode()) if path is not None else None
        if result == 0 and opened is not None and opened.parent == folder:
            _KEPT.append(_watched(disk, opened.name, file))
        return result

    shim = _OPEN(opens)
    vfs.open = ctypes.cast(shim, ctypes.c_void_p).value
    try:
        yield disk
    finally:
        vfs.open = before


def _watched(disk: Disk, name: str, file: int) -> Any:
    """Give an open file a table of its own; what must be kept alive for it."""
    slot = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
    table = (ctypes.c_void_p * _METHODS).from_address(slot[0] or 0)
    own = (ctypes.c_void_p * _METHODS)(*table)
    write, truncate = _WRITE(table[_X_WRITE] or 0), _TRUNCATE(table[_X_TRUNCATE] or 0)
    sync = _SYNC(table[_X_SYNC] or 0)
    disk.opened(name)

    def writes(file: int, content: int, size: int, offset: int) -> int:
        result = disk.fails or int(write(file, content, size, offset))
        if result == 0:
            disk.wrote(name, offset, ctypes.string_at(content, size))
        return result

    def truncates(file: int, size: int) -> int:
        result = int(truncate(file, size))
        if result == 0:
            disk.cut(name, size)
        return result

    def syncs(file: int, flags: int) -> int:
        result = disk.fails or int(sync(file, flags))
        if result == 0:
            disk.sync(name)
        return result

    calls = (_WRITE(writes), _TRUNCATE(truncates), _SYNC(syncs))
    for place, call in zip((_X_WRITE, _X_TRUNCATE, _X_SYNC), calls, strict=True):
        own[place] = ctypes.cast(call, ctypes.c_void_p).value
    slot[0] = ctypes.addressof(own)
    return own, calls, (write, truncate, sync)
