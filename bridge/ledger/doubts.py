"""What the evidence shows and the ledger does not explain: taken up where it fits, fenced off where it does not.

Fences are quarantines that are lifted by themselves when the evidence no longer calls for them. Keeps S5 (design 1)
for lost state, for a driver that served our names before (H18), and for devices that both planes seem to have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from bridge.ledger.evidence import Sighting
from bridge.ledger.holds import Pick, Plane, PodHolder, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import EVERYTHING, LedgerError

log = logging.getLogger(__name__)

FENCE = "by evidence: "
"""Begins the reason of a quarantine that is lifted when the evidence for it is gone."""

Where = tuple[str, str]
"""(group, device); the device may be `*`."""


class Names(Protocol):
    """See `bridge.ledger.reconcile.Names`."""

    @property
    def resources(self) -> Mapping[str, str]:
        """Resource name by group."""

    @property
    def drivers(self) -> Mapping[str, str]:
        """DRA driver name by group."""

    @property
    def pick_of(self) -> Callable[[str, str], Pick]:
        """The pick for a group and a name."""


class Doubts:
    """Compares sightings with the ledger."""

    def __init__(self, ledger: Ledger, names: Names) -> None:
        self._ledger = ledger
        self._names = names
        self._groups = {resource: group for group, resource in names.resources.items()}
        self._drivers = {driver: group for group, driver in names.drivers.items()}
        self._claims_before: dict[Where, str] | None = None

    @property
    def stand(self) -> bool:
        """Whether anything is fenced off."""
        return any(q.reason.startswith(FENCE) for q in self._ledger.account.quarantines())

    async def settle(self, sighting: Sighting) -> None:
        """Take up what fits, fence what does not, lift what is explained. Never raises for the evidence."""
        try:
            if sighting.listed is None:
                await self._raise({(group, EVERYTHING): why for group, why in sighting.rivals.items()})
                if self._ledger.fresh and not len(self._ledger.account):
                    await self._fence_unseen()
                return
            fences = await self._adopt(sighting)
            fences |= self._lasting(self._unknown_claims(sighting))
            fences |= {(group, EVERYTHING): why for group, why in sighting.rivals.items()}
            await self._fence(fences)
        except LedgerError as error:
            log.error("cannot record what the evidence shows", extra={"error": str(error)})

    async def _fence_unseen(self) -> None:
        """A new ledger, and the kubelet cannot say what it has handed out before: nobody gets anything yet."""
        why = "the ledger is new and the kubelet does not yet say what pods hold"
        account = self._ledger.account
        await self._raise(
            {
                (group, EVERYTHING): why
                for group in self._names.resources
                if account.quarantine_of(group, EVERYTHING) is None
            }
        )

    async def _adopt(self, sighting: Sighting) -> dict[Where, str]:
        """Take up IDs that the kubelet has given out and the ledger lacks; what cannot be, and why."""
        fences: dict[Where, str] = {}
        for (resource, device_id), pod in _handed_out(sighting).items():
            group = self._groups.get(resource)
            if group is None or self._ledger.account.of_share(Plane.DEVICE_PLUGIN, group, device_id):
                continue
            try:
                pick = self._names.pick_of(group, device_id)
            except LookupError as error:
                # It may be any of the group's devices.
                fences[group, EVERYTHING] = str(error)
                continue
            try:
                await self._ledger.adopt(pick, pod)
            except Refused as refused:
                fences[group, pick.device] = (
                    f"the kubelet gave {device_id} to {pod}, and yet: {refused}; delete one of the two pods"
                )
                continue
            log.warning(
                "took up a hold that the ledger lacked",
                extra={"group": group, "device": device_id, "holder": str(pod)},
            )
        return fences

    def _unknown_claims(self, sighting: Sighting) -> dict[Where, str]:
        """Devices of ours that pods use through claims of which the ledger knows nothing."""
        fences: dict[Where, str] = {}
        known: set[tuple[str, str, str]] | None = None
        for used in sighting.claimed:
            group = self._drivers.get(used.driver)
            if group is None or self._ledger.account.of_share(Plane.DRA, group, used.name):
                continue
            if known is None:
                claims = self._ledger.account.prepared_claims()
                known = {(c.group, c.holder.namespace, c.holder.name) for c in claims}
            if (group, *used.claim) in known:
                continue  # admin access holds nothing
            try:
                device = self._names.pick_of(group, used.device).device
            except LookupError:
                device = EVERYTHING
            fences[group, device] = (
                f"claim {'/'.join(used.claim)} uses {used.device} and the ledger does not know of it; "
                f"it is offered again when the pods of that claim have ended"
            )
        return fences

    def _lasting(self, claims: dict[Where, str]) -> dict[Where, str]:
        """Those seen at start, or twice: the list may be older than a claim's end, which we were told of since."""
        before, self._claims_before = self._claims_before, claims
        return claims if before is None else {where: why for where, why in claims.items() if where in before}

    async def _fence(self, fences: Mapping[Where, str]) -> None:
        account = self._ledger.account
        for quarantine in account.quarantines():
            where = (quarantine.group, quarantine.device)
            if quarantine.reason.startswith(FENCE) and where not in fences:
                await self._ledger.lift(*where)
                log.info("fence lifted", extra={"group": where[0], "device": where[1]})
        await self._raise(fences)

    async def _raise(self, fences: Mapping[Where, str]) -> None:
        """Fence off what is not quarantined yet, by whomever."""
        there = {(q.group, q.device) for q in self._ledger.account.quarantines()}
        for (group, device), why in fences.items():
            if (group, device) not in there:
                await self._ledger.quarantine(group, device, FENCE + why)
                log.error("quarantined", extra={"group": group, "device": device, "why": why})


def _handed_out(sighting: Sighting) -> dict[tuple[str, str], PodHolder]:
    """Who has which ID, as far as the sources say: podresources first, then live pods of the checkpoint."""
    found = dict(sighting.listed or {})
    live = {uid: name for name, uids in (sighting.live or {}).items() for uid in uids}
    for key, uids in (sighting.checkpointed or {}).items():
        for uid in uids:
            if uid in live and key not in found:
                found[key] = PodHolder(*live[uid], uid=uid)
    return found
