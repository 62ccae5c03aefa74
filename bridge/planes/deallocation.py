"""Find out when an unprepared claim is no longer allocated: the second half of S4 for DRA.

The kubelet unprepares, then the claim controller deallocates, as a rule within a second; nobody tells us. Each
such claim is read by GET with growing pauses up to a minute (design 2: no watch on claims of the whole cluster).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from bridge.ledger.holds import ClaimHolder, Hold, Phase, Plane
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.report import Report
from dra_v1.claims import Claim, ClaimError, ClaimProblem, ClaimRef, check_claim
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import ApiError, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

_FIRST_S = 0.25
_LONGEST_S = 60.0
_AT_ONCE = 8


class Deallocations:
    """Watches over the claims that are being released.

    `drivers`: driver name by group; `pool`: this node's; `api`: None where no group is offered through DRA.
    """

    def __init__(
        self, ledger: Ledger, api: KubeApi | None, drivers: Mapping[str, str], pool: str, report: Report
    ) -> None:
        self._ledger = ledger
        self._resources = ResourceApi(api) if api is not None else None
        self._drivers = drivers
        self._pool = pool
        self._report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    def start(self) -> None:
        """Take up what the ledger has from before."""
        for hold in self._ledger.account.on_plane(Plane.DRA):
            if hold.phase is Phase.RELEASING:
                self.expect(hold.holder.uid)

    async def stop(self) -> None:
        """Stop asking; the ledger keeps what is open."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expect(self, uid: str) -> None:
        """Begin to ask for a claim that was just unprepared; one that is asked for seldom is asked for anew."""
        if not self._releasing(uid):
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
        holds = self._releasing(uid)
        if not holds or self._resources is None:
            return
        holder = holds[0].holder
        assert isinstance(holder, ClaimHolder)
        ref = ClaimRef(holder.namespace, holder.name, uid)
        async with self._gate:
            try:
                body = await self._resources.get_claim(ref.namespace, ref.name)
            except (ApiError, NoResourceApi) as error:
                # A server that does not know the kind knows nothing of the claim.
                if not isinstance(error, NotFound) or error.unserved:
                    extra = {"claim": str(ref), "error": str(error)}
                    log.warning("cannot tell whether a claim is deallocated", extra=extra)
                    return
                body = None
        for group in {hold.group for hold in holds}:
            still = frozenset[str]()
            if body is not None:
                found = check_claim(body, ref, self._drivers.get(group, ""))
                still = shares_still_allocated(found, self._pool)
            await self._end(group, uid, still, holds)

    async def _end(self, group: str, uid: str, still: frozenset[str], holds: tuple[Hold, ...]) -> None:
        freed = [h for h in holds if h.group == group and h.share not in still]
        if not freed:
            return
        try:
            await self._ledger.deallocated(group, uid, still)
        except LedgerError as error:
            log.error("cannot record a release", extra={"group": group, "error": str(error)})
            return
        self._report.ended(
            Plane.DRA, group, [h.share for h in freed], str(freed[0].holder), "the claim is deallocated"
        )

    def _releasing(self, uid: str) -> tuple[Hold, ...]:
        account = self._ledger.account
        return tuple(
            hold
            for group in self._drivers
            for hold in account.of_claim(group, uid)
            if hold.phase is Phase.RELEASING
        )

    async def _until_deallocated(self, uid: str) -> None:
        pause = _FIRST_S
        while self._releasing(uid):
            await self.check_now(uid)
            if not self._releasing(uid):
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_S)


def shares_still_allocated(found: Claim | ClaimError, pool: str) -> frozenset[str]:
    """The shares of a pool that a claim, as it is now, still has; none if another claim has its name (H6).

    Raises ValueError for an error that does not tell; the caller keeps those from here.
    """
    if isinstance(found, ClaimError):
        if found.problem not in (ClaimProblem.REPLACED, ClaimProblem.NOT_ALLOCATED, ClaimProblem.NOT_OURS):
            raise ValueError(f"this proves nothing about a claim's shares: {found}")
        return frozenset()
    return frozenset(r.share_id or r.device for r in found.results if r.pool == pool and not r.admin_access)
