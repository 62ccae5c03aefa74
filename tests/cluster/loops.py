"""Minor numbers of loop devices, machine-wide: each is lent to one run at a time and handed back unseen.

A loop device need not be bound to a file. Its block node can be opened, and `O_EXCL` on it is exclusive
per device, through whatever node or container it is opened. Opening one makes it appear on the machine, so
it is removed in the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

MAJOR = 7
_CONTROL = Path("/dev/loop-control")
_REMOVE = 0x4C81  # LOOP_CTL_REMOVE
_FIRST, _LAST = 64, 4095  # far from those that the machine itself uses


class LoopMinors:
    """The minors that one run has taken."""

    def __init__(self) -> None:
        self._taken: dict[int, IO[bytes]] = {}

    def take(self) -> int:
        """Take a minor that nobody else has.

        Raises:
            RuntimeError: every one is in use.
        """
        for minor in range(_FIRST, _LAST):
            if minor not in self._taken and not Path(f"/sys/block/loop{minor}").exists():
                lock = _try_lock(_lock_path(minor))
                if lock is not None:
                    self._taken[minor] = lock
                    return minor
        raise RuntimeError("no loop device is free; are runs that died holding them?")

    def release(self) -> None:
        """Remove the devices and hand the minors back."""
        for minor, lock in self._taken.items():
            _remove(minor)
            _lock_path(minor).unlink(missing_ok=True)
            lock.close()
        self._taken.clear()
        with suppress(OSError):
            _folder().rmdir()


def sweep() -> None:
    """Remove the devices of runs that died."""
    for path in _folder().glob("*"):
        lock = _try_lock(path)
        if lock is not None:
            _remove(int(path.name))
            path.unlink(missing_ok=True)
            lock.close()


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / "device-bridge-loops"


def _lock_path(minor: int) -> Path:
    return _folder() / str(minor)


def _try_lock(path: Path) -> IO[bytes] | None:
    path.parent.mkdir(exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who held it may have removed the file in between; then this lock guards nothing.
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def _remove(minor: int) -> None:
    """Ask the kernel to remove a device; one that never appeared is fine."""
    with _CONTROL.open("rb") as control:
        try:
            fcntl.ioctl(control, _REMOVE, minor)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise
