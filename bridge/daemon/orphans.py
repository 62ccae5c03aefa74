"""Claims that the kubelet will never unprepare: their pods went while it could not see it, or its own state was lost
(H21, kubelet-contract E.3). Treated as unprepared once that is proven twice; S4 (design 1) keeps its second half.

Only a claim that is no more can be proven so: one that is merely not allocated may be allocated again, and prepared,
in the very moment of the verdict. Nobody is asked about a claim that the kubelet lists or a known pod names.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.ledger.evidence import Sighting
from bridge.ledger.holds import ClaimHolder, PreparedClaim
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.report import Orphaned, Report
from bridge.planes.words import has_ended, pod_uids, read_pod
from bridge.platform.budget import Budget
from bridge.platform.cdi import CdiError
from dra_v1.claims import HAS_NOTHING, ClaimError, ClaimRef, check_claim
from dra_v1.kube import ApiError, Json
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Between looks, which are local. A claim is looked for so long after it was prepared: its pod has yet to be listed."""

KEPT_S = 120.0
"""A claim that has no device any longer is unprepared within so long, or people are told that it is not."""

QUESTIONS = 64
"""Claims asked for in one look: a kubelet that has lost its state lists none of a thousand, and hand-outs go first."""

_ASK_AGAIN_S = 60.0
_LONGEST_S = 3600.0
"""Pauses between questions for a claim that is still there: one that no container names is never listed."""

Key = tuple[str, str]
"""(group, claim UID)"""


class Files(Protocol):
    """See `bridge.platform.cdi.CdiFiles`."""

    def remove_claim(self, group: str, uid: str) -> bool:
        """Remove a claim's file."""
        ...


@dataclass(slots=True)
class Suspect:
    """What is known of a claim that the kubelet does not list.

    Attributes:
        proven: how many looks in a row have proven it an orphan.
        ask_at, pause: when to ask for it again, in the clock of sightings, and how long after that.
        without_since: since when it is known to be there without a device; None while it has one.
        told: whether that was told.
    """

    proven: int = 0
    ask_at: float = 0.0
    pause: float = _ASK_AGAIN_S
    without_since: float | None = None
    told: bool = False


