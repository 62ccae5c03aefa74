"""Healing: a claim that lost its device to the device plugin plane is moved elsewhere by a taint (contract E.6).

Such a claim can never be prepared. A `NoExecute` taint on its device makes the cluster delete the pod, whose
controller makes another that is sent elsewhere; whether it may is `bridge.planes.conflicts`' to say. Who is not moved
is told who holds the device and what to delete. No hold of DRA begins on a device from the moment at which the taint
is decided until the slices are known to be without it (`fence`): no pod is evicted that holds rightly (H43).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.ledger.holds import Hold, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.planes import report as told
from bridge.planes.conflicts import Leave, Loser, Move, Over, Verdict, decide
from bridge.planes.report import Report
from bridge.planes.rosters import Rosters
from bridge.platform.budget import Budget
from dra_v1.claims import HAS_NOTHING, ClaimError, ClaimRef, check_claim
from dra_v1.kube_errors import ApiError
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

LIMIT_S = 60.0
"""How long a stored taint waits for the claim to let go: the cluster deletes the pod within a second (seen on 1.37.1),
unless the claim tolerates the taint."""

NAMING_S = 5.0
"""How long to wait for the name of a pod that has a device, before people are told of it."""

AGAIN_S = 600.0
"""A claim that a taint did not move is left alone for so long."""

LOSER_S = 180.0
"""A claim that lost a device counts as one that has it for so long: the kubelet asks again at least each 90 s."""

BURST, REFILL_S = 20.0, 1.0
"""So many taints at once, then one each so many seconds: a storm of taints is a storm of evictions (H43)."""

_FIRST_S, _LONGEST_S = 0.25, 5.0
"""Pauses between two looks at the claim, in the time of which a taint stands."""

_REMEMBERED = 256


class Known(Protocol):
    """What early word knows of claims on this node."""

    def claims_on(self, driver: str, device: str) -> Collection[str]:
        """UIDs of the claims that are allocated a device, by the name that slices have for it."""
        ...


class Nothing:
    """Where there is no early word."""

    def claims_on(self, driver: str, device: str) -> Collection[str]:
        """None are known."""
        return ()


@dataclass(slots=True)
class _Taint:
    """A taint that is wanted, or was and may still be in a slice.

    Attributes:
        wanted: how many conflicts want it.
        unwanted_at: the group's mark when the last one let it go.
        wanted_at: the group's mark when the first one asked for it.
    """

    wanted: int = 0
    wanted_at: int = 0
    unwanted_at: int = 0


class Healing:
    """Acts on the verdicts. Single event loop.

    Args:
        ledger, rosters: what is held, and by what names.
        resources: to ask for the claims; None where there is no API server, then nothing is tainted.
        drivers: driver name by group.
        pool: this node's pool.
        report: told what is done and why not.
        budget: of requests that nobody waits for.
        clock: monotonic seconds.

    Attributes:
        known: what early word knows; replaced once there is any.
    """

    def __init__(
        self,
        ledger: Ledger,
        rosters: Rosters,
        resources: ResourceApi | None,
        drivers: Mapping[str, str],
        pool: str,
        report: Report,
        budget: Budget,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.known: Known = Nothing()
        self._ledger = ledger
        self._rosters = rosters
        self._resources = resources
        self._drivers = drivers
        self._pool = pool
        self._report = report
        self._clock = clock
        self._tasks: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._losers: OrderedDict[tuple[str, str, str], tuple[Loser, float]] = OrderedDict()
        self._taints: dict[tuple[str, str], _Taint] = {}
        self._marks: dict[str, int] = {}
        self._stored: dict[str, int] = {}
        self._dropped: set[str] = set()
        self._said: OrderedDict[tuple[str, str, str], told.ConflictStands] = OrderedDict()
        self._left: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()
        self._budget = budget
        self._storms = Budget(1 / REFILL_S, BURST, clock)
        self._news = asyncio.Event()
        ledger.subscribe(lambda _: self._news.set())

    # What the projection and the planes ask

    def lost(self, loser: Loser) -> None:
        """A claim cannot have a device: see to it. Called again for the same, it does nothing more."""
        if loser.key in self._tasks:
            return
        self._losers[loser.key] = (loser, self._clock() + LOSER_S)
        if len(self._losers) > _REMEMBERED:
            self._losers.popitem(last=False)
        task = asyncio.create_task(self._see_to(loser), name=f"healing of {loser.asker.claim}")
        self._tasks[loser.key] = task
        task.add_done_callback(lambda done: self._forget(loser.key, done))

    def moving(self, group: str) -> frozenset[str]:
        """The names of devices that slices have to show with the taint."""
        return frozenset(
            name for (owner, name), taint in self._taints.items() if owner == group and taint.wanted
        )

    def fence(self, group: str, shown: str) -> str:
        """Why no claim may be given this device now; empty if one may."""
        if (group, shown) not in self._taints:
            return ""
        return (
            f"{shown} is tainted for a moment, so that a claim that lost it is moved elsewhere; it is given out "
            f"again when the taint is taken back, which needs the API server"
        )

    def mark(self, group: str) -> int:
        """A number for what `moving` says now; to be given back once the slices are stored like that."""
        return self._marks.get(group, 0)

    def stored(self, group: str, mark: int) -> None:
        """The slices of a group are as `moving` said at that mark, or later."""
        self._stored[group] = max(mark, self._stored.get(group, 0))
        for key, taint in list(self._taints.items()):
            if key[0] == group and not taint.wanted and taint.unwanted_at <= mark:
                del self._taints[key]
        self._news.set()

    def dropped(self, group: str) -> None:
        """The cluster does not keep taints (H25): nothing can be moved."""
        self._dropped.add(group)
        self._news.set()

    async def stop(self) -> None:
        """Leave every conflict as it is; the next start takes up what still stands."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One conflict

    def _forget(self, key: tuple[str, str, str], task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("healing failed", extra={"claim": key[1], "device": key[2], "error": repr(error)})

    def _decide(self, loser: Loser) -> Verdict:
        group = loser.pick.group
        rivals = [
            other.asker.claim.uid
            for other, until in self._losers.values()
            if (other.pick.group, other.shown) == (group, loser.shown) and until > self._clock()
        ]
        others = [*rivals, *self.known.claims_on(self._drivers[group], loser.shown)]
        verdict = decide(loser, self._rosters.of(group), self._ledger.account, others)
        if isinstance(verdict, Move):
            if group in self._dropped:
                return Leave("this cluster has no device taints (gate DRADeviceTaints)")
            if self._resources is None:
                return Leave("there is no API server to ask")
            given_up = self._left.get(loser.key)
            if given_up is not None and given_up[1] > self._clock():
                return Leave(given_up[0])
        return verdict

    async def _see_to(self, loser: Loser) -> None:
        verdict = self._decide(loser)
        if isinstance(verdict, Move) and (pause := self._storms.claim()):
            await asyncio.sleep(pause)
            verdict = self._decide(loser)
        match verdict:
            case Move(holders):
                self._report.tell(told.Healing(loser.pick.group, loser.shown, loser.asker, holders))
                await self._move(loser, holders)
            case Leave(why):
                await self._leave(loser, why)
            case Over():
                self._losers.pop(loser.key, None)
                self._said.pop(loser.key, None)

    async def _leave(self, loser: Loser, why: str) -> None:
        """Say who has the device; evidence names the pod of a new hold a moment after it was made."""
        ends = self._clock() + NAMING_S
        while any(not _known(hold) for hold in self._holders(loser)) and (left := ends - self._clock()) > 0:
            self._news.clear()
            await self._wait(left)
        news = told.ConflictStands(loser.pick.group, loser.shown, loser.asker, self._holders(loser), why)
        if self._said.get(loser.key) != news:  # the kubelet asks again and again
            self._said[loser.key] = news
            if len(self._said) > _REMEMBERED:
                self._said.popitem(last=False)
            self._report.tell(news)

    def _holders(self, loser: Loser) -> tuple[Hold, ...]:
        try:
            self._ledger.account.check_room(loser.pick)
        except Refused as refused:
            return refused.blockers
        return ()

    async def _move(self, loser: Loser, holders: tuple[Hold, ...]) -> None:
        """Taint, wait until it is over, take the taint back."""
        group = loser.pick.group
        wanted_at = self._want(group, loser.shown)
        try:
            why = await self._until_over(loser, wanted_at)
        finally:
            self._unwant(group, loser.shown)
        if why:
            self._losers.pop(loser.key, None)
            self._report.tell(told.Healed(group, loser.shown, loser.asker, why))
            return
        why = (
            "this cluster has no device taints (gate DRADeviceTaints)"
            if group in self._dropped
            else "the cluster did not move its pod for the taint: the claim tolerates it, or nobody evicts"
        )
        self._left[loser.key] = (why, self._clock() + AGAIN_S)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        await self._leave(loser, why)

    async def _until_over(self, loser: Loser, wanted_at: int) -> str:
        """Why it is over; empty if the taint did not help within its time."""
        pause, ends = _FIRST_S, float("inf")
        next_look = self._clock() + pause
        while True:
            self._news.clear()
            match self._decide(loser):
                case Over(why):
                    return why
                case Leave(why):
                    return "" if loser.pick.group in self._dropped else why
                case Move():
                    pass
            now = self._clock()
            if ends == float("inf") and self._stored.get(loser.pick.group, 0) >= wanted_at:
                ends = now + LIMIT_S
            if now >= next_look:
                if await self._has_let_go(loser):
                    return "the claim has let go of it"
                pause = min(pause * 2, _LONGEST_S)
                next_look = self._clock() + pause
            if now >= ends:
                return ""
            await self._wait(min(next_look, ends) - self._clock())

    async def _wait(self, seconds: float) -> None:
        """Wait, or until anything changed."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._news.wait()
        except TimeoutError:
            return

    async def _has_let_go(self, loser: Loser) -> bool:
        """Whether the claim is gone, or no longer allocated the device. Failure to ask means no."""
        assert self._resources is not None
        ref = ClaimRef(loser.asker.claim.namespace, loser.asker.claim.name, loser.asker.claim.uid)
        await self._budget.take()
        try:
            body = await self._resources.find_claim(ref.namespace, ref.name)
        except (ApiError, NoResourceApi) as error:
            log.warning(
                "cannot tell whether a claim was moved", extra={"claim": str(ref), "error": str(error)}
            )
            return False
        if body is None:
            return True
        found = check_claim(body, ref, self._drivers[loser.pick.group])
        if isinstance(found, ClaimError):
            return found.problem in HAS_NOTHING
        return not any(r.pool == self._pool and r.device == loser.shown for r in found.results)

    # Taints

    def _want(self, group: str, shown: str) -> int:
        taint = self._taints.setdefault((group, shown), _Taint())
        taint.wanted += 1
        if taint.wanted == 1:
            taint.wanted_at = self._next_mark(group)
        return taint.wanted_at

    def _unwant(self, group: str, shown: str) -> None:
        taint = self._taints[group, shown]
        taint.wanted -= 1
        if not taint.wanted:
            taint.unwanted_at = self._next_mark(group)

    def _next_mark(self, group: str) -> int:
        self._marks[group] = self._marks.get(group, 0) + 1
        self._rosters.pulses[group].ring()
        return self._marks[group]


def _known(hold: Hold) -> bool:
    return not isinstance(hold.holder, PodHolder) or hold.holder.known
