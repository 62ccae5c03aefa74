"""Daemons that die where they are told to: `python -m tests.crash.zygote` forks them, with all imports done.

Each order on stdin is a line `{"settings": …, "log": …, "point": …, "times": …}`; the answers are two lines, the
process number and, once it has ended, its exit code. The daemon is the real one, `python -m bridge.daemon`; only the
hook of `dra_v1.points` is replaced, and the evidence's clock runs faster. Every point that is reached goes as one byte
into the pipe that this was started with, so that it is known whatever comes next.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import bridge.daemon.run
from bridge.daemon import counting, node_bridge, sources
from bridge.ledger import reconcile
from bridge.platform import budget
from dra_v1 import points
from dra_v1.points import Point

POINTS = tuple(Point)
"""A byte in the pipe is an index into it."""

CLOCK_RATE = 100
"""How much faster the evidence's clock runs: 0.3 s for the 30 s that a kubelet's lists are not trusted."""

_PR_SET_PDEATHSIG = 1


class Death:
    """What waits at the points: one byte of shared memory each for the point and for how often it may yet be passed."""

    def __init__(self, armed: mmap.mmap, pipe: int) -> None:
        self._armed, self._pipe = armed, pipe
        self._lock = threading.Lock()

    def reached(self, point: Point) -> None:
        """Tell; die if it is this one's turn."""
        index = POINTS.index(point)
        with self._lock:
            os.write(self._pipe, bytes((index,)))
            wanted, left = self._armed[0], self._armed[1]
            if left == 0 or wanted != index:
                return
            self._armed[1] = left - 1
            if left == 1:
                os.kill(os.getpid(), signal.SIGKILL)


def child(order: dict[str, str], armed: mmap.mmap, pipe: int) -> None:
    """Become the daemon. Never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    points.reached = Death(armed, pipe).reached
    vars(sources)["time"] = SimpleNamespace(monotonic=lambda: time.monotonic() * CLOCK_RATE)
    budget.SPREAD_S, node_bridge.PACE_S, counting.PACE_S = 0.0, 0.02, 0.02
    reconcile.SOON_S = reconcile.UNDECIDED_S = reconcile.SETTLED_S = 0.02
    sys.argv = ["bridge.daemon", order["settings"]]
    code = 1
    try:
        runpy.run_module("bridge.daemon", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> None:
    """Fork one daemon at a time until stdin ends. Arguments: the file of the shared memory, the pipe's number."""
    assert bridge.daemon.run, "imported for the children"
    with Path(sys.argv[1]).open("r+b") as file:
        armed = mmap.mmap(file.fileno(), 2)
    pipe = int(sys.argv[2])
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order, armed, pipe)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
