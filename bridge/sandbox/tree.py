"""A generated tree of fake devices: regular files under `dev/`, and what the kinds read under `sys/`.

The daemon is pointed at the tree's root; paths below are host paths (`/dev/crypto/acc0`).
"""

from __future__ import annotations

import uuid
from pathlib import Path

from bridge.sandbox.observe import Observations


class Tree:
    """Fake devices under one root.

    Attributes:
        root: the folder that stands for `/`.
    """

    def __init__(self, root: Path, observe: Observations) -> None:
        self.root, self._observe = root, observe
        for folder in ("dev", "sys/devices", "sys/class", "sys/bus/pci/devices", "proc/sys/kernel/random"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        self.new_boot()

    def at(self, path: str) -> Path:
        """Return where a host path lies; a path in the tree, as the daemon gives it to containers, is itself."""
        if Path(path).is_relative_to(self.root):
            return Path(path)
        return self.root / path.lstrip("/")

    def add(self, *paths: str) -> None:
        """Make device nodes, such as `/dev/crypto/acc0`; folders as needed."""
        for path in paths:
            where = self.at(path)
            where.parent.mkdir(parents=True, exist_ok=True)
            where.touch()
            self._observe.tell("tree", "DeviceAdded", path)

    def add_many(self, pattern: str, count: int, first: int = 0) -> list[str]:
        """Make `count` nodes from a pattern with `{}` for the number; return their host paths."""
        paths = [pattern.format(number) for number in range(first, first + count)]
        self.add(*paths)
        return paths

    def remove(self, *paths: str) -> None:
        """Unplug: remove device nodes."""
        for path in paths:
            self.at(path).unlink()
            self._observe.tell("tree", "DeviceRemoved", path)

    def write(self, path: str, text: str) -> None:
        """Write a sysfs (or other) file, folders made as needed."""
        where = self.at(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link; `target` is taken as it is written."""
        where = self.at(path)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.symlink_to(target)

    def add_nx_gzip(self, credits_: int, used: int = 0) -> None:
        """Make a Power NX accelerator: `/dev/crypto/nx-gzip` and its VAS credits in sysfs."""
        base = "/sys/devices/virtual/misc/vas/vas0/gzip/default_capabilities"
        self.write(f"{base}/nr_total_credits", str(credits_))
        self.write(f"{base}/nr_used_credits", str(used))
        self.write("/sys/class/misc/nx-gzip/uevent", "MAJOR=10\nMINOR=120\nDEVNAME=crypto/nx-gzip")
        self.add("/dev/crypto/nx-gzip")

    def add_numa_nodes(self, cpus: dict[int, str]) -> None:
        """Make NUMA nodes with their lists of CPUs (`{0: "0-3"}`)."""
        for node, cpulist in cpus.items():
            self.write(f"/sys/devices/system/node/node{node}/cpulist", cpulist)
        self.write("/sys/devices/system/node/online", ",".join(str(node) for node in sorted(cpus)))

    def new_boot(self) -> str:
        """Give the node another boot id, as a reboot does; return it."""
        boot = str(uuid.uuid4())
        self.write("/proc/sys/kernel/random/boot_id", boot)
        return boot
