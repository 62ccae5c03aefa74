"""What the evidence shows and the ledger does not explain: taken up where it fits, fenced off where it does not.

A new ledger is told from a lost one by nothing, so until it was compared with one whole sighting, by whichever process,
whatever the kubelet has noted down counts too: of pods that have not started yet, and of claims that it does not list.
Fences are quarantines that are lifted by themselves when the evidence no longer calls for them. Keeps S5 (design 1)
for lost state, for a driver that served our names before (H18), and for devices that both planes seem to have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from bridge.ledger.evidence import UNKNOWN_GRACE_S, ClaimedDevice, Sighting
from bridge.ledger.holds import ClaimHolder, Phase, Pick, Plane, PodHolder, Refused
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


TakenUp = Callable[[Plane, str, list[str], str], None]
"""See `bridge.planes.report.Report.taken_up`."""


class Claims(Protocol):
    """What the API server says of claims while the ledger is new."""

    @property
    def read(self) -> bool:
        """Whether it has said it, or there is nobody to ask."""

    @property
    def admin(self) -> Collection[tuple[str, str, str, str]]:
        """(group, namespace, name of the claim, device) of admin access, which holds nothing."""


class NoClaims:
    """Nobody to ask."""

    read = True
    admin: frozenset[tuple[str, str, str, str]] = frozenset()


class Doubts:
    """Compares sightings with the ledger.

    `taken_up` is told of what was; `claims`: what the API server says of them while the ledger is new.
    """

    def __init__(self, ledger: Ledger, names: Names, taken_up: TakenUp, claims: Claims | None = None) -> None:
        self._ledger = ledger
        self._taken_up = taken_up
        self._claims: Claims = claims or NoClaims()
        self._heard = False
        self._noted: dict[Where, str] | None = None
        self._unseen_since: dict[str, float] = {}
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
                if self._ledger.fresh and not self._heard:
                    await self._fence_unseen()
                return
            fresh = self._ledger.fresh
            fences = await self._adopt(sighting)
            if fresh:
                fences |= await self._only_noted(sighting)
            claims = await self._noted_claims(sighting) if fresh else {}
            fences |= self._lasting(self._unknown_claims(sighting.claimed) | claims)
            self._heard = True
            compared = fresh and not fences and self._is_whole(sighting)
            fences |= {(group, EVERYTHING): why for group, why in sighting.rivals.items()}
            await self._fence(fences)
            if compared:
                await self._ledger.compared()
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
            self._taken_up(Plane.DEVICE_PLUGIN, group, [device_id], str(pod))
        return fences

    def _is_whole(self, sighting: Sighting) -> bool:
        """Whether nothing is missing that a pod may hold: what the ledger then lacks was never handed out."""
        return (
            sighting.kubelet_stable
            and sighting.checkpointed is not None
            and sighting.live is not None
            and sighting.prepared is not None
            and self._claims.read
        )

    async def _only_noted(self, sighting: Sighting) -> dict[Where, str]:
        """IDs that the kubelet has noted down for pods that no other source shows, and that are not proven over: they
        may yet start, or run unseen. None is taken up, for most such notes are stale."""
        if sighting.checkpointed is None:
            if self._noted is None and not sighting.checkpoint_lost:
                why = "the ledger is new and the kubelet's checkpoint cannot be read"
                return {(group, EVERYTHING): why for group in self._names.resources}
            return self._noted or {}  # what was handed out since is in the ledger
        self._noted = fences = dict[Where, str]()
        self._unseen_since = {u: at for u, at in self._unseen_since.items() if u in sighting.ended}
        for (resource, device_id), uids in sighting.checkpointed.items():
            group = self._groups.get(resource)
            left = [uid for uid in sorted(uids) if not self._is_over(uid, sighting)]
            if group is None or not left or (resource, device_id) in (sighting.listed or {}):
                continue
            if self._ledger.account.of_share(Plane.DEVICE_PLUGIN, group, device_id):
                continue
            try:
                device = self._names.pick_of(group, device_id).device
            except LookupError:
                device = EVERYTHING
            fences[group, device] = (
                f"the ledger is new, and the kubelet has noted {device_id} for the pod with UID {left[0]}, which is "
                f"not known to have ended; it is offered again when the API server says so"
            )
        return dict(fences)

    def _is_over(self, uid: str, sighting: Sighting) -> bool:
        """Whether a pod is proven to have ended. Gone from the API server it may run on, and only the runtime tells:
        without it, for as long as any pod may take."""
        if uid not in sighting.ended:
            return False
        if sighting.live is not None:
            return all(uid not in uids for uids in sighting.live.values())
        since = self._unseen_since.setdefault(uid, sighting.at)
        return sighting.at - since >= UNKNOWN_GRACE_S

    async def _noted_claims(self, sighting: Sighting) -> dict[Where, str]:
        """Take up claims that the kubelet has noted down as prepared, once, before it can say that they are over; what
        does not fit, or is noted later, is doubtful like what it lists."""
        noted = sighting.prepared or frozenset()
        if not self._heard:
            for used in sorted(noted, key=lambda d: (d.uid, d.name)):
                if (group := self._group_of_holding(used)) is not None:
                    await self._adopt_claim(group, used)
        return self._unknown_claims(noted)

    def _group_of_holding(self, used: ClaimedDevice) -> str | None:
        """The group of a device of ours that a claim has, and not merely for administration."""
        group = self._drivers.get(used.driver)
        return None if group is None or (group, *used.claim, used.device) in self._claims.admin else group

    async def _adopt_claim(self, group: str, used: ClaimedDevice) -> None:
        if self._ledger.account.prepared(group, used.uid) is not None:
            return
        holder = ClaimHolder(*used.claim, used.uid)
        try:
            pick = replace(self._names.pick_of(group, used.device), share=used.name)
            await self._ledger.adopt_claim(pick, holder, Phase.PREPARED)
        except (LookupError, Refused) as error:
            extra = {"group": group, "device": used.device, "holder": str(holder), "why": str(error)}
            log.warning("cannot take up a claim that the kubelet has prepared", extra=extra)
            return
        log.warning(
            "took up a claim that the ledger lacked",
            extra={"group": group, "device": used.device, "holder": str(holder)},
        )
        self._taken_up(Plane.DRA, group, [used.name], str(holder))

    def _unknown_claims(self, claimed: Iterable[ClaimedDevice]) -> dict[Where, str]:
        """Devices of ours that pods use through claims of which the ledger knows nothing."""
        fences: dict[Where, str] = {}
        known: set[tuple[str, str, str]] | None = None
        for used in claimed:
            group = self._group_of_holding(used)
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
