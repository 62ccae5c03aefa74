"""The bases that the image is built from here, where no registry is: Debian's Python, its C library and a shell.

Like the ones that the Containerfile names they have a `python3` of one minor version, and only the builder has pip.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.cluster.cache import cached
from tests.image.debian import unpack

BASE = "device-bridge-test/base:1"
BUILDER = "device-bridge-test/builder:1"

_BASE = ("python3.11", "python3-minimal", "dash", "coreutils", "grep", "libstdc++6")
_BUILDER = (*_BASE, "python3-pip", "findutils")
_NEEDLESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")


def base() -> Path:
    """A tar archive of the base's file system, made on the first call."""
    return _archive("image-base", _BASE)


def builder() -> Path:
    """The same of the builder's."""
    return _archive("image-builder", _BUILDER)


def _archive(name: str, packages: tuple[str, ...]) -> Path:
    def make(directory: Path) -> None:
        root = directory / "root"
        shutil.rmtree(root, ignore_errors=True)
        unpack(packages, root, whole=True)
        _finish(root)
        subprocess.run(["tar", "-C", root, "-cf", directory / "root.tar", "."], check=True)
        shutil.rmtree(root)

    return cached(name, [repr(packages).encode(), Path(__file__).read_bytes()], make) / "root.tar"


def _finish(root: Path) -> None:
    """Do what the packages' own scripts would have done, as far as anybody needs it."""
    for needless in _NEEDLESS:
        shutil.rmtree(root / needless, ignore_errors=True)
    for folder in ("dev", "etc", "proc", "sys", "tmp", "run", "var/lib", "var/tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    # As Red Hat's come: the standard library is compiled, for -OO too.
    compiled = ["python3", "-m", "compileall", "-q", "-o", "0", "-o", "2", "/usr/lib/python3.11"]
    subprocess.run(["chroot", root, "/usr/bin/env", "-i", *compiled], check=True)
