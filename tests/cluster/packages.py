"""The Debian packages that the node takes from the distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# Package, and a program or file that shows it is there.
_NEEDED = {
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iproute2": "ip",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "busybox-static": "busybox",
    "openssl": "openssl",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdio.h",
}


def missing() -> list[str]:
    """Name the packages that are not installed yet."""
    return [package for package, proof in _NEEDED.items() if not _present(proof)]


def install() -> list[str]:
    """Install what is missing and return it; without anything missing, apt is not called at all."""
    packages = missing()
    if packages:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]
        subprocess.run([*apt, "update"], env=environment, check=True)
        command = [*apt, "install", "--no-install-recommends", "-y", *packages]
        subprocess.run(command, env=environment, check=True)
    return packages


def _present(proof: str) -> bool:
    return Path(proof).exists() if proof.startswith("/") else shutil.which(proof) is not None
