"""Where `/dev` and `/sys` are looked up: the machine's own, a mounted host's, or a generated tree's.

Every path the bridge speaks of (parts, attributes, messages) is a host path, `/dev/…` or `/sys/…`; only
this module knows under which directory it lies. Reads, never writes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_MOST_LINKS = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The trees to look in.

    Attributes:
        dev: directory that stands for `/dev`.
        sys: directory that stands for `/sys`.
        host_dev: path of that `dev` tree on the host, for container runtimes.
        proc: directory that stands for `/proc`; `self` below it may be missing.
    """

    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    host_dev: str = "/dev"
    proc: Path = Path("/proc")

    @classmethod
    def at(cls, root: Path, *, mounted: bool = False) -> Roots:
        """Trees under another root.

        Args:
            root: directory with `dev` and `sys` in it.
            mounted: True where it is the host's own tree seen through a mount, so that runtimes find a node
                at `/dev/…`; False for a generated tree, whose nodes lie where they were found.
        """
        root = root.absolute()
        return cls(root / "dev", root / "sys", "/dev" if mounted else str(root / "dev"), root / "proc")

    @property
    def generated(self) -> bool:
        """Whether somebody made this tree: only there may a regular file stand for a device node."""
        return self.host_dev != "/dev"

    def look(self, path: str) -> Path:
        """Where to look for a host path.

        Raises:
            ValueError: the path is neither under `/dev` nor under `/sys`.
        """
        return Path(self._looked_up(path))

    def on_host(self, path: str) -> str:
        """The path that a container runtime on the host finds a `/dev/…` node by."""
        return self.host_dev + path.removeprefix("/dev")

    def local(self, on_host: str) -> Path:
        """Where to look for a path that `on_host` gave."""
        return Path(f"{self.dev}{on_host.removeprefix(self.host_dev)}")

    def still_there(self, on_host: str) -> bool:
        """Whether anything stands at a path that `on_host` gave."""
        return os.path.lexists(f"{self.dev}{on_host.removeprefix(self.host_dev)}")

    def resolve(self, path: str) -> str:
        """The canonical host path, with every symbolic link followed inside the tree.

        Raises:
            OSError: nothing is there (ENOENT), too many links (ELOOP), or a link leads out of `/dev` (EXDEV).
        """
        todo = deque(_pieces(path))
        done: list[str] = []
        links = 0
        while todo:
            piece = todo.popleft()
            if piece == "..":
                del done[-1:]
                continue
            here = "/" + "/".join((*done, piece))
            if not done:
                done.append(piece)
                continue
            if done[0] != "dev":
                raise OSError(errno.EXDEV, "the link leads out of /dev", path)
            looked_up = self._looked_up(here)
            if not stat.S_ISLNK(os.lstat(looked_up).st_mode):
                done.append(piece)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, "too many symbolic links", path)
            target = self._as_host_path(str(Path(looked_up).readlink()))
            if target.startswith("/"):
                done.clear()
            todo.extendleft(reversed(_pieces(target)))
        canonical = "/" + "/".join(done)
        if not canonical.startswith("/dev/"):
            raise OSError(errno.EXDEV, "the link leads out of /dev", path)
        return canonical

    def _as_host_path(self, target: str) -> str:
        """A generated tree may link to itself by its real place: that means `/dev` too."""
        if self.generated and target.startswith(f"{self.dev}/"):
            return "/dev" + target.removeprefix(str(self.dev))
        return target

    def _looked_up(self, path: str) -> str:
        for prefix, directory in (("/dev", self.dev), ("/sys", self.sys)):
            if path == prefix or path.startswith(prefix + "/"):
                return f"{directory}{path[len(prefix) :]}"
        raise ValueError(f"{path} is neither under /dev nor under /sys")


def _pieces(path: str) -> list[str]:
    return [piece for piece in path.split("/") if piece not in ("", ".")]
