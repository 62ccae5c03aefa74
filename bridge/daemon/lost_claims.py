"""The claims of this node's pods, read before a new ledger offers anything (kubelet-contract E.7).

A new ledger may be a lost one: what the scheduler has allocated here is reserved before anybody else can have it. What
the kubelet has prepared is known from its own record (`bridge.ledger.doubts`), whether the API server answers or not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from bridge.ledger.holds import ClaimHolder, Phase, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.claims import picks_of
from bridge.planes.roster import Roster, Unavailable
from bridge.planes.words import Key, read_pod
from bridge.platform.budget import Budget
from dra_v1.claims import Claim, decode_claim
from dra_v1.kube import ApiError, Json
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

WITHIN_S = 10.0
"""How long a start waits for it: without the API server nothing new is prepared anyway."""

AT_ONCE = 8
"""Requests for claims under way."""


class LostClaims:
    """Reads once, at start.

    Args:
        ledger: what is taken up goes here.
        drivers: DRA driver name by group.
        node_name: whose pool it is.
        roster: a group's devices now.
        list_pods: this node's pods, as the API server has them now; None if it does not say.
        resources: where to ask for claims; None where there is no API server.
        budget: of requests that nobody waits for.
        followed: whether this node's pods and their claims are followed by now.

    Attributes:
        admin: (group, namespace, name of the claim, device) of admin access, which holds nothing.
    """

    def __init__(
        self,
        ledger: Ledger,
        drivers: Mapping[str, str],
        node_name: str,
        roster: Callable[[str], Roster],
        list_pods: Callable[[], Awaitable[list[Json] | None]],
        resources: ResourceApi | None,
        budget: Budget,
        followed: Callable[[], bool],
    ) -> None:
        self.admin: set[tuple[str, str, str, str]] = set()
        self._ledger = ledger
        self._drivers = drivers
        self._node_name = node_name
        self._roster = roster
        self._list_pods = list_pods
        self._resources = resources
        self._budget = budget
        self._followed = followed
        self._read = False

    @property
    def read(self) -> bool:
        """Whether all claims were read, by whomever, or there is nobody to ask."""
        return self._read or self._resources is None or self._followed()

    async def take_up(self) -> None:
        """Reserve what claims of this node's pods were allocated, while the ledger is new. Never raises for the API."""
        if not self._ledger.fresh or self._resources is None:
            return
        if not any(self._roster(group).dra_offered for group in self._drivers):
            self._read = True  # none is allocated here; what the kubelet has prepared before, its record says
            return
        try:
            async with asyncio.timeout(WITHIN_S):
                self._read = await self._take_up(self._resources)
        except (TimeoutError, ApiError, NoResourceApi) as error:
            if isinstance(error, NoResourceApi):
                self._read = True
                return
            log.warning(
                "the ledger is new and claims cannot be read, only what the kubelet has prepared is taken up",
                extra={"error": str(error) or f"no answer within {WITHIN_S:g} s"},
            )

    async def _take_up(self, resources: ResourceApi) -> bool:
        pods = await self._list_pods()
        if pods is None:
            return False
        named = {(pod.namespace, name) for pod in map(read_pod, pods) for name, _ in pod.claims}
        # An earlier process of a ledger that is still new has answered these.
        holders = [claim.holder for claim in self._ledger.account.prepared_claims()]
        named -= {(holder.namespace, holder.name) for holder in holders}
        turns = asyncio.Semaphore(AT_ONCE)

        async def read(key: Key) -> Json | None:
            async with turns:
                await self._budget.take()
                return await resources.find_claim(*key)

        found = await asyncio.gather(*map(read, sorted(named)))
        for body in found:
            for group, driver in self._drivers.items():
                claim = decode_claim(body, driver) if body is not None else None
                if claim is not None:
                    await self._reserve(group, claim)
        return True

    async def _reserve(self, group: str, claim: Claim) -> None:
        results = [result for result in claim.results if result.pool == self._node_name]
        ref = claim.ref
        self.admin |= {(group, ref.namespace, ref.name, r.device) for r in results if r.admin_access}
        holder = ClaimHolder(ref.namespace, ref.name, ref.uid)
        for result in results:
            try:
                for pick in picks_of([result], self._roster(group)):
                    await self._ledger.adopt_claim(pick, holder, Phase.RESERVED)
            except (Refused, Unavailable, LedgerError) as error:
                # Somebody else has it, or it is no device of ours: neither is offered.
                extra = {"group": group, "device": result.device, "holder": str(holder), "why": str(error)}
                log.warning("cannot take up a claim that is allocated", extra=extra)
