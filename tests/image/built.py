"""The image, built once for each state of its source and kept as an archive that Docker and containerd load.

Packages are fetched outside, with whatever this machine's pip is told, and the build has no network: it could not
take anything else, and no setting of this machine can get into it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.cache import cached, root
from tests.image import bases
from tests.image.engine import Engine

REPOSITORY = Path(__file__).parents[2]
IMAGE = "device-bridge:0.1.0"

_CONTEXT = (
    "Containerfile",
    ".dockerignore",
    "Makefile",
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
    "bridge",
    "container",
    "deviceplugin_v1beta1",
    "dra_v1",
)
_KEPT = 3
"""Archives that stay: every change of the source makes a new one, 0.2 GB each."""

_IN_USE_S = 3600.0


def archive() -> Path:
    """Return the archive with the image, built on the first call."""
    with tempfile.TemporaryDirectory(prefix="device-bridge-image-") as folder:
        # What is asked for is what is built, whoever edits meanwhile.
        source = copy_source(Path(folder) / "source")

        def make(directory: Path) -> None:
            with Engine() as engine:
                build(engine, source)
                engine.run("save", "--output", directory / "image.tar", IMAGE)

        found = cached("image-built", _inputs(source), make)
    os.utime(found)
    _sweep()
    return found / "image.tar"


def copy_source(target: Path) -> Path:
    """Copy what the image is made of, and the packages that it installs, and return the copy."""
    _copy(target)
    shutil.copytree(wheels(), target / "container" / "wheels")
    return target


def build(engine: Engine, source: Path, image: str = IMAGE, flags: str = "", buildkit: bool = False) -> str:
    """Build with `make image`, as anybody does; what the build said.

    Args:
        engine: builds it; gets the bases first.
        source: from `copy_source`.
        image: its name.
        flags: further ones of the engine's `build`.
        buildkit: by BuildKit, not by the older builder.
    """
    for name, path in ((bases.BASE, bases.base()), (bases.BUILDER, bases.builder())):
        if not engine.run("images", "--quiet", name):
            engine.run("import", path, name)
    done = subprocess.run(
        [
            *("make", "--silent", "image", f"ENGINE={engine.command}", "SOURCE_DATE_EPOCH=1700000000"),
            *(f"BASE={bases.BASE}", f"BUILDER={bases.BUILDER}", f"IMAGE={image}"),
            f"IMAGE_FLAGS=--network=none {flags}",
        ],
        cwd=source,
        env={**engine.environment, "DOCKER_BUILDKIT": str(int(buildkit))},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-8000:]}"
    return done.stdout + done.stderr


def layers(engine: Engine, image: str) -> list[str]:
    """The digests of an image's layers, the base's first."""
    found: list[str] = json.loads(engine.run("image", "inspect", image))[0]["RootFS"]["Layers"]
    return found


def wheels() -> Path:
    """The packages that the build installs, as files, fetched on the first call."""
    python = "3.11"  # of the bases

    def make(directory: Path) -> None:
        context = directory / "context"
        _copy(context)
        # This environment as it is: a rule that found it too old would install the copy into it.
        environment = (f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed")
        subprocess.run(["make", "wheels", f"IMAGE_PYTHON={python}", *environment], cwd=context, check=True)
        (context / "container" / "wheels").rename(directory / "wheels")
        shutil.rmtree(context)

    pinned = [(REPOSITORY / "container" / name).read_bytes() for name in ("requirements.txt", "build.txt")]
    return cached("image-wheels", [*pinned, python.encode()], make) / "wheels"


def _inputs(source: Path) -> Iterator[bytes]:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        yield str(path.relative_to(source)).encode()
        yield path.read_bytes()
    yield str(bases.base()).encode()
    yield str(bases.builder()).encode()


def _sources() -> Iterator[Path]:
    for name in _CONTEXT:
        path = REPOSITORY / name
        yield from (one for one in path.rglob("*") if _taken(one)) if path.is_dir() else (path,)


def _taken(path: Path) -> bool:
    below = path.relative_to(REPOSITORY).parts
    return path.is_file() and "__pycache__" not in below and below[:2] != ("container", "wheels")


def _copy(context: Path) -> None:
    for path in _sources():
        target = context / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _sweep() -> None:
    """Drop all but the newest, and leave those that somebody else may be making or reading."""
    entries = sorted(root().glob("image-built-*/"), key=lambda path: path.stat().st_mtime)
    for entry in entries[:-_KEPT]:
        if time.time() - entry.stat().st_mtime > _IN_USE_S:
            shutil.rmtree(entry, ignore_errors=True)
            entry.with_name(f"{entry.name}.lock").unlink(missing_ok=True)
