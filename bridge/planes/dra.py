"""The DRA plane of one group: Prepare and Unprepare on the ledger, and what the slices and health show.

Keeps S1 and S3 (design 1): an answer leaves only after the ledger has it on disk, and the ledger refuses what
another holder has. Slow work is none: the path is plan, one commit, and a small file where a claim's
configuration needs one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.devices.kinds.base import Kind
from bridge.ledger.holds import ClaimHolder, Phase, Plane, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.booking import book
from bridge.planes.claims import Naming, Plan, Stored, decode, encode, is_by_name, plan
from bridge.planes.conflicts import Loser
from bridge.planes.contest import Contest
from bridge.planes.deallocation import Deallocations
from bridge.planes.healing import Healing
from bridge.planes.report import Asker, Moving, Report
from bridge.planes.roster import Roster, Unavailable, check_present
from bridge.platform.cdi import CdiError, CdiFiles, claim_device, qualified
from bridge.platform.pulse import Pulse
from dra_v1.claims import Claim, ClaimRef
from dra_v1.driver import (
    DeviceHealth,
    HealthStatus,
    PreparedClaim,
    PrepareError,
    UnprepareError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the DRA plane works with.

    Attributes:
        ledger: the one account.
        roster: the group's devices now.
        kind: the group's kind.
        pool: name of the node's pool.
        cdi: CDI files.
        deallocations: finds out when an unprepared claim has let go.
        healing: sees to claims that lost a device.
        contest: told of the holds for which a claim is refused, so that the slices show nothing that they have.
        changed: pulses when ledger or inventory changed.
        report: where hand-outs and refusals are told.
        there: whether a device node exists now, by its host path.
        rebuilt: set once evidence and ledger have been compared at start; until then nothing changes hands, and
            only what is remembered is answered (kubelet-contract E.7).
        prepared: told the UID of each claim that the ledger has prepared.
    """

    ledger: Ledger
    roster: Callable[[], Roster]
    kind: Kind[Any]
    pool: str
    cdi: CdiFiles
    deallocations: Deallocations
    healing: Healing
    contest: Contest
    changed: Pulse
    report: Report
    there: Callable[[str], bool]
    rebuilt: asyncio.Event
    prepared: Callable[[str], None]


