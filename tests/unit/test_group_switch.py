"""One group's switch where a step cannot be written, the Node cannot be read, or the group is closed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.config import Group, Mode
from bridge.daemon import obstacles
from bridge.daemon import switch as module
from bridge.daemon.own_node import NodeView
from bridge.daemon.switch import GroupSwitch, Surroundings
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.ledger.switches import Gate, Switch
from bridge.planes import modes
from bridge.planes.modes import ACCEPT_STRANDED, LABEL, Reason
from bridge.planes.report import Report
from bridge.planes.rosters import Rosters
from bridge.platform.budget import Budget
from bridge.platform.pulse import Pulse
from dra_v1.kube import ApiError
from tests.unit.rosters import device, group, inventory

RESOURCE = "device-bridge.io/acc"


def turned(switch: Switch, mode: Mode) -> Switch:
    return modes.turn(switch, mode, 0.0, same_name=False)


class Disk(Ledger):
    """A ledger whose disk may be full.

    Attributes:
        full: how many more records of a switch do not fit.
        tried: how many were to be written.
    """

    full = 0
    tried = 0

    async def switch(self, switch: Switch) -> None:
        self.tried += 1
        if self.full:
            self.full -= 1
            self._tell(frozenset())  # as where it is read back
            raise LedgerError("disk is full")
        await super().switch(switch)


class Node:
    """The own Node; `asked`: whether there is an API server."""

    asked = True

    def __init__(self) -> None:
        self.changed = Pulse()
        self.trouble = ""
        self.view: NodeView | None = NodeView({}, {}, {RESOURCE: 1})

    def show(self, mode: Mode | None = None, allocatable: int = 0, trouble: str = "") -> None:
        self.view = NodeView({LABEL: mode} if mode else {}, {}, {RESOURCE: allocatable})
        self.trouble = trouble
        self.changed.ring()


class Runner:
    """A group that confirms everything at once, or never again once it is `closed`."""

    lists = False

    def __init__(self) -> None:
        self.closed = False
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def _answer(self) -> None:
        self.asked.set()
        await self.open.wait()

    listed = sent = published = stored = _answer

    def reconsider(self) -> None:
        """There is nothing to reconsider."""


class Serving:
    """Who serves the group."""

    def __init__(self) -> None:
        self.changed = Pulse()
        self.one: Runner | None = Runner()

    def runner(self, group: str) -> Runner | None:
        return self.one

    async def open(self, group: Group, plane: object) -> None:
        """All is open."""


class Api:
    """Resources of an API server that is away for a while."""

    away = 0
    asked = 0

    async def version(self) -> str:
        self.asked += 1
        if self.away:
            self.away -= 1
            raise ApiError(503, "", "away", "get", "resource.k8s.io")
        return "v1"


class Bench:
    """One group's switch, and what surrounds it."""

    def __init__(self, ledger: Disk, configured: Mode, same_name: bool = False) -> None:
        self.group = replace(group(configured), keep_resource_name=same_name)
        self.ledger, self.node, self.serving, self.api = ledger, Node(), Serving(), Api()
        rosters = Rosters((self.group,), inventory(device("acc0")), ledger)
        self.switch = GroupSwitch(
            self.group,
            Surroundings(
                ledger,
                rosters,
                self.node,  # type: ignore[arg-type]
                self.api,  # type: ignore[arg-type]
                Budget(),
                self,  # type: ignore[arg-type]
                self._going_on,
                Report(lambda one: None),
            ),
        )

    async def _going_on(self) -> frozenset[str]:
        return frozenset()

    async def until(self, met: Callable[[], bool], within: float = 5.0) -> None:
        with self.switch.changed.listen() as news:
            async with asyncio.timeout(within):
                while not met():
                    await news.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.switch.begin()
        task = asyncio.create_task(self.switch.run(self.serving))  # type: ignore[arg-type]
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def settled(self, mode: Mode) -> bool:
        found = self.ledger.account.switch_of("acc")
        return found is not None and modes.is_settled(found) and found.mode is mode

    def trouble(self) -> bool:
        return "disk is full" in self.switch.now.message


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Disk]:
    made = await Disk.open(tmp_path)
    assert isinstance(made, Disk)
    yield made
    await made.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)


async def test_a_switch_that_a_full_disk_kept_from_beginning_begins_when_there_is_room(
    ledger: Disk, soon: None
) -> None:
    it = Bench(ledger, Mode.DUAL)
    async with it.running():
        ledger.full = 2
        it.node.show(Mode.DRA)
        await it.until(it.trouble)
        await it.until(lambda: it.settled(Mode.DRA) and not it.trouble())


