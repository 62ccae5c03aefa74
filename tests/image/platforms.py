"""Whether the image can be built for each platform: a wheel of every package, or a source to be compiled.

`python -m tests.image.platforms` asks where pip's packages come from, and needs `uv` (as `make lock` does). It shows
that the locked versions resolve; that they compile and run there, nothing here can show.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

REQUIREMENTS = Path(__file__).parents[2] / "container" / "requirements.txt"

PLATFORMS: Mapping[str, frozenset[str]] = {
    "x86_64": frozenset(),
    "aarch64": frozenset(),
    "ppc64le": frozenset({"grpcio", "pyyaml"}),
    "s390x": frozenset({"grpcio"}),
}
"""What has to be compiled there; a surprise is an error."""

_PYTHON = (3, 12)
_OLDEST_GLIBC, _GLIBC = 17, 34
"""2.17 is manylinux2014's; 2.34 that of the Containerfile's bases."""


def packages() -> list[dict[str, Any]]:
    """All files that there are of each pinned package, as a lock file says it (PEP 751).

    Raises:
        subprocess.CalledProcessError: uv is missing, or could not find a package.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-deps"]
    command += ["--python-version", ".".join(map(str, _PYTHON)), "--format", "pylock.toml", str(REQUIREMENTS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = tomllib.loads(done.stdout)["packages"]
    return [one for one in found if "win32" not in one.get("marker", "")]


def compiled(found: Iterable[Mapping[str, Any]], machine: str) -> set[str]:
    """The packages that have no wheel for a machine.

    Raises:
        LookupError: one has no source either, or one that the requirements do not name by its hash.
    """
    tags, pinned = _tags(machine), REQUIREMENTS.read_text()
    lacking = set()
    for one in found:
        if any(tags & parse_wheel_filename(_name(wheel))[3] for wheel in one.get("wheels", ())):
            continue
        if one.get("sdist", {}).get("hashes", {}).get("sha256", "none") not in pinned:
            raise LookupError(f"{one['name']} has neither a wheel for {machine} nor a pinned source")
        lacking.add(one["name"])
    return lacking


def _name(file: Mapping[str, Any]) -> str:
    return str(file.get("name") or file["url"].rpartition("/")[2])


def _tags(machine: str) -> frozenset[Tag]:
    glibc = range(_GLIBC, _OLDEST_GLIBC - 1, -1)
    platforms = [*(f"manylinux_2_{minor}_{machine}" for minor in glibc), f"manylinux2014_{machine}"]
    native = cpython_tags(_PYTHON, platforms=platforms)
    return frozenset((*native, *compatible_tags(_PYTHON, "cp312", platforms)))


def main() -> int:
    """Say it for each platform; 1 if one is not as it is written here."""
    found = packages()
    wrong = False
    for machine, expected in PLATFORMS.items():
        lacking = compiled(found, machine)
        wrong |= lacking != expected
        wheels = f"{len(found) - len(lacking)} wheels"
        print(f"{machine:8} {wheels}, to be compiled: {', '.join(sorted(lacking)) or 'nothing'}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
