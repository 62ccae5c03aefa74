"""What a cluster could leave on the machine, so that a test can show that it left nothing."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cluster import workdirs
from tests.cluster.processes import owner, owner_is_alive


def traces() -> dict[str, object]:
    """All of it, less what other runs have there at the same time."""
    owned = [
        *Path("/sys/fs/cgroup").glob("*/device-bridge-*"),
        *Path("/sys/fs/cgroup").glob("device-bridge-*"),
    ]
    owned += workdirs.choose().parent.glob("db-*")
    return {
        "mounts": Path("/proc/self/mounts").read_text(),
        "links": _names("/sys/class/net"),
        # The loop devices of other runs come and go; the one that a test took is looked for by name.
        "devices": [name for name in _names("/dev") if not name.startswith("loop")],
        "run": _names("/run"),
        "owned": sorted(str(path) for path in owned if not _of_another_run(path.name)),
    }


def _names(folder: str) -> list[str]:
    return sorted(entry.name for entry in Path(folder).iterdir())


def _of_another_run(name: str) -> bool:
    match = re.search(r"\d+-\d+", name)
    return match is not None and match[0] != owner() and owner_is_alive(match[0])
