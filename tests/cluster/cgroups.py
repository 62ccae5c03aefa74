"""A cgroup of its own for every node, in every hierarchy, removed to the last child.

Hierarchies are never mounted or unmounted. The name carries who owns it, so that what a killed run left
behind is found and removed by the next one, and nothing else ever is.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.cluster.processes import owner, owner_is_alive

_ROOT = Path("/sys/fs/cgroup")
_NAME = re.compile(r"device-bridge-(\d+-\d+)-[0-9a-f]+")


def create() -> str:
    """Make a cgroup in each hierarchy and return its path, as the kubelet's `cgroupRoot` takes it."""
    name = f"device-bridge-{owner()}-{secrets.token_hex(2)}"
    if _unified():
        with suppress(OSError):  # most are on already, and one that cannot be is not for us to judge
            _let_children_use(_ROOT)
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir()
        _let_children_use(hierarchy / name)
    return f"/{name}"


def remove(path: str) -> None:
    """Remove a cgroup and all below it from each hierarchy; its processes must have ended."""
    for hierarchy in _hierarchies():
        top = hierarchy / path.lstrip("/")
        for directory, _, _ in os.walk(top, topdown=False):
            # A sibling hierarchy may be the same one under another name, and then it is gone already.
            with suppress(FileNotFoundError):
                Path(directory).rmdir()


def sweep() -> None:
    """Remove what runs left behind that have since died."""
    for hierarchy in _hierarchies():
        for entry in hierarchy.glob("device-bridge-*"):
            match = _NAME.fullmatch(entry.name)
            if match and not owner_is_alive(match[1]):
                with suppress(OSError):
                    remove(entry.name)


def _hierarchies() -> Iterator[Path]:
    if _unified():
        yield _ROOT
        return
    seen = set()
    for entry in sorted(_ROOT.iterdir()):
        if (entry / "cgroup.procs").exists() and entry.resolve() not in seen:
            seen.add(entry.resolve())
            yield entry.resolve()


def _unified() -> bool:
    return (_ROOT / "cgroup.controllers").exists()


def _let_children_use(cgroup: Path) -> None:
    """Pass on what a new cgroup does not inherit by itself: the processors, or the set of controllers."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _unified() and (cgroup / name).exists():
            (cgroup / name).write_text((cgroup.parent / name).read_text())
    if _unified():
        names = (cgroup / "cgroup.controllers").read_text().split()
        (cgroup / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))
