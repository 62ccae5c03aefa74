"""Which clusters the command line has running, as one small file each in the cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster import cache
from tests.cluster.processes import is_alive, start_time


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that a process of the command line holds.

    Attributes:
        pid: the process that holds it; a SIGTERM to it ends the cluster.
        started: that process's start time, so that a reused pid is not taken for it.
        version: the Kubernetes release.
        workdir: the cluster's folder.
    """

    pid: int
    started: int
    version: str
    workdir: str

    def alive(self) -> bool:
        """Tell whether the holder still runs."""
        return is_alive(self.pid, self.started)


def record(version: str, workdir: Path) -> Running:
    """Note that this process holds a cluster."""
    entry = Running(os.getpid(), start_time(os.getpid()), version, str(workdir))
    path = _path(entry.pid)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(entry)))
    partial.rename(path)
    return entry


def forget(pid: int) -> None:
    """Take the note away."""
    _path(pid).unlink(missing_ok=True)


def find(pid: int) -> Running | None:
    """Give the cluster that a process holds, once it is ready."""
    with suppress(FileNotFoundError):
        entry = Running(**json.loads(_path(pid).read_text()))
        if entry.alive():
            return entry
    return None


def every() -> Iterator[Running]:
    """Give every cluster that runs, and drop the notes of holders that died."""
    for path in sorted(_folder().glob("*.json")):
        entry = find(int(path.stem))
        if entry is None:
            path.unlink(missing_ok=True)
        else:
            yield entry


def _folder() -> Path:
    return cache.root() / "running"


def _path(pid: int) -> Path:
    return _folder() / f"{pid}.json"
