"""Find out when a claim that is not prepared is no longer allocated: the second half of S4 for DRA.

The kubelet unprepares, then the claim controller deallocates, as a rule within a second; nobody tells us. Each
such claim is read by GET with growing pauses up to a minute (design 2: no watch on claims of the whole cluster). Of
those that are reserved, or linger, `bridge.planes.early_word` says when to ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from bridge.ledger.holds import ClaimHolder, Hold, Phase, Plane
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.report import Report
from bridge.platform.budget import Budget
from dra_v1.claims import HAS_NOTHING, Claim, ClaimError, ClaimRef, check_claim
from dra_v1.kube_errors import ApiError, Json
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

_FIRST_S = 0.25
_LINGERING_S = 2.0
_LONGEST_S = 60.0
_AT_ONCE = 8
_OPEN = (Phase.RELEASING, Phase.RESERVED)


class Deallocations:
    """Watches over the claims that are being released.

    `drivers`: driver name by group; `pool`: this node's; `resources`: None where no group is offered through DRA;
    `budget`: of requests that nobody waits for.

    Attributes:
        lingers: told of a claim that is still allocated seconds after it was unprepared.
    """

    def __init__(
        self,
        ledger: Ledger,
        resources: ResourceApi | None,
        drivers: Mapping[str, str],
        pool: str,
        report: Report,
        budget: Budget,
    ) -> None:
        self._ledger = ledger
        self._resources = resources
        self._budget = budget
        self._drivers = drivers
        self._pool = pool
        self._report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self.lingers: Callable[[ClaimHolder], None] = lambda claim: None

    def start(self) -> None:
        """Take up what the ledger has from before."""
        for hold in self._ledger.account.on_plane(Plane.DRA):
            if hold.phase is Phase.RELEASING:
                self.expect(hold.holder.uid)

    async def stop(self) -> None:
        """Stop asking; the ledger keeps what is open."""
        tasks = [*self._tasks.values(), *self._asking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expect(self, uid: str) -> None:
        """Begin to ask for a claim that was just unprepared; one that is asked for seldom is asked for anew."""
        if not self._holds(uid, Phase.RELEASING):
            return
        if (earlier := self._tasks.get(uid)) is not None:
            earlier.cancel()
        task = asyncio.create_task(self._until_deallocated(uid), name=f"deallocation-{uid}")
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._forget(uid, done))

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(uid) is task:
            del self._tasks[uid]

    async def check_now(self, uid: str) -> None:
        """Ask once, and end the holds that are proven free. Failure to ask leaves them."""
        holds = self._holds(uid)
        if not holds or self._resources is None:
            return
        holder = holds[0].holder
        assert isinstance(holder, ClaimHolder)
        async with self._gate:
            try:
                body = await self._resources.find_claim(holder.namespace, holder.name)
            except (ApiError, NoResourceApi) as error:
                extra = {"claim": f"{holder.namespace}/{holder.name}", "error": str(error)}
                log.warning("cannot tell whether a claim is deallocated", extra=extra)
                return
        await self._judge(uid, body, holds)

    async def ask(self, uids: Collection[str], *, within: float | None = None) -> bool:
        """Ask once about each, and no longer than `within` seconds; whether any of their holds has ended by then.

        A question that is not answered by then is not taken back: what it proves is still worth knowing.
        """
        before = sum(len(self._holds(uid)) for uid in uids)
        asking = [asyncio.create_task(self.check_now(uid), name=f"deallocation-{uid}") for uid in uids]
        for task in asking:
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        done, _ = await asyncio.wait(asking, timeout=within)
        for task in done:
            task.result()
        return sum(len(self._holds(uid)) for uid in uids) < before

    async def judge(self, uid: str, body: Json | None) -> None:
        """End the holds that a claim, as it was read just now (None: it is gone), proves free."""
        await self._judge(uid, body, self._holds(uid))

    def would_free(self, uid: str, body: Json | None) -> bool:
        """Whether a claim as it was heard of, which is no proof, lacks anything that is held for it."""
        holds = self._holds(uid)
        still = self._still(holds, body)
        return any(hold.share not in still[hold.group] for hold in holds)

    async def _judge(self, uid: str, body: Json | None, holds: tuple[Hold, ...]) -> None:
        """`holds` are those that were there before the claim was read: of later ones it proves nothing."""
        for group, still in self._still(holds, body).items():
            await self._end(group, uid, still, holds)

    def _still(self, holds: tuple[Hold, ...], body: Json | None) -> dict[str, frozenset[str]]:
        """By group of a claim's holds, the shares that it still has."""
        found: dict[str, frozenset[str]] = {}
        for hold in holds:
            found[hold.group] = frozenset()
            if body is not None:
                assert isinstance(hold.holder, ClaimHolder)
                ref = ClaimRef(hold.holder.namespace, hold.holder.name, hold.holder.uid)
                claim = check_claim(body, ref, self._drivers[hold.group])
                found[hold.group] = shares_still_allocated(claim, self._pool)
        return found

    async def _end(self, group: str, uid: str, still: frozenset[str], holds: tuple[Hold, ...]) -> None:
        asked = {hold.id for hold in holds}
        now = [h for h in self._ledger.account.of_claim(group, uid) if h.phase in _OPEN]
        freed = [h for h in now if h.id in asked and h.share not in still]
        if not freed:
            return
        kept = still | {h.share for h in now if h.id not in asked}
        try:
            ended = await self._ledger.deallocated(group, uid, kept)
        except LedgerError as error:
            log.error("cannot record a release", extra={"group": group, "error": str(error)})
            return
        if ended:  # it may have ended otherwise meanwhile
            self._report.ended(
                Plane.DRA, group, [h.share for h in ended], str(ended[0].holder), "the claim is deallocated"
            )

    def _holds(self, uid: str, *phases: Phase) -> tuple[Hold, ...]:
        account = self._ledger.account
        return tuple(
            hold
            for group in self._drivers
            for hold in account.of_claim(group, uid)
            if hold.phase in (phases or _OPEN)
        )

    async def _until_deallocated(self, uid: str) -> None:
        pause = _FIRST_S
        while self._holds(uid, Phase.RELEASING):
            await self._budget.take()
            await self.check_now(uid)
            if not (holds := self._holds(uid, Phase.RELEASING)):
                return
            if pause == _LINGERING_S:
                assert isinstance(holds[0].holder, ClaimHolder)
                self.lingers(holds[0].holder)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_S)


def shares_still_allocated(found: Claim | ClaimError, pool: str) -> frozenset[str]:
    """The shares of a pool that a claim, as it is now, still has; none if another claim has its name (H6).

    Raises ValueError for an error that does not tell; the caller keeps those from here.
    """
    if isinstance(found, ClaimError):
        if found.problem not in HAS_NOTHING:
            raise ValueError(f"this proves nothing about a claim's shares: {found}")
        return frozenset()
    return frozenset(r.share_id or r.device for r in found.results if r.pool == pool and not r.admin_access)
