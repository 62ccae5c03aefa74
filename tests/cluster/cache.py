"""Things that are expensive to make, made once per machine.

An entry is a directory named after what went into it, so a changed input makes a new entry and never spoils
an old one. A stamp marks an entry as whole; a file lock lets several runs ask for the same entry at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STAMP = ".complete"


def root() -> Path:
    """Where the cache lives: `$DEVICE_BRIDGE_CACHE`, else below `$XDG_CACHE_HOME`, else below `~/.cache`."""
    chosen = os.environ.get("DEVICE_BRIDGE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "device-bridge"


def cached(name: str, inputs: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """Return the directory of an entry, making it first if it is not whole.

    Args:
        name: readable beginning of the directory's name.
        inputs: everything that the result depends on.
        make: fills the directory it is given; called again on what it left if it was interrupted.
    """
    entry = root() / f"{name}-{_digest(inputs)}"
    if (entry / _STAMP).exists():
        return entry
    entry.mkdir(parents=True, exist_ok=True)
    with locked(entry.with_name(entry.name + ".lock")):
        if not (entry / _STAMP).exists():
            make(entry)
            (entry / _STAMP).touch()
    return entry


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(inputs: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:12]
