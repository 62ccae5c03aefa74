"""The daemon as a process that can be told where to die; the other end of `tests.crash.zygote`."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bridge.daemon.settings import Settings
from dra_v1.points import Point
from tests.crash.zygote import POINTS

ROOT = Path(__file__).parents[2]


class Zygote:
    """One process that forks daemons, one at a time.

    Attributes:
        pipe: where the points that a daemon reaches arrive, a byte each; not blocking.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zygote-")
        shared = Path(self._folder.name) / "armed"
        shared.write_bytes(bytes(2))
        with shared.open("r+b") as file:
            self._armed = mmap.mmap(file.fileno(), 2)
        self.pipe, writing = os.pipe()
        os.set_blocking(self.pipe, False)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote", str(shared), str(writing)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[writing],
        )
        os.close(writing)

    def arm(self, point: Point | None, times: int = 1) -> None:
        """Let the daemon die when it reaches a point for so many times from now on; None: let it live."""
        self._armed[1] = 0
        if point is not None:
            self._armed[0] = POINTS.index(point)
            self._armed[1] = times

    def order(self, settings: Settings, log: Path) -> int:
        """Fork a daemon; its process number. Blocks until it is forked."""
        assert self._process.stdin is not None
        print(
            json.dumps({"settings": settings.dump(), "log": str(log)}), file=self._process.stdin, flush=True
        )
        return int(self.answer())

    def answer(self) -> str:
        """The next line that it says. Blocks."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks daemons ended: {self._process.wait()}")
        return line

    def close(self) -> None:
        """End it, and what it forked."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        os.close(self.pipe)
        self._armed.close()
        self._folder.cleanup()


class Mortal:
    """The daemon of one node, started, dead, and started again.

    Attributes:
        reached: the points that it reached, in order, over all its lives.
        passed: called after each of them.
    """

    def __init__(self, zygote: Zygote, settings: Settings, log: Path) -> None:
        self.settings, self.log = settings, log
        self.reached: list[Point] = []
        self.passed: Callable[[], None] = lambda: None
        self._zygote = zygote
        self._pid = 0
        self._code: asyncio.Task[str] | None = None

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._zygote.pipe, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._code is not None:
            await self.kill()
        self._zygote.arm(None)
        self._read()
        asyncio.get_running_loop().remove_reader(self._zygote.pipe)

    async def start(self) -> None:
        """Fork it. Whether it serves is for the kubelet to see."""
        self._pid = await asyncio.to_thread(self._zygote.order, self.settings, self.log)
        self._code = asyncio.create_task(asyncio.to_thread(self._zygote.answer))

    def dies_at(self, point: Point, times: int = 1) -> None:
        """Let it die at a point."""
        self._zygote.arm(point, times)

    def terminate(self) -> None:
        """SIGTERM."""
        os.kill(self._pid, signal.SIGTERM)

    async def kill(self) -> None:
        """`kill -9`."""
        if self._code is not None and not self._code.done():
            os.kill(self._pid, signal.SIGKILL)
        await self.ended()

    async def ended(self, within: float = 20) -> int:
        """Wait until it has ended; its exit code, which is negative for a signal. Raises TimeoutError."""
        assert self._code is not None, "it was not started"
        async with asyncio.timeout(within):
            code = int(await asyncio.shield(self._code))
        self._code = None
        self._zygote.arm(None)
        self._read()
        return code

    def _read(self) -> None:
        try:
            while new := os.read(self._zygote.pipe, 4096):
                self.reached += [POINTS[index] for index in new]
        except BlockingIOError:
            pass
        self.passed()