class DraPlane:
    """A `dra_v1` driver for one group."""

    def __init__(self, group: str, around: Surroundings) -> None:
        self._group = group
        self._around = around
        self._naming = Naming(
            device=lambda device: qualified(group, device),
            claim=lambda uid, device: qualified(group, claim_device(uid, device)),
        )

    # dra_v1.Driver

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim | PrepareError]:
        """Book and answer each claim; those of one call share a commit."""
        await self._around.rebuilt.wait()
        answers = await asyncio.gather(*(self._prepare(claim) for claim in claims))
        return {claim.ref.uid: answer for claim, answer in zip(claims, answers, strict=True)}

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, UnprepareError | None]:
        """Let each claim go; one that is not known is done (kubelet-contract B.2)."""
        await self._around.rebuilt.wait()
        answers = await asyncio.gather(*(self._unprepare(ref) for ref in claims))
        return {ref.uid: answer for ref, answer in zip(claims, answers, strict=True)}

    def remembered(self, ref: ClaimRef) -> PreparedClaim | None:
        """The answer that the ledger keeps for this UID, its CDI file restored if it is gone (H13, H20).

        None where the claim was seen allocated anew since: what it was answered then is another device's.
        """
        ledger = self._around.ledger
        kept = ledger.account.prepared(self._group, ref.uid)
        if kept is None or ledger.failure:  # then the account may hold what never reached the disk
            return None
        if any(h.phase is Phase.RESERVED for h in ledger.account.of_claim(self._group, ref.uid)):
            return None
        stored = decode(kept.answer)
        if stored.edits:
            self._around.cdi.write_claim(self._group, ref.uid, stored.edits)
        return stored.answer

    async def health(self) -> AsyncIterator[Sequence[DeviceHealth]]:
        """Physical health of every device, never arbitration (H23)."""
        last: list[DeviceHealth] | None = None
        told: Roster | None = None
        with self._around.changed.listen() as changes:
            while True:
                roster = self._around.roster()
                if roster is not told:  # most pulses are hand-outs, which are no matter of health
                    told = roster
                    now = list(self._health(roster))
                    if now != last:
                        last = now
                        yield now
                await changes.wait()

    def _health(self, roster: Roster) -> Iterator[DeviceHealth]:
        for device in roster.devices:
            status = HealthStatus.HEALTHY if device.health.ok else HealthStatus.UNHEALTHY
            for name in {device.name: None, **dict.fromkeys(device.share_names())}:
                yield DeviceHealth(self._around.pool, name, status, device.health.reason)

    # Within

    async def _prepare(self, claim: Claim) -> PreparedClaim | PrepareError:
        started = time.perf_counter()
        names = [result.device for result in claim.results]
        try:
            roster = self._around.roster()
            planned = plan(claim, roster, self._around.kind, self._around.pool, self._naming)
            check_present((roster.by_name[name] for name in names), self._around.there)
            await self._book(claim, planned)
            if planned.edits:
                await asyncio.to_thread(
                    self._around.cdi.write_claim, self._group, claim.ref.uid, planned.edits
                )
        except (Unavailable, Refused, LedgerError, CdiError) as error:
            if isinstance(error, Refused):
                self._around.contest.refused(claim.ref.uid, error.blockers)
                self._lost(claim, roster, error)
            self._around.report.refused(
                Plane.DRA, self._group, names, f"claim {claim.ref}", str(error), error, asker_of(claim)
            )
            return PrepareError(str(error))
        seconds = time.perf_counter() - started
        self._around.report.handed_out(Plane.DRA, self._group, names, f"claim {claim.ref}", seconds)
        return planned.answer

    def _check_moving(self, claim: Claim) -> None:
        """Raise Moving for a device from which another claim is being moved away; who only looks on holds nothing."""
        for result in claim.results:
            why = "" if result.admin_access else self._around.healing.fence(self._group, result.device)
            if why:
                raise Moving(why)

    def _lost(self, claim: Claim, roster: Roster, refused: Refused) -> None:
        """See to it that a claim which can never be prepared is not left alone with that."""
        for result in claim.results:
            device = roster.by_name.get(result.device)
            if device is not None and device.name == refused.pick.device and not result.admin_access:
                loser = Loser(asker_of(claim), refused.pick, result.device, claim.extended_resource)
                self._around.healing.lost(loser)
                return

    async def _book(self, claim: Claim, planned: Plan) -> None:
        holder = ClaimHolder(claim.ref.namespace, claim.ref.name, claim.ref.uid)
        answer = encode(Stored(planned.answer, planned.edits, claim.extended_resource))

        async def prepare() -> None:
            self._check_moving(claim)
            await self._around.ledger.prepare(self._group, holder, planned.picks, answer)

        await book(prepare, self._around.deallocations)
        self._around.prepared(claim.ref.uid)

    async def _unprepare(self, ref: ClaimRef) -> UnprepareError | None:
        try:
            await self._around.ledger.unprepare(self._group, ref.uid, by_name=self._by_name(ref))
            await asyncio.to_thread(self._around.cdi.remove_claim, self._group, ref.uid)
        except (LedgerError, CdiError) as error:
            log.error(
                "unprepare failed", extra={"group": self._group, "claim": str(ref), "error": str(error)}
            )
            return UnprepareError(str(error))
        self._around.deallocations.expect(ref.uid)
        return None

    def _by_name(self, ref: ClaimRef) -> bool:
        """Whether a claim was made for a pod that asked by resource name; an answer that cannot be read must not keep
        it from being let go."""
        kept = self._around.ledger.account.prepared(self._group, ref.uid)
        try:
            return kept is not None and is_by_name(kept.answer)
        except ValueError as error:
            log.warning("stored answer unreadable", extra={"claim": str(ref), "error": str(error)})
            return False


def asker_of(claim: Claim) -> Asker:
    """A claim and its pods, as far as it names them; it may be reserved for others than pods."""
    pods = (
        PodHolder(claim.ref.namespace, consumer.name, uid=consumer.uid)
        for consumer in claim.consumers
        if consumer.resource == "pods" and not consumer.api_group
    )
    return Asker(ClaimHolder(claim.ref.namespace, claim.ref.name, claim.ref.uid), tuple(pods))
