"""Generated `/dev` and `/sys` trees for the tests of discovery."""

import os
import stat
from pathlib import Path

import pytest

from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import Found
from bridge.devices.schema import decode
from bridge.platform.roots import Roots


class Tree:
    """A tree under one root: regular files stand for nodes, real nodes are made where the user may."""

    def __init__(self, root: Path, *, mounted: bool = False) -> None:
        self.root = root
        (root / "dev").mkdir(exist_ok=True)
        (root / "sys").mkdir(exist_ok=True)
        self.roots = Roots.at(root, mounted=mounted)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def file(self, path: str, content: str = "") -> Path:
        place = self.at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        return place

    def link(self, path: str, target: str) -> None:
        place = self.at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def node(self, path: str, minor: int, *, major: int = 4, kind: int = stat.S_IFCHR) -> None:
        place = self.at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mknod(place, kind | 0o600, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("making device nodes needs CAP_MKNOD")


def discover(kind: str, options: dict[str, object], roots: Roots) -> Found:
    chosen = KINDS[kind]
    return chosen.discover("g", decode(chosen.options, options), roots)
