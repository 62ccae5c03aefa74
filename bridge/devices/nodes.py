"""Device nodes: finding them by glob, and telling what they are. Below the kinds, which all have nodes.

Reads the trees only. Paths are host paths (`/dev/…`).
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from bridge.platform.roots import Roots

_MAGIC = re.compile(r"[*?\[]")

_OTHER_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFREG: "a regular file",
}


class Unusable(Exception):
    """A path that is no usable device node; the text says why."""


class Missing(Unusable):
    """Nothing is there."""


class NoNode(Unusable):
    """Something is there that is no device node, such as a directory."""


@dataclass(frozen=True, slots=True)
class Node:
    """A device node, or a regular file that stands for one in a generated tree.

    Attributes:
        path: canonical host path.
        type: `c`, `b`, or None for a regular file.
        major, minor: None as above.
    """

    path: str
    type: str | None = None
    major: int | None = None
    minor: int | None = None

    @property
    def identity(self) -> str | None:
        """What the kernel knows it by: two nodes with one identity are one device."""
        return f"{self.type}{self.major}:{self.minor}" if self.type else None


def read_node(path: str, roots: Roots) -> Node:
    """What lies at a path, symbolic links followed.

    Raises:
        Missing: nothing does (a dangling link included).
        NoNode: something that is no device node.
        Unusable: a link that leads out of `/dev`, or what cannot be read.
    """
    try:
        canonical = roots.resolve(path)
        found = roots.look(canonical).lstat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise Missing(f"{path} does not exist") from error
        raise Unusable(f"{path}: {(error.strerror or str(error)).lower()}") from error
    kind = stat.S_IFMT(found.st_mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return Node(
            canonical,
            "c" if kind == stat.S_IFCHR else "b",
            os.major(found.st_rdev),
            os.minor(found.st_rdev),
        )
    if kind == stat.S_IFREG and roots.generated:
        return Node(canonical)
    raise NoNode(f"{path} is {_OTHER_TYPES.get(kind, 'something else')}, not a device node")


def numa_node(node: Node, roots: Roots) -> int | None:
    """The NUMA node that sysfs tells for a device node; None where it tells none (`-1` included)."""
    if node.type is None:
        return None
    directory = "char" if node.type == "c" else "block"
    value = read_number(f"/sys/dev/{directory}/{node.major}:{node.minor}/device/numa_node", roots)
    return value if value is not None and value >= 0 else None


def read_number(path: str, roots: Roots) -> int | None:
    """A decimal number from a sysfs file; None where the file is missing or holds none."""
    try:
        descriptor = os.open(roots.look(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(descriptor, 64))
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def matches(path: str, pattern: str) -> bool:
    """Whether a path matches a glob; as in a shell, `*` stops at `/` and does not match a leading dot."""
    names, wanted = path.split("/"), pattern.split("/")
    return len(names) == len(wanted) and all(
        _matches_name(name, want) for name, want in zip(names, wanted, strict=True)
    )


def expand(pattern: str, roots: Roots) -> Iterator[str]:
    """The host paths that match a glob, dangling links included, in the order of the file system.

    Raises:
        OSError: a directory on the way could not be read for another reason than being absent.
    """
    directories, name = _parents(pattern, roots)
    for directory in directories:
        if _MAGIC.search(name):
            yield from (
                f"{directory}/{entry}" for entry in _names(directory, roots) if _matches_name(entry, name)
            )
        elif os.path.lexists(roots.look(f"{directory}/{name}")):
            yield f"{directory}/{name}"


def directories_of(pattern: str, roots: Roots) -> frozenset[str]:
    """The directories whose entries decide what a glob matches; of a plain path its parent."""
    pieces = pattern.strip("/").split("/")
    found: set[str] = set()
    here = ["/" + pieces[0]]
    for i, piece in enumerate(pieces[1:], start=1):
        last = i == len(pieces) - 1
        if last or _MAGIC.search(piece):
            found.update(here)
        if not last:
            here = [child for directory in here for child in _children(directory, piece, roots)]
    return frozenset(found)


def _parents(pattern: str, roots: Roots) -> tuple[list[str], str]:
    pieces = pattern.strip("/").split("/")
    here = ["/" + pieces[0]]
    for piece in pieces[1:-1]:
        here = [child for directory in here for child in _children(directory, piece, roots)]
    return here, pieces[-1]


def _children(directory: str, piece: str, roots: Roots) -> list[str]:
    if not _MAGIC.search(piece):
        return [f"{directory}/{piece}"]
    return [
        f"{directory}/{name}"
        for name in _names(directory, roots)
        if _matches_name(name, piece) and roots.look(f"{directory}/{name}").is_dir()
    ]


def _names(directory: str, roots: Roots) -> list[str]:
    try:
        with os.scandir(roots.look(directory)) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _matches_name(name: str, pattern: str) -> bool:
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return _compiled(pattern).match(name) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))
