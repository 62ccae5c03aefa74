"""One claim seen allocated: its devices are reserved in the ledger, and the scheduler is told where it waits for that.

Keeps the order of Q1 and D-5007: "reserved" is said after the device plugin plane's news of it has been sent, "held
elsewhere" after the slices without the device are stored, else the scheduler would choose the same one again.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bridge.ledger.holds import ClaimHolder, Hold, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes import report as told
from bridge.planes.binding import Binding, is_forbidden
from bridge.planes.booking import book
from bridge.planes.claims import picks_of
from bridge.planes.conditions import Verdict, answer, answered, awaited
from bridge.planes.contest import Contest
from bridge.planes.deallocation import Deallocations
from bridge.planes.dra import asker_of
from bridge.planes.report import Asker, Moving, Report
from bridge.planes.roster import Roster, Unavailable
from bridge.planes.words import PodRef
from bridge.platform.budget import Budget
from dra_v1.claims import AllocatedDevice, Claim, decode_claim
from dra_v1.kube import ApiError, Conflict, Json
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

LISTED_S = 2.0
"""How long "reserved" waits until the kubelet was sent the other plane's list: what it believes meanwhile, Allocate
refuses (S2)."""

STORED_S = 30.0
"""How long one try of "held elsewhere" waits for the slices; it is tried again."""


@dataclass(frozen=True, slots=True)
class Part:
    """One group, as far as claims are reserved in it.

    Attributes:
        name, driver: the group and its driver.
        binding: its two-phase binding.
        roster: its devices now.
        listed: returns when the kubelet has been sent what the device plugin plane shows now.
        stored: returns when the slices are stored as they should be now.
        fence: why no claim may have a device now, by its name in slices; empty if one may.
        contest: told of the holds for which a claim is refused, so that the slices show nothing that they have.
    """

    name: str
    driver: str
    binding: Binding
    roster: Callable[[], Roster]
    listed: Callable[[], Awaitable[None]]
    stored: Callable[[], Awaitable[None]]
    fence: Callable[[str], str]
    contest: Contest


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a claim stands after it was looked at.

    Attributes:
        devices: what it has on this node: group, device as allocated.
        again: something failed that may go well the next time.
        refused: it does not get what it was allocated; it is to be tried again when one of these holds ends.
    """

    devices: tuple[tuple[str, str], ...] = ()
    again: bool = False
    refused: bool = False
    blockers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Tools:
    """What reserving works with, the same for all groups."""

    ledger: Ledger
    resources: ResourceApi
    deallocations: Deallocations
    budget: Budget
    report: Report
    pool: str


