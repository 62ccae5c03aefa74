"""One group's switch of modes: takes up what is wanted, does what is due, and writes down each step before the next.

What follows what is `bridge.planes.modes`'; here each step is on disk before anything is shown otherwise, so that a
daemon that dies goes on where it was. Nothing here touches a hold: pods keep what they have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bridge.config import Group, Mode
from bridge.daemon.admitting import Admitting
from bridge.daemon.counted import Counted
from bridge.daemon.groups import GroupRunner
from bridge.daemon.obstacles import Obstacle, obstacle, unregistered
from bridge.daemon.own_node import OwnNode
from bridge.daemon.serving import NotServed, Serving
from bridge.ledger.holds import Hold, Plane
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.ledger.switches import Gate, Switch
from bridge.planes import modes
from bridge.planes import report as told
from bridge.planes.mode_words import Circumstances, Refusal, tell
from bridge.planes.modes import Due, GroupMode, Options, Phase, Reason, Wanted
from bridge.planes.regrants import Witnesses
from bridge.planes.report import Report
from bridge.planes.rosters import Rosters
from bridge.platform.budget import Budget
from bridge.platform.cdi import CdiError
from bridge.platform.pulse import Pulse
from dra_v1 import points
from dra_v1.resource_api import NoResourceApi, ResourceApi
from dra_v1.sockets import SocketError

log = logging.getLogger(__name__)

WAITING_S = 60.0
"""A group that is on its way for so long is told of on the Node."""

AGAIN_S = 60.0
"""Between two looks at what a switch was refused for; a change of the Node is looked at once."""

CANCEL_S = 0.5
"""Before what did not heed its cancellation is cancelled again."""

RETRY_S = 5.0
"""Before what could not be done is tried again."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all groups' switches work with."""

    ledger: Ledger
    rosters: Rosters
    node: OwnNode
    resources: ResourceApi | None
    budget: Budget
    witnesses: Witnesses
    going_on: Callable[[], Awaitable[frozenset[str] | None]]
    report: Report