class Orphans:
    """Looks for them while anything is prepared.

    Args:
        ledger: the account.
        drivers: DRA driver name by group.
        look: looks at every source of evidence once.
        pods_of: the pods, known anyway, that name a claim by its UID; kubelets before 1.34 list no claims.
        list_pods: this node's pods, as the API server has them now; None if it does not say.
        resources: where to ask for claims.
        budget: of requests that nobody waits for.
        files: where claims have theirs.
        report: told of what was freed so.
        unprepared: told of each claim that was treated so.
        kept: told of each claim that is there, has no device any longer, and is not unprepared for long.
    """

    def __init__(
        self,
        ledger: Ledger,
        drivers: Mapping[str, str],
        look: Callable[[], Awaitable[Sighting]],
        pods_of: Callable[[str], Collection[object]],
        list_pods: Callable[[], Awaitable[list[Json] | None]],
        resources: ResourceApi,
        budget: Budget,
        files: Files,
        report: Report,
        unprepared: Callable[[str], None],
        kept: Callable[[PreparedClaim], None],
    ) -> None:
        self._ledger = ledger
        self._drivers = drivers
        self._look = look
        self._pods_of = pods_of
        self._list_pods = list_pods
        self._resources = resources
        self._budget = budget
        self._files = files
        self._report = report
        self._unprepared = unprepared
        self._kept = kept
        self._suspects: dict[Key, Suspect] = {}
        self._changed = asyncio.Event()
        ledger.subscribe(lambda _: self._changed.set())

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            while not self._prepared():
                self._changed.clear()
                await self._changed.wait()
            # What is prepared during a look may not be listed in it.
            before = self._prepared()
            await asyncio.sleep(LOOK_S)
            await self.act_on(await self._look(), before)

    async def act_on(self, sighting: Sighting, claims: Iterable[PreparedClaim]) -> None:
        """Take one sighting; of the claims it can tell only of those that were prepared well before it."""
        found = {
            (claim.group, claim.holder.uid): claim
            for claim in claims
            if self._ledger.account.prepared(claim.group, claim.holder.uid) is not None
            and not self._pods_of(claim.holder.uid)
            and may_be_orphaned(claim.holder, self._drivers[claim.group], sighting)
        }
        self._suspects = {key: self._suspects.get(key, Suspect()) for key in found}
        due = [key for key, suspect in self._suspects.items() if sighting.at >= suspect.ask_at]
        asked = sorted(due, key=lambda key: self._suspects[key].ask_at)[:QUESTIONS]
        if not asked:
            return
        gone = [key for key in asked if await self._is_gone(found[key], self._suspects[key], sighting)]
        if not gone:
            return
        pods = await self._list_pods()
        for key in gone:
            suspect = self._suspects[key]
            unused = pods is not None and nobody_uses(found[key].holder, pods, sighting)
            suspect.proven = suspect.proven + 1 if unused else 0
            if suspect.proven > 1:
                await self._unprepare(found[key])

    def _prepared(self) -> tuple[PreparedClaim, ...]:
        return tuple(c for c in self._ledger.account.prepared_claims() if c.group in self._drivers)

    async def _is_gone(self, claim: PreparedClaim, suspect: Suspect, sighting: Sighting) -> bool:
        """Ask for a claim, and put off the next question if it is still there."""
        holder = claim.holder
        await self._budget.take()
        try:
            body = await self._resources.find_claim(holder.namespace, holder.name)
        except (ApiError, NoResourceApi) as error:
            log.warning(
                "cannot tell whether a claim that the kubelet does not list is still there",
                extra={"claim": f"{holder.namespace}/{holder.name}", "error": str(error)},
            )
            return False
        if body is None or body["metadata"]["uid"] != holder.uid:
            return True
        suspect.ask_at, suspect.pause = sighting.at + suspect.pause, min(suspect.pause * 2, _LONGEST_S)
        suspect.proven = 0
        ref = ClaimRef(holder.namespace, holder.name, holder.uid)
        found = check_claim(body, ref, self._drivers[claim.group])
        if not isinstance(found, ClaimError) or found.problem not in HAS_NOTHING:
            suspect.without_since, suspect.told = None, False
        elif suspect.without_since is None:
            suspect.without_since = sighting.at
        elif not suspect.told and sighting.at - suspect.without_since >= KEPT_S:
            suspect.told = True
            self._kept(claim)
        return False

    async def _unprepare(self, claim: PreparedClaim) -> None:
        group, uid = claim.group, claim.holder.uid
        extra = {"group": group, "claim": f"{claim.holder.namespace}/{claim.holder.name}", "uid": uid}
        devices = tuple(hold.share for hold in self._ledger.account.of_claim(group, uid))
        try:
            await self._ledger.unprepare(group, uid)
            await asyncio.to_thread(self._files.remove_claim, group, uid)
        except (LedgerError, CdiError) as error:
            log.error("cannot unprepare a claim that is gone", extra=extra | {"error": str(error)})
            return
        log.warning("unprepared a claim that is gone: the kubelet will not", extra=extra)
        self._report.tell(Orphaned(group, devices, str(claim.holder)))
        del self._suspects[group, uid]
        self._unprepared(uid)


def may_be_orphaned(holder: ClaimHolder, driver: str, sighting: Sighting) -> bool:
    """Whether every source answered, the kubelet is stable, and it does not list the claim for any pod."""
    if sighting.listed is None or sighting.live is None or not sighting.kubelet_stable:
        return False
    name = (holder.namespace, holder.name)
    return all((used.driver, used.claim) != (driver, name) for used in sighting.claimed)


def nobody_uses(holder: ClaimHolder, pods: Iterable[Json], sighting: Sighting) -> bool:
    """Whether no pod of the node names the claim, and the runtime runs none but these pods: one that was deleted by
    force is not among them, and may have the claim's devices (H9)."""
    known: set[str] = set()
    for pod in pods:
        if has_ended(pod):
            continue  # if it is said to have ended and runs all the same, it counts as one that nobody knows
        named = read_pod(pod)
        if named.namespace == holder.namespace and holder.name in dict(named.claims):
            return False
        known.update(pod_uids(pod))
    return all(uids <= known for uids in (sighting.live or {}).values())
