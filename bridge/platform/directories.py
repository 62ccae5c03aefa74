"""Watching directories for names that come and go, with inotify.

A directory that does not exist yet is watched through its nearest existing parent. Only creation, deletion
and renaming are asked for: what programs do with the nodes (open, write, close: all terminal traffic) costs
nothing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import ObservedWatch
from watchdog.observers.inotify import InotifyObserver

_EVENTS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Watched:
    watch: ObservedWatch
    identity: tuple[int, int]


class DirectoryWatch(FileSystemEventHandler):
    """Calls back, from a thread of its own, whenever a name comes or goes in a watched directory."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._observer = InotifyObserver()
        self._watched: dict[Path, _Watched] = {}
        self._lost: set[Path] = set()
        self._lock = threading.Lock()
        self._refused: set[Path] = set()

    def start(self) -> None:
        """Start the thread."""
        self._observer.start()

    def stop(self) -> None:
        """Stop every thread and wait for them."""
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._watched.clear()

    def watch(self, directories: Iterable[Path]) -> bool:
        """Watch these directories and no others; blocking (a few ms).

        A directory that was replaced (deleted and made anew, or covered by a mount) is watched anew: what
        is watched is compared by device and inode, and by the deletions that were seen, for an inode number
        can be used again.

        Returns:
            Whether anything is watched that was not before: the caller scans after that, or calls again,
            since a directory may have appeared in between.
        """
        wanted = {_nearest(directory) for directory in directories}
        for path in self._watched.keys() - wanted:
            self._forget(path)
        with self._lock:
            self._lost &= wanted
        return sum(self._follow(path) for path in sorted(wanted)) > 0

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by the observer's thread for every event."""
        if isinstance(event, DirDeletedEvent):
            with self._lock:
                self._lost.add(Path(os.fsdecode(event.src_path)))
        self._changed()

    def _follow(self, path: Path) -> bool:
        with self._lock:
            lost = path in self._lost
            self._lost.discard(path)
        identity = _identity(path)
        known = self._watched.get(path)
        if known is not None:
            if not lost and known.identity == identity:
                return False
            self._forget(path)
        if identity is None:
            return False
        try:
            watch = self._observer.schedule(self, str(path), event_filter=_EVENTS)
        except OSError as error:
            self._refuse(path, error)
            return False
        self._refused.discard(path)
        self._watched[path] = _Watched(watch, identity)
        return True

    def _refuse(self, path: Path, error: OSError) -> None:
        if path not in self._refused and not isinstance(error, FileNotFoundError):
            self._refused.add(path)
            log.warning(
                "directory cannot be watched; devices in it are noticed by the slow rescan only "
                "(is fs.inotify.max_user_watches or max_user_instances used up?)",
                extra={"path": str(path), "error": str(error)},
            )

    def _forget(self, path: Path) -> None:
        self._observer.unschedule(self._watched.pop(path).watch)


def _nearest(directory: Path) -> Path:
    """The real path of the directory, or of its nearest parent that exists."""
    for candidate in (directory, *directory.parents):
        if candidate.is_dir():
            return candidate.resolve()
    return Path("/")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)
