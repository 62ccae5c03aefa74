"""The disturbances of a simulated node, each a short story with a beginning and an end that the journal knows.

They run beside the history and beside each other; what would only undo another one's work (two outages of the API
server) is passed over. One at a time has the daemon's life in its hands, and one the kubelet's.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from bridge.sandbox.kubelet import checkpoint
from bridge.sandbox.node import Sandbox
from tests.campaign.daemon import Daemon, Launcher
from tests.campaign.plan import Args
from tests.campaign.witness import Witness

T = TypeVar("T")
Story = Callable[["Faults", str, Args], Awaitable[None]]

FORBIDDEN = (
    ("get", "resourceclaims"),
    ("list", "resourceslices"),
    ("watch", "resourceslices"),
    ("create", "resourceslices"),
    ("update", "resourceslices"),
    ("list", "pods"),
    ("watch", "pods"),
    ("*", "*"),
)
CLOCK_STEPS_S = (-400 * 86400.0, -3600.0, -31.0, 0.0, 31.0, 3600.0, 400 * 86400.0)
LATENCIES_S = (0.01, 0.03, 0.1, 0.2)
SETTLED_S = 0.5
GARBAGE = b"\xff\x00garbage" * 1024


class Faults:
    """What can go wrong on one sandbox.

    Args:
        drained: waits until no pod is left on the node; what an operator does before he accepts an empty ledger.
    """

    def __init__(
        self,
        box: Sandbox,
        daemon: Daemon,
        launcher: Launcher,
        witness: Witness,
        drained: Callable[[], Awaitable[None]],
    ) -> None:
        self._box, self._daemon, self._launcher, self._witness = box, daemon, launcher, witness
        self._drained = drained
        self._daemon_lock, self._kubelet_lock = asyncio.Lock(), asyncio.Lock()
        self._under_way: set[str] = set()
        self.devices = sorted(str(path.relative_to(box.paths.root)) for path in _nodes(box))

    async def happen(self, sort: str, args: Args) -> None:
        """Let one happen from its beginning to its end."""
        await STORIES[sort](self, sort, args)

    @contextmanager
    def _told(self, sort: str) -> Iterator[None]:
        ends = self._witness.fault(sort)
        try:
            yield
        finally:
            ends()

    @contextmanager
    def _alone(self, sort: str) -> Iterator[bool]:
        """Whether no other of this sort is under way; then none begins until this one ends."""
        if sort in self._under_way:
            yield False
            return
        self._under_way.add(sort)
        try:
            with self._told(sort):
                yield True
        finally:
            self._under_way.discard(sort)

    # -- the daemon

    async def keep_running(self) -> None:
        """Start the daemon again whenever it ends by itself, as a DaemonSet does; until cancelled."""
        while True:
            await self._daemon.ended(3600)
            async with self._daemon_lock:
                if not self._daemon.running:
                    await asyncio.sleep(0.02)
                    await self._daemon.start()

    async def _killed(self, sort: str, args: Args) -> None:
        async with self._daemon_lock:
            await asyncio.sleep(_ms(args, "after"))
            with self._told(sort):
                await self._daemon.kill()
                await asyncio.sleep(_ms(args, "down"))
                await self._daemon.start()

    async def _told_to_end(self, sort: str, args: Args) -> None:
        async with self._daemon_lock:
            with self._told(sort):
                await self._daemon.stop()
                await asyncio.sleep(_ms(args, "for") / 4)
                await self._daemon.start()

    async def _stopped(self, sort: str, args: Args) -> None:
        async with self._daemon_lock:
            with self._told(sort):
                self._daemon.signal(signal.SIGSTOP)
                await asyncio.sleep(_ms(args, "for"))
                self._daemon.signal(signal.SIGCONT)

    async def _ledger_lost(self, sort: str, args: Args) -> None:
        async with self._daemon_lock:
            with self._told(sort):
                await self._daemon.kill()
                for path in self._ledger_files():
                    path.unlink()
                await self._begin_anew()

    async def _ledger_damaged(self, sort: str, args: Args) -> None:
        async with self._daemon_lock:
            with self._told(sort):
                await self._daemon.kill()
                for path in self._ledger_files():
                    with path.open("r+b") as file:
                        file.seek(min(int(args["pick"]) * 8, path.stat().st_size // 2))
                        file.write(GARBAGE)
                await self._begin_anew()

    async def _begin_anew(self) -> None:
        """A daemon without its ledger hands out nothing: the node is drained, then an empty ledger is accepted."""
        await self._started(accept_empty_ledger=False)
        await self._drained()
        await self._daemon.kill()
        await self._started(accept_empty_ledger=True)

    async def _started(self, *, accept_empty_ledger: bool) -> None:
        """Start the daemon and wait until it serves: before, it may not have looked at its ledger."""
        since = len(self._box.observe)
        await self._daemon.start(accept_empty_ledger=accept_empty_ledger)
        await self._box.observe.wait("WatcherRegistered", since=since)

    def _ledger_files(self) -> list[Path]:
        return [
            path for path in self._daemon.state.iterdir() if "ledger" in path.name and path.suffix != ".lock"
        ]

    async def _disk_full(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                self._daemon.limit_files(max((p.stat().st_size for p in self._ledger_files()), default=0))
                await asyncio.sleep(_ms(args, "for"))
                self._daemon.limit_files(None)

    async def _clock(self, sort: str, args: Args) -> None:
        with self._told(sort):
            self._launcher.set_clock(_pick(CLOCK_STEPS_S, args))

    async def _socket(self, sort: str, args: Args) -> None:
        paths = self._box.paths
        folders = (paths.registry, paths.plugins, paths.device_plugins)
        found = sorted(
            path
            for folder in folders
            for path in folder.rglob("*.sock")
            if path.name not in ("kubelet.sock", "control.sock")
        )
        if found:
            with self._told(sort):
                _pick(found, args).unlink(missing_ok=True)

    # -- the kubelet and the runtime

    async def _kubelet_restarted(self, sort: str, args: Args) -> None:
        await self._kubelet_down(sort, 0, lambda: None)

    async def _kubelet_away(self, sort: str, args: Args) -> None:
        await self._kubelet_down(sort, _ms(args, "for"), lambda: None)

    async def _checkpoint_damaged(self, sort: str, args: Args) -> None:
        def damage() -> None:
            raw = self._checkpoint.read_bytes()
            at = int(args["pick"]) * len(raw) // 1000
            self._checkpoint.write_bytes(raw[:at] + b"x" + raw[at + 1 :])

        await self._without_news(sort, damage)

    async def _checkpoint_lost(self, sort: str, args: Args) -> None:
        await self._without_news(sort, self._checkpoint.unlink)

    async def _without_news(self, sort: str, meanwhile: Callable[[], None]) -> None:
        """The kubelet restarts without its checkpoint, a moment after the last hand-out.

        Whom a device was given to within the last tenth of a second only the checkpoint knows: without it nobody
        could tell, neither the bridge nor the kubelet.
        """
        with self._box.scheduler.paused():
            await asyncio.sleep(SETTLED_S)
            await self._kubelet_down(sort, 0, meanwhile)

    @property
    def _checkpoint(self) -> Path:
        return self._box.paths.device_plugins / checkpoint.DEVICES

    async def _kubelet_down(self, sort: str, seconds: float, meanwhile: Callable[[], None]) -> None:
        async with self._kubelet_lock:
            with self._told(sort):
                await self._box.kubelet.kill()
                await asyncio.sleep(seconds)
                if self._checkpoint.exists():
                    meanwhile()
                await self._box.kubelet.start()

    async def _runtime_silent(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                await self._box.cri.stop()
                await asyncio.sleep(_ms(args, "for"))
                await self._box.cri.start()

    async def _unplugged(self, sort: str, args: Args) -> None:
        device = "/" + _pick(self.devices, args)
        if self._box.tree.at(device).exists():
            with self._told(sort):
                self._box.tree.remove(device)
                await asyncio.sleep(_ms(args, "for"))
                self._box.tree.add(device)

    # -- the cluster

    async def _unavailable(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                self._box.api.unavailable()
                await asyncio.sleep(_ms(args, "for"))
                self._box.api.unavailable(False)

    async def _unreachable(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                await self._box.api.stop()
                await asyncio.sleep(_ms(args, "for"))
                await self._box.api.start()

    async def _forbids(self, sort: str, args: Args) -> None:
        verb, plural = _pick(FORBIDDEN, args)
        with self._alone(sort) as alone:
            if alone:
                self._box.api.forbid(verb, plural)
                await asyncio.sleep(_ms(args, "for"))
                self._box.api.allow(verb, plural)

    async def _slow(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                self._box.api.faults.latency = _pick(LATENCIES_S, args)
                await asyncio.sleep(_ms(args, "for"))
                self._box.api.faults.latency = 0

    async def _watches(self, sort: str, args: Args) -> None:
        with self._told(sort):
            self._box.api.drop_watches()

    async def _forgotten(self, sort: str, args: Args) -> None:
        with self._told(sort):
            self._box.api.registry.store.compact()
            self._box.api.drop_watches()

    async def _slices(self, sort: str, args: Args) -> None:
        with self._told(sort):
            self._box.api.registry.delete_all("resourceslices", fields=f"spec.nodeName={self._box.node}")

    async def _stale(self, sort: str, args: Args) -> None:
        with self._alone(sort) as alone:
            if alone:
                with self._box.scheduler.stale():
                    await asyncio.sleep(_ms(args, "for"))


def _ms(args: Args, key: str) -> float:
    return int(args.get(key, 0)) / 1000


def _pick(choices: Sequence[T], args: Args) -> T:
    return choices[int(args["pick"]) % len(choices)]


def _nodes(box: Sandbox) -> list[Path]:
    return [path for path in (box.paths.root / "dev").rglob("*") if path.is_file()]


STORIES: dict[str, Story] = {
    "daemon killed": Faults._killed,
    "daemon told to end": Faults._told_to_end,
    "daemon stopped for a while": Faults._stopped,
    "kubelet restarted": Faults._kubelet_restarted,
    "kubelet away": Faults._kubelet_away,
    "kubelet checkpoint damaged": Faults._checkpoint_damaged,
    "kubelet checkpoint lost": Faults._checkpoint_lost,
    "ledger damaged": Faults._ledger_damaged,
    "ledger lost": Faults._ledger_lost,
    "socket deleted": Faults._socket,
    "device unplugged": Faults._unplugged,
    "API server unavailable": Faults._unavailable,
    "API server unreachable": Faults._unreachable,
    "API server forbids": Faults._forbids,
    "API server slow": Faults._slow,
    "watches dropped": Faults._watches,
    "watch history forgotten": Faults._forgotten,
    "scheduler stale": Faults._stale,
    "clock stepped": Faults._clock,
    "disk full": Faults._disk_full,
    "runtime silent": Faults._runtime_silent,
    "slices deleted": Faults._slices,
}
"""One for each of `plan.FAULTS`."""
