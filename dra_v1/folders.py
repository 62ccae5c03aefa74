"""What stands in a folder: telling a file from its successor, and being woken when a name comes or goes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

logger = logging.getLogger(__name__)

_BLIND_POLL_SECONDS = 5.0


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
