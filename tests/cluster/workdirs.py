"""The folder of a cluster among the machine's temporary files, named after its maker so that none is forgotten.

`DEVICE_BRIDGE_KEEP=1` keeps it, logs and all, when the cluster ends.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from tests.cluster.processes import owner, owner_is_alive

_NAME = re.compile(r"db-(\d+-\d+)-[0-9a-f]+")
_KEPT = ".kept"


def choose() -> Path:
    """Name a folder that does not exist yet."""
    return Path(tempfile.gettempdir()) / f"db-{owner()}-{secrets.token_hex(2)}"


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, unless the user wants to look at it."""
    if os.environ.get("DEVICE_BRIDGE_KEEP"):
        (path / _KEPT).touch()
    elif path.exists():
        shutil.rmtree(path)


def sweep() -> None:
    """Remove the folders of runs that died."""
    for path in Path(tempfile.gettempdir()).glob("db-*"):
        match = _NAME.fullmatch(path.name)
        if match and not owner_is_alive(match[1]) and not (path / _KEPT).exists():
            shutil.rmtree(path, ignore_errors=True)