class Reservations:
    """Reserves what claims were allocated in some groups."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._parts: dict[str, Part] = {}
        self._told: dict[tuple[str, str], str] = {}

    def attach(self, part: Part) -> None:
        """Reserve in one more group."""
        self._parts[part.name] = part

    @property
    def parts(self) -> Sequence[Part]:
        """The groups."""
        return tuple(self._parts.values())

    async def take(self, body: Json, pods: Sequence[PodRef]) -> Outcome:
        """Reserve what an allocated claim has here, and answer the scheduler. `pods`: who names it."""
        outcomes = [await self._in_group(part, body, pods) for part in self._parts.values()]
        return Outcome(
            devices=tuple(device for one in outcomes for device in one.devices),
            again=any(one.again for one in outcomes),
            refused=any(one.refused for one in outcomes),
            blockers=frozenset().union(*(one.blockers for one in outcomes)),
        )

    def forget(self, uid: str) -> None:
        """A claim is over."""
        for group in self._parts:
            self._told.pop((group, uid), None)

    async def _in_group(self, part: Part, body: Json, pods: Sequence[PodRef]) -> Outcome:
        claim = decode_claim(body, part.driver)
        results = [r for r in claim.results if r.pool == self._tools.pool] if claim is not None else []
        if claim is None or not results:
            return Outcome()
        devices = tuple((part.name, result.device) for result in results)
        asker = _asker(claim, pods)
        refused: Unavailable | Refused | None = None
        try:
            await self._reserve(part, asker.claim, results)
        except LedgerError as error:
            log.error(
                "cannot reserve", extra={"group": part.name, "claim": str(claim.ref), "error": str(error)}
            )
            return Outcome(devices, again=True)
        except (Unavailable, Refused) as error:
            refused = error
            part.contest.refused(claim.ref.uid, _blockers(error))
        self._tell(part, asker, results, refused)
        said = await self._say(part, claim, results, Verdict("" if refused is None else str(refused)), body)
        return Outcome(devices, not said, refused is not None, frozenset(h.id for h in _blockers(refused)))

    async def _reserve(self, part: Part, claim: ClaimHolder, results: Sequence[AllocatedDevice]) -> None:
        started = time.perf_counter()
        ledger = self._tools.ledger
        picks = picks_of(results, part.roster())
        had = {hold.share for hold in ledger.account.of_claim(part.name, claim.uid)}

        async def reserve() -> None:
            for result in results:
                why = "" if result.admin_access else part.fence(result.device)
                if why:
                    raise Moving(why)
            await ledger.reserve(part.name, claim, picks)

        await book(reserve, self._tools.deallocations)
        if fresh := tuple(pick.share for pick in picks if pick.share not in had):
            seconds = time.perf_counter() - started
            self._tools.report.tell(told.Reserved(part.name, fresh, str(claim), seconds))

    def _tell(
        self,
        part: Part,
        asker: Asker,
        results: Sequence[AllocatedDevice],
        refused: Unavailable | Refused | None,
    ) -> None:
        """Tell of a refusal, once for each that says something new."""
        key, why = (part.name, asker.claim.uid), "" if refused is None else str(refused)
        if why and why != self._told.get(key):
            devices = tuple(result.device for result in results if not result.admin_access)
            news = told.ReservationLost(part.name, devices, why, asker, _blockers(refused))
            self._tools.report.tell(news)
        self._told.pop(key, None)
        if why:
            self._told[key] = why

    async def _say(
        self, part: Part, claim: Claim, results: Sequence[AllocatedDevice], verdict: Verdict, body: Json
    ) -> bool:
        """Set the conditions that the scheduler waits for; whether nothing is left to be said."""
        names = part.binding.names
        waiting = awaited(results, names)
        status = body.get("status") or {}
        if answered(status, waiting, part.driver, names, verdict):
            return True
        if not await self._news_is_out(part, verdict):
            return False
        holder = ClaimHolder(claim.ref.namespace, claim.ref.name, claim.ref.uid)
        meta = {"uid": claim.ref.uid, "resourceVersion": str(body["metadata"]["resourceVersion"])}
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._tools.budget.take()
        try:
            await self._tools.resources.apply_claim_status(
                claim.ref.namespace,
                claim.ref.name,
                meta,
                answer(waiting, part.driver, names, verdict, now),
                manager=f"device-bridge/{part.driver}",
            )
        except Conflict:
            return False  # it is another state by now: it is read again
        except (ApiError, NoResourceApi) as error:
            if isinstance(error, ApiError) and is_forbidden(error):
                part.binding.forbidden(error)
            self._tools.report.tell(told.ConditionSet(part.name, holder, "failed", str(error)))
            return False
        part.binding.allowed()
        outcome = "held-elsewhere" if verdict.refusal else "reserved"
        self._tools.report.tell(told.ConditionSet(part.name, holder, outcome, verdict.refusal))
        return True

    async def _news_is_out(self, part: Part, verdict: Verdict) -> bool:
        """Wait for the other plane's news, or the slices'; whether the condition may be set now."""
        try:
            if verdict.refusal:
                async with asyncio.timeout(STORED_S):
                    await part.stored()
            else:
                async with asyncio.timeout(LISTED_S):
                    await part.listed()
        except TimeoutError:
            return not verdict.refusal
        except (NoResourceApi, RuntimeError) as error:  # the API is away, or the plane is being stopped
            log.info("slices cannot be stored now", extra={"group": part.name, "error": str(error)})
            return False
        return True


def _asker(claim: Claim, pods: Sequence[PodRef]) -> Asker:
    """A claim and the pods that name it, or else those that it is reserved for."""
    found = asker_of(claim)
    named = tuple(PodHolder(pod.namespace, pod.name, uid=pod.uid) for pod in pods)
    return Asker(found.claim, named or found.pods)


def _blockers(refused: Unavailable | Refused | None) -> tuple[Hold, ...]:
    return refused.blockers if isinstance(refused, Refused) else ()