class GroupSwitch:
    """One group's. Single event loop; nothing is done before `begin`.

    Attributes:
        now: its mode as everybody may see it.
        changed: rung when that differs.
        admitting: whether the kubelet takes its pods up again.
    """

    def __init__(self, group: Group, around: Surroundings) -> None:
        self._group = group
        self._around = around
        self._switch = around.ledger.account.switch_of(group.name) or modes.settled(
            group.name, group.mode, time.time()
        )
        self._refusal: Refusal | None = None
        self._trouble = ""
        self._phase_at = time.monotonic()
        self._waiting_told = False
        self._wake = asyncio.Event()
        self._counted = Counted(group, around.node, around.rosters, around.ledger)
        self._doing: tuple[Due, asyncio.Task[None]] | None = None
        self._doing_with: GroupRunner | None = None
        self._closing: asyncio.Task[None] | None = None
        self._serving: Serving | None = None
        self.changed = Pulse()
        self.admitting = Admitting(self._held, around.witnesses, around.going_on, self._show)
        self.now: GroupMode = tell(self._switch, group, self._circumstances())

    @property
    def phase_seconds(self) -> float:
        """For how long it has been in its phase."""
        return time.monotonic() - self._phase_at

    async def begin(self) -> None:
        """Before anything is served: begin in the wanted mode where there was none before, else show what the ledger
        says."""
        if self._written() is None:
            wanted = self._wanted()
            mode = (wanted.mode if wanted is not None else None) or self._group.mode
            self._switch = modes.settled(self._group.name, mode, time.time())
            await self._write(self._switch)
        if not self._switch.device_plugin.offers:
            await self.admitting.look()
        self._show()

    async def run(self, serving: Serving) -> None:
        """Go where it is wanted, until cancelled."""
        self._serving = serving
        self._around.ledger.subscribe(lambda parts: self._held_less())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(self._around.node.changed))
            tasks.create_task(self._follow(serving.changed))
            tasks.create_task(self.admitting.run())
            tasks.create_task(self._go())

    # Following

    async def _follow(self, pulse: Pulse) -> None:
        with pulse.listen() as news:
            while True:
                await news.wait()
                self._show()
                self._wake.set()

    def _held_less(self) -> None:
        """The ledger changed: a device plugin that is closed may have nothing out any more."""
        if self._switch.device_plugin is Gate.CLOSED and not self._held():
            self._wake.set()

    async def _go(self) -> None:
        try:
            while True:
                self._wake.clear()
                await self._decide()
                await self._do_what_is_due()
                await self._tidy()
                self._tell()
                await self._wait()
        finally:
            await self._stop_doing()
            if self._closing is not None:
                await asyncio.gather(self._closing, return_exceptions=True)

    async def _wait(self) -> None:
        """Until there is news, what was begun is done, or something has to be looked at or told again."""
        waking = asyncio.create_task(self._wake.wait())
        doing = [self._doing[1]] if self._doing is not None else []
        try:
            await asyncio.wait(
                [waking, *doing], timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waking.cancel()
        if self._doing is not None and self._doing[1].done():
            (due, task), self._doing = self._doing, None
            await self._finish(due, task)

    def _patience(self) -> float | None:
        if self._trouble:
            return RETRY_S
        if self._refusal is not None and self._refusal.reason is not Reason.UNKNOWN_MODE:
            return RETRY_S if self._refusal.reason is Reason.NOT_CHECKED else AGAIN_S
        if not modes.is_settled(self._switch) and not self._waiting_told:
            return max(0.0, WAITING_S - self.phase_seconds) + 0.1
        return None

    # What is wanted

    def _wanted(self) -> Wanted | None:
        """What is asked for; None while that cannot be told, then what the ledger says goes on."""
        node = self._around.node
        if node.view is None and node.asked:
            return None
        labels = node.view.labels if node.view is not None else {}
        return modes.wanted(self._group.name, self._group.mode, labels)

    def _options(self) -> Options:
        """How it is to be done. While that cannot be told nobody is put to a disadvantage."""
        view = self._around.node.view
        return Options(wait_for_holders=True) if view is None else Options.read(view.annotations)

    async def _decide(self) -> None:
        if self._written() is None:  # `begin` could not
            await self._step_or_pause(self._switch)
        wanted = self._wanted()
        if wanted is None:
            return
        if wanted.mode is None:
            self._refuse(wanted, Obstacle(Reason.UNKNOWN_MODE, wanted.problem))
            return
        if wanted.mode is self._switch.target:
            self._refusal = None
            if modes.is_settled(self._switch) and self._switch == self._written():
                self._trouble = ""  # of a step that nobody asks for any more
            return
        around = self._around
        found = await obstacle(
            self._switch, wanted.mode, self._group, self._options(), around.resources, around.budget
        )
        if found is None and self._goes_dark(wanted.mode) and self._serving is not None:
            found = await unregistered(self._group, self._serving)
        if found is not None:
            self._refuse(wanted, found)
            return
        self._refusal = None
        turned = modes.turn(self._switch, wanted.mode, time.time(), same_name=self._group.keep_resource_name)
        log.info(
            "mode switching",
            extra={
                "group": self._group.name,
                "mode": str(self._switch.mode),
                "to": str(wanted.mode),
                "by": wanted.source,
            },
        )
        await self._step_or_pause(turned)

    def _goes_dark(self, mode: Mode) -> bool:
        """Whether the device plugin would close before DRA has ever been open."""
        closes = modes.closes_device_plugin(self._switch, mode) and self._group.keep_resource_name
        return closes and self._switch.dra is Gate.CLOSED

    def _refuse(self, wanted: Wanted, why: Obstacle) -> None:
        before = self._refusal
        if before is not None and (before.reason, before.text) == (why.reason, why.text):
            return
        self._refusal = Refusal(why.reason, why.text, time.time())
        asked = str(wanted.mode) if wanted.mode is not None else f"what the {wanted.source} says"
        self._around.report.tell(told.ModeRefused(self._group.name, asked, self._switch.target, why.text))

    # What is due

    async def _do_what_is_due(self) -> None:
        due, runner = modes.due(self._switch), self._runner()
        # A runner that was closed meanwhile, for its group was refused, confirms nothing any more.
        if self._doing is not None and (self._doing[0] is not due or self._doing_with is not runner):
            await self._stop_doing()
        if due is not None and self._doing is None:
            self._doing_with = runner
            self._doing = (due, asyncio.create_task(self._do(due), name=f"mode of {self._group.name}: {due}"))

    def _runner(self) -> GroupRunner | None:
        return self._serving.runner(self._group.name) if self._serving is not None else None

    async def _stop_doing(self) -> None:
        if self._doing is not None:
            (_, task), self._doing = self._doing, None
            while (
                not task.done()
            ):  # what ends servers may end just then, and swallow a cancellation (wait_for of 3.11)
                task.cancel()
                await asyncio.wait([task], timeout=CANCEL_S)

    async def _do(self, due: Due) -> None:
        """Do it, and return when it is confirmed. Raises what keeps it from being done."""
        assert self._serving is not None, "set where it begins to run"
        if due in (Due.LIST, Due.STORE):
            await self._serving.open(self._group, Plane.DEVICE_PLUGIN if due is Due.LIST else Plane.DRA)
        runner = self._runner()
        if runner is None:
            raise NotServed(f"group {self._group.name} is refused; its own error says why")
        match due:
            case Due.LIST:
                await runner.listed()
                await self._counted.in_(self._wake.set)  # what is said of it changes meanwhile
            case Due.UNLIST:
                await runner.sent()
            case Due.STORE:
                await runner.published()
            case Due.WITHDRAW:
                await runner.stored()
            case Due.ALLOCATABLE:
                await self._counted.out(self._wake.set)

    async def _finish(self, due: Due, task: asyncio.Task[None]) -> None:
        try:
            task.result()
        except (NotServed, SocketError, CdiError, NoResourceApi, RuntimeError, LedgerError) as error:
            self._fail(str(error))
            await asyncio.sleep(RETRY_S)
            return
        same = self._group.keep_resource_name
        await self._step_or_pause(modes.achieved(self._switch, due, time.time(), same_name=same))

    def _fail(self, error: str) -> None:
        if error != self._trouble:
            log.error("mode switch is held up", extra={"group": self._group.name, "error": error})
        self._trouble = error
        self._tell()

    # Steps

    async def _step_or_pause(self, after: Switch) -> None:
        """Write a step down, then show it; what cannot be written is decided, or found done, again after a pause."""
        if not await self._step(after):
            await asyncio.sleep(RETRY_S)

    async def _step(self, after: Switch) -> bool:
        """Whether it is written, and shown."""
        before = self._switch
        if after != self._written() and not await self._write(after):
            return False
        self._trouble = ""
        if after == before:
            self._tell()
            return True
        self._switch = after
        self._show()
        if modes.phase(before) is not modes.phase(after):
            self._phase_at, self._waiting_told = time.monotonic(), False
        if modes.is_settled(after):
            if before.mode is not after.mode:
                self._around.report.tell(told.ModeSwitched(self._group.name, after.mode, before.mode))
            else:
                log.info("mode stays", extra={"group": self._group.name, "mode": str(after.mode)})
        self._wake.set()
        return True

    def _written(self) -> Switch | None:
        return self._around.ledger.account.switch_of(self._group.name)

    async def _write(self, after: Switch) -> bool:
        """Whether it is on disk."""
        try:
            points.reached(points.Point.MODE_STEPPING)
            await self._around.ledger.switch(after)
            points.reached(points.Point.MODE_STEPPED)
        except LedgerError as error:
            self._fail(str(error))
            return False
        return True

    async def _tidy(self) -> None:
        """Serve the device plugin no more when it has nothing to offer, nothing to tell and nothing out."""
        runner = self._runner()
        done = self._switch.device_plugin is Gate.CLOSED and not self._held()
        if done and runner is not None and runner.lists:
            # Apart, for the end of a server that is cancelled just then swallows the cancellation (wait_for of 3.11).
            self._closing = asyncio.create_task(runner.close_device_plugin())
            await asyncio.shield(self._closing)
            self._closing = None

    # What is shown and said

    def _held(self) -> Sequence[Hold]:
        return self._around.ledger.account.of_group(Plane.DEVICE_PLUGIN, self._group.name)

    def _show(self) -> None:
        offering = modes.offering(
            self._switch,
            same_name=self._group.keep_resource_name,
            wait_for_holders=self._options().wait_for_holders,
            admitting=self.admitting.now,
        )
        self._around.rosters.offer(self._group, offering)
        runner = self._runner()
        if runner is not None:
            runner.reconsider()
        self._tell()

    def _circumstances(self) -> Circumstances:
        node = self._around.node
        return Circumstances(
            self._wanted(),
            self._refusal,
            self._counted.allocatable,
            node.trouble if node.asked else "",
            self._held(),
            self._group.keep_resource_name and self._options().wait_for_holders,
            self._group.keep_resource_name and self.admitting.now,
            self._trouble,
        )

    def _tell(self) -> None:
        now = tell(self._switch, self._group, self._circumstances())
        if now.phase is not Phase.SETTLED and not self._waiting_told and self.phase_seconds >= WAITING_S:
            self._waiting_told = True
            if now.phase is not Phase.REFUSED:
                self._around.report.tell(
                    told.ModeWaiting(now.group, self._switch.target, now.phase, now.message)
                )
        if now != self.now:
            self.now = now
            self.changed.ring()
