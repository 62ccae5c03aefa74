"""The daemon as a campaign has it: a real process that is started by a fork, killed, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import yaml

from bridge.daemon.settings import Settings
from bridge.sandbox.daemon import config_for
from bridge.sandbox.paths import Paths
from tests.campaign.launcher import CLOCK_BYTES


class Launcher:
    """A zygote's other end; one serves any number of daemons, one after the other or side by side.

    `folder`: where the clock of its daemons lies.
    """

    def __init__(self, folder: Path, haste: float) -> None:
        self.haste = haste
        self._clock = folder / "clock"
        self._clock.write_bytes(bytes(CLOCK_BYTES))
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._started: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()
        self._ends: dict[int, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Launcher:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.campaign.launcher",
            str(self._clock),
            str(self.haste),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None and self._reader is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            word, pid, *code = line.decode().split()
            if word == "started":
                self._started.put_nowait((int(pid), self._end_of(int(pid))))
            else:
                self._end_of(int(pid)).set_result(int(code[0]))

    def _end_of(self, pid: int) -> asyncio.Future[int]:
        """A life's begin and its end ask for this once each, in any order; the number may have another life later."""
        end = self._ends.pop(pid, None)
        if end is None:
            end = self._ends[pid] = asyncio.get_running_loop().create_future()
        return end

    def set_clock(self, seconds: float) -> None:
        """Move the wall clock of the daemons, for good or until it is set again."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    async def start(self, settings: str, log: Path, plant: str) -> tuple[int, asyncio.Future[int]]:
        """Start a daemon; its pid and its end. One at a time."""
        assert self._process is not None and self._process.stdin is not None
        command = {"settings": settings, "log": str(log), "plant": plant}
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(30):
            return await self._started.get()


class Daemon:
    """The daemon of one sandbox.

    Attributes:
        log: what it says, of all its lives.
        state: the folder of its ledger.
        deaths: exit codes of lives that ended without being told to.
    """

    def __init__(
        self, launcher: Launcher, paths: Paths, node: str, groups: list[dict[str, object]], plant: str = ""
    ) -> None:
        self._launcher, self._plant = launcher, plant
        config = config_for(paths, groups)
        daemon = config["daemon"]
        assert isinstance(daemon, dict)
        daemon["releaseGraceSeconds"] = 30
        file = paths.base / "bridge.yaml"
        file.write_text(yaml.safe_dump(config))
        self.log = paths.base / "bridge.log"
        self.state = paths.plugins / "device-bridge"
        self._settings = Settings(
            config=file,
            node_name=node,
            kubeconfig=paths.kubeconfig,
            dev_root=paths.root / "dev",
            sys_root=paths.root / "sys",
            log_format="text",
        )
        self._pid = 0
        self._end: asyncio.Future[int] | None = None
        self._lock = asyncio.Lock()
        self.deaths: list[int] = []

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._end is not None and not self._end.done()

    async def start(self, *, accept_empty_ledger: bool = False) -> None:
        """Start it, if it does not run; whether it serves is for the kubelet to see."""
        async with self._lock:
            if self.running:
                return
            if self._end is not None and (code := self._end.result()) not in (
                -signal.SIGKILL,
                -signal.SIGTERM,
                0,
            ):
                self.deaths.append(code)
            settings = replace(self._settings, accept_empty_ledger=accept_empty_ledger)
            self._pid, self._end = await self._launcher.start(settings.dump(), self.log, self._plant)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    async def kill(self) -> None:
        """`kill -9`; returns when it is gone."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it in ten seconds."""
        self.signal(signal.SIGTERM)
        try:
            await self.ended(10)
        except TimeoutError:
            await self.kill()

    async def ended(self, within: float = 30) -> None:
        """Wait for its end."""
        if self._end is not None:
            await asyncio.wait_for(asyncio.shield(self._end), within)

    def limit_files(self, size: int | None) -> None:
        """Let no file of its grow beyond a size, as on a full disk (EFBIG instead of ENOSPC); None lifts it."""
        if self.running:
            limit = resource.RLIM_INFINITY if size is None else size
            with suppress(ProcessLookupError):
                resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
