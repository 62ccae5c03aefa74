"""Debian packages unpacked into a folder, not installed: nothing of the machine changes and no service starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_QUIET = ["-qq", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root"]


def unpack(packages: Sequence[str], into: Path, *, whole: bool) -> None:
    """Fetch packages and unpack them.

    Args:
        packages: their names.
        into: the folder that becomes `/`.
        whole: with everything that they depend on, as on an empty machine; else only they themselves.

    Raises:
        subprocess.CalledProcessError: apt or dpkg failed, and after `apt-get update` apt failed again.
    """
    fetched = into.with_name(into.name + ".debs")
    (fetched / "partial").mkdir(parents=True, exist_ok=True)
    fetch = _whole(packages, fetched) if whole else ["apt-get", *_QUIET, "download", *packages]
    if subprocess.run(fetch, cwd=fetched, env=_environment(), check=False).returncode:
        subprocess.run(["apt-get", *_QUIET, "update"], env=_environment(), check=True)
        subprocess.run(fetch, cwd=fetched, env=_environment(), check=True)
    into.mkdir(exist_ok=True)
    for package in sorted(fetched.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, into], check=True)
        package.unlink()


def _whole(packages: Iterable[str], fetched: Path) -> list[str]:
    nothing = fetched / "nothing-is-installed"
    nothing.touch()
    where = {"Dir::State::status": nothing, "Dir::Cache::archives": fetched, "Debug::NoLocking": "true"}
    options = [word for name, value in where.items() for word in ("-o", f"{name}={value}")]
    return ["apt-get", *_QUIET, *options, "--yes", "--download-only", "install", *packages]


def _environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
