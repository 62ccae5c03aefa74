"""A zygote: has imported the daemon once, and forks it at each start, so that a restart takes a fork and no imports.

`python -m tests.campaign.launcher CLOCK HASTE` reads one JSON object a line: `{"settings": ..., "log": ...,
"plant": ...}` starts a daemon and is answered `started PID`; each end is told as `ended PID CODE` (-9 for SIGKILL).
At the end of its input it kills what it started.

The daemon's time is not the machine's: its wall clock is moved by the number in the file CLOCK (H42), and its own
patience runs out HASTE times as fast, for a campaign cannot wait half a minute after each of its restarts. What is
short stays as it is: pauses of up to `EDGE_S` are about load, not about patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import mmap
import os
import runpy
import selectors
import signal
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import Any

EDGE_S = 0.25
CLOCK_BYTES = 8
_PR_SET_PDEATHSIG = 1


def hasten(haste: float) -> None:
    """Let monotonic time run faster, for whoever asks for it through the module `time` from now on."""
    real = time.monotonic
    time.monotonic = lambda: real() * haste


def shift(clock: Path) -> None:
    """Move the wall clock by the seconds in a file of one double, as they are at each look."""
    real = time.time
    with clock.open("rb") as file:
        seconds = mmap.mmap(file.fileno(), CLOCK_BYTES, access=mmap.ACCESS_READ)
    time.time = lambda: real() + struct.unpack_from("d", seconds)[0]


def spare(package: str, real: types.ModuleType) -> None:
    """Leave a loaded package with the machine's time: gRPC reckons deadlines by a clock that nobody moves."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package and getattr(module, "time", None) is time:
            module.time = real  # type: ignore[attr-defined]


def answered_in_time(package: str) -> None:
    """Leave the modules of a package their deadlines: those whom they ask are no faster than ever."""
    patient = types.ModuleType("asyncio")
    vars(patient).update(vars(asyncio))
    vars(patient)["timeout"] = lambda seconds: asyncio.timeout(
        seconds if seconds is None or seconds <= EDGE_S else EDGE_S + (seconds - EDGE_S) * HastyLoop.haste
    )
    for name, module in list(sys.modules.items()):
        if name.startswith(package) and getattr(module, "asyncio", None) is asyncio:
            module.asyncio = patient  # type: ignore[attr-defined]


class HastyLoop(asyncio.SelectorEventLoop):
    """An event loop whose long pauses are shorter than asked for.

    Attributes:
        haste: how many times.
    """

    haste = 1.0

    def time(self) -> float:
        """Real seconds: what is pending is reckoned in them."""
        return time.monotonic() / self.haste

    def call_at(  # type: ignore[override]  # what the stubs say takes a variadic type variable, and this needs none
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback; `asyncio.sleep` and all timeouts end here."""
        now = self.time()
        if (pause := when - now) > EDGE_S:
            when = now + EDGE_S + (pause - EDGE_S) / self.haste
        return super().call_at(when, callback, *args, context=context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return HastyLoop()


def _become_the_daemon(command: dict[str, str]) -> None:
    """In the child: what `python -m bridge.daemon SETTINGS` is. Does not return."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(command["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for new, old in ((null, 0), (log, 1), (log, 2)):
        os.dup2(new, old)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    sys.argv = ["bridge.daemon", command["settings"]]
    asyncio.set_event_loop_policy(_Policy())
    code = 1
    try:
        if command["plant"]:
            from tests.campaign.plants import plant

            plant(command["plant"])
        runpy.run_module("bridge.daemon", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # this process is about to end, and must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Zygote:
    """Starts daemons, and tells of their ends."""

    def __init__(self) -> None:
        self._children: set[int] = set()

    def serve(self) -> None:
        """Until the input ends."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            rest = b""
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if wake in ready:
                    os.read(wake, 4096)
                    self._reap()
                if 0 in ready:
                    found = os.read(0, 65536)
                    if not found:
                        break
                    *lines, rest = (rest + found).split(b"\n")
                    for line in lines:
                        self._start(json.loads(line))
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _start(self, command: dict[str, str]) -> None:
        child = os.fork()
        if child == 0:
            _become_the_daemon(command)
        self._children.add(child)
        print(f"started {child}", flush=True)

    def _reap(self) -> None:
        for child in list(self._children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                self._children.discard(child)
                print(f"ended {child} {os.waitstatus_to_exitcode(status)}", flush=True)


def main() -> None:
    """Import, then serve."""
    real = types.ModuleType("time")
    vars(real).update(vars(time))
    HastyLoop.haste = float(sys.argv[2])
    hasten(HastyLoop.haste)
    shift(Path(sys.argv[1]))
    import bridge.daemon.run
    import bridge.daemon.settings  # noqa: F401

    spare("grpc", real)
    answered_in_time("bridge.platform.")
    answered_in_time("dra_v1.kube")
    # What is here now is never looked through again, and so stays shared with the children.
    gc.collect()
    gc.freeze()
    Zygote().serve()


if __name__ == "__main__":
    main()
