"""Disks: whether the node uses one itself, so that nobody else may have it. Reads the trees only.

For patterns as wide as `/dev/*`. It errs on the careful side: what cannot be seen to be spare is not. What it cannot
see is a file system that is mounted only where the daemon's own mount namespace does not reach, on a whole disk or a
logical volume; whoever names such a disk in a pattern of its own has to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge.devices.nodes import Node
from bridge.platform.roots import Roots


@dataclass(frozen=True, slots=True)
class Disks:
    """What the machine tells of its disks.

    Attributes:
        roots: the trees to look in.
        mounted: device numbers (`8:2`) of the file systems that the daemon sees: its own hostPath mounts among them,
            hence those of `/etc` and of the kubelet's root, and the volumes that CSI drivers have mounted there.
        swap: paths that the node swaps to.
    """

    roots: Roots
    mounted: frozenset[str]
    swap: frozenset[str]

    @classmethod
    def read(cls, roots: Roots) -> Disks:
        """As of now.

        Raises:
            OSError: `/proc` is there and could not be read.
        """
        mounts = [line.split() for line in _lines(roots.proc / "self" / "mountinfo")]
        swaps = [line.split() for line in _lines(roots.proc / "swaps")]
        return cls(
            roots,
            frozenset(fields[2] for fields in mounts if len(fields) > 2),
            frozenset(fields[0] for fields in swaps if fields),
        )

    def is_block(self, node: Node) -> bool:
        """Whether it is a block device; of a generated tree's regular file sysfs tells."""
        return node.type == "b" if node.type else self._folder(node).is_dir()

    def use_of(self, node: Node) -> str:
        """What the node uses it for, or why it is no disk to give away; empty if it is spare."""
        folder = self._folder(node)
        if not self.is_block(node) or not folder.is_dir():
            return "it is no disk that sysfs knows"
        if node.path in self.swap:
            return "the node swaps to it"
        if f"{node.major}:{node.minor}" in self.mounted or _text(folder / "dev") in self.mounted:
            return "a file system on it is mounted"
        return _use_in_sysfs(folder)

    def _folder(self, node: Node) -> Path:
        """Of a real node by its numbers, for it may have any name."""
        if node.type is None:
            return self.roots.look("/sys/class/block") / node.path.removeprefix("/dev/").replace("/", "!")
        return self.roots.look(f"/sys/dev/block/{node.major}:{node.minor}")


def _use_in_sysfs(folder: Path) -> str:
    if (folder / "partition").exists() or _text(folder / "dm" / "uuid").startswith("part"):
        return "it is a partition"
    if any(folder.glob("*/partition")):
        return "it has partitions"
    if not any((folder / name).exists() for name in ("device", "dm", "md")):
        return "it is a loop device, memory or the like"
    holders = folder / "holders"
    if holders.is_dir() and any(holders.iterdir()):
        return "something is built on it"
    if _text(folder / "removable") == "1":
        return "it is a removable medium"
    return "" if _text(folder / "size") not in ("", "0") else "it has no size"


def _text(path: Path) -> str:
    """A small file, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()
