"""The daemon with a wall clock that can be stepped under it: `python -m tests.campaign.real_clock OFFSET SETTINGS`.

OFFSET is a file of eight bytes, a double: the seconds by which this one process's clock is wrong, at this moment. The
machine's clock is never touched. SETTINGS is the argument of `bridge.daemon`.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
import types
from pathlib import Path

import grpc.aio._utils as grpc_utils

_OFFSET = struct.Struct("d")


def step(file: Path, seconds: float) -> None:
    """Make the clock of whoever runs with this file wrong by so much."""
    content = _OFFSET.pack(seconds)
    with file.open("r+b" if file.exists() else "w+b") as opened:
        opened.write(content)


def follow(file: Path) -> None:
    """Have this process's `time.time` wrong by what the file says, from now on."""
    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    right, right_ns = time.time, time.time_ns

    def offset() -> float:
        value: float = _OFFSET.unpack(shared)[0]
        return value

    # gRPC's Python half makes a deadline of a wall clock time, its core reads the machine's clock: they must agree.
    vars(grpc_utils)["time"] = types.SimpleNamespace(time=right)
    time.time = lambda: right() + offset()
    time.time_ns = lambda: right_ns() + round(offset() * 1e9)


def main() -> None:
    """Become the daemon."""
    follow(Path(sys.argv[1]))
    sys.argv = ["bridge.daemon", sys.argv[2]]
    runpy.run_module("bridge.daemon", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
