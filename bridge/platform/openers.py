"""Which processes have a device node open: a look at `/proc`, as far as this process may see it.

The last word on whether a device is in use: whatever kubelet and runtime forgot, an open file is one. A daemon in a
pod without the host's process namespace sees only itself, which `Look.alone` tells.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Opener:
    """One process and the node that it has open."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) has {self.path} open"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen.

    Attributes:
        openers: who has one of the nodes open.
        processes: how many processes could be looked into.
        hidden: how many could not.
        alone: whether the processes of the node are out of sight.
    """

    openers: tuple[Opener, ...]
    processes: int
    hidden: int
    alone: bool


def look(nodes: Iterable[Path], proc: Path = PROC) -> Look:
    """Look for processes that have one of these device nodes open. Blocks for some milliseconds."""
    wanted = {key: str(node) for node in nodes if (key := _key(node)) is not None}
    openers: list[Opener] = []
    processes = hidden = 0
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            found = {wanted[key] for fd in (folder / "fd").iterdir() if (key := _key(fd)) in wanted}
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # it has ended
        processes += 1
        openers += [Opener(int(folder.name), _command(folder), path) for path in sorted(found)]
    return Look(tuple(openers), processes, hidden, _alone(proc))


def _key(path: Path) -> tuple[object, ...] | None:
    """What tells an open file: the device's numbers; where a test's node is none, the file itself."""
    try:
        found = path.stat()
    except OSError:
        return None
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        return (stat.S_IFMT(found.st_mode), found.st_rdev)
    return (found.st_dev, found.st_ino)


def _command(folder: Path) -> str:
    try:
        return (folder / "comm").read_text().strip()
    except OSError:
        return "?"


def _alone(proc: Path) -> bool:
    """Whether this is a container's own process namespace: the kernel's threads are in the machine's alone."""
    return _command(proc / "2") != "kthreadd"