async def test_a_step_that_a_full_disk_kept_from_being_written_is_written_later(
    ledger: Disk, soon: None
) -> None:
    await ledger.switch(turned(modes.settled("acc", Mode.DEVICE_PLUGIN, 0.0), Mode.DUAL))
    it = Bench(ledger, Mode.DUAL)
    ledger.full = 2
    async with it.running():
        await it.until(it.trouble)
        await it.until(lambda: it.settled(Mode.DUAL) and not it.trouble())


@pytest.mark.parametrize("gate", [None, Gate.CLOSED])
async def test_while_the_disk_is_full_a_step_is_tried_after_a_pause_and_not_without_end(
    ledger: Disk, gate: Gate | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed: each failure is news of a ledger without holds of the device plugin, which wakes the switch."""
    paused, go_on = asyncio.Event(), asyncio.Event()

    async def pause(seconds: float, sleep: Any = asyncio.sleep) -> None:
        if seconds != module.RETRY_S:
            await sleep(seconds)
            return
        paused.set()
        await go_on.wait()

    if gate is None:
        await ledger.switch(turned(modes.settled("acc", Mode.DEVICE_PLUGIN, 0.0), Mode.DUAL))
    else:
        begun = turned(modes.settled("acc", Mode.DEVICE_PLUGIN, 0.0), Mode.DRA)
        await ledger.switch(replace(begun, device_plugin=gate, dra=Gate.OPENING))
    it = Bench(ledger, Mode.DUAL if gate is None else Mode.DRA)
    ledger.tried, ledger.full = 0, 50
    with monkeypatch.context() as patched:
        patched.setattr(module.asyncio, "sleep", pause)
        async with it.running():
            async with asyncio.timeout(5):
                await paused.wait()
            assert ledger.tried == 1 and it.trouble(), "it waits before the second try"


async def test_what_could_not_be_written_is_no_trouble_when_it_is_not_wanted_any_more(
    ledger: Disk, soon: None
) -> None:
    it = Bench(ledger, Mode.DUAL)
    async with it.running():
        ledger.full = 10**6
        it.node.show(Mode.DRA)
        await it.until(it.trouble)
        it.node.show()
        await it.until(lambda: not it.trouble())
        assert it.settled(Mode.DUAL)


async def test_where_a_group_begins_is_written_when_there_is_room(ledger: Disk, soon: None) -> None:
    it = Bench(ledger, Mode.DUAL)
    ledger.full = 2
    async with it.running():
        await it.until(lambda: it.settled(Mode.DUAL) and not it.trouble())


async def test_what_could_not_be_checked_is_looked_at_again_soon(ledger: Disk, soon: None) -> None:
    it = Bench(ledger, Mode.DEVICE_PLUGIN)
    it.api.away = 2
    async with it.running():
        it.node.show(Mode.DUAL)
        await it.until(lambda: it.switch.now.reason is Reason.NOT_CHECKED)
        await it.until(lambda: it.settled(Mode.DUAL))
        assert it.api.asked == 3


async def test_a_node_that_cannot_be_read_has_not_counted_what_is_listed(ledger: Disk, soon: None) -> None:
    await ledger.switch(turned(modes.settled("acc", Mode.DRA, 0.0), Mode.DUAL))
    it = Bench(ledger, Mode.DUAL)
    it.node.show(trouble="it is away")
    async with it.running():
        assert it.serving.one is not None
        await it.serving.one.asked.wait()
        await it.until(lambda: it.switch.now.reason is Reason.NODE_UNREADABLE)
        assert not it.settled(Mode.DUAL)
        it.node.show(allocatable=1)
        await it.until(lambda: it.settled(Mode.DUAL))


async def test_what_a_closed_runner_would_never_confirm_is_asked_of_the_next(
    ledger: Disk, soon: None
) -> None:
    await ledger.switch(turned(modes.settled("acc", Mode.DEVICE_PLUGIN, 0.0), Mode.DUAL))
    it = Bench(ledger, Mode.DUAL)
    first = it.serving.one
    assert first is not None
    first.open.clear()
    async with it.running():
        await first.asked.wait()
        it.serving.one = Runner()
        it.serving.changed.ring()
        await it.until(lambda: it.settled(Mode.DUAL))


async def test_a_name_is_not_closed_for_a_driver_that_the_kubelet_does_not_take(
    ledger: Disk, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obstacles, "REGISTERED_S", 0.02)
    it = Bench(ledger, Mode.DEVICE_PLUGIN, same_name=True)
    runner = it.serving.one
    assert runner is not None
    runner.open.clear()
    async with it.running():
        it.node.view = NodeView({LABEL: Mode.DRA}, {ACCEPT_STRANDED: "*"}, {})
        it.node.changed.ring()
        await it.until(lambda: it.switch.now.reason is Reason.NOT_CHECKED)
        assert "was not registered and published" in it.switch.now.message
        assert it.settled(Mode.DEVICE_PLUGIN)
        runner.open.set()
        await it.until(lambda: it.settled(Mode.DRA))
