"""Whether a claim that lost its device to the device plugin plane may be moved away from it by a taint.

Pure. A taint evicts every pod whose claim names the device, so it is allowed only where the loser is the device's only
claim and a pod's spec names it (kubelet-contract E.6, H43); for the others there is a reason, for people.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Pick, Plane, Refused
from bridge.planes.claims import decode
from bridge.planes.report import Asker
from bridge.planes.roster import Roster


@dataclass(frozen=True, slots=True)
class Loser:
    """A claim that cannot be prepared, because somebody else has a device of its allocation.

    Its pod is bound, else the kubelet would not ask: where the scheduler still waits for our conditions, the failing
    one sends the pod elsewhere (`bridge.planes.binding`), and nothing has to be tainted.

    Attributes:
        asker: which claim, and the pods that it is reserved for.
        pick: what it would have been booked.
        shown: the name that its allocation has for the device.
        extended_resource: the scheduler made it for an extended resource; no pod's spec names it.
    """

    asker: Asker
    pick: Pick
    shown: str
    extended_resource: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Group, claim and device: one conflict."""
        return (self.pick.group, self.asker.claim.uid, self.shown)


@dataclass(frozen=True, slots=True)
class Move:
    """Taint the device; the holders keep it."""

    holders: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """A taint would do harm, or nothing: leave it to people. `why` says so, for them."""

    why: str


@dataclass(frozen=True, slots=True)
class Over:
    """There is no conflict any longer."""

    why: str


Verdict = Move | Leave | Over


def decide(loser: Loser, roster: Roster, account: Account, others: Collection[str] = ()) -> Verdict:
    """What to do about a claim that lost a device. Pure.

    `others`: UIDs of claims that are allocated the device, as far as anybody knows; the loser's may be among them.
    """
    device = roster.by_name.get(loser.shown)
    if device is None or not device.present:
        return Over("the device is gone")
    try:
        account.check_quarantine(loser.pick)
    except Refused as refused:
        return Leave(str(refused))
    try:
        account.check_room(loser.pick)
    except Refused as refused:
        holders = refused.blockers
    else:
        return Over("its device is free")
    why_not = _why_not(loser, holders) or _beside(loser, device.name, roster, account, others)
    return Leave(why_not) if why_not else Move(holders)


def _why_not(loser: Loser, holders: tuple[Hold, ...]) -> str:
    """Why a taint would not move the loser, whoever else is on the device; empty if it would."""
    if not holders:
        return "it asks for more than the device has"
    if any(hold.plane is not Plane.DEVICE_PLUGIN for hold in holders):
        return "another claim has the device, and a taint would evict that claim's pods"
    if loser.extended_resource:
        return (
            "the scheduler made the claim for an extended resource, and the cluster does not evict such pods"
        )
    if not loser.asker.pods:
        return "no pod is known that names the claim"
    return ""


def _beside(loser: Loser, device: str, roster: Roster, account: Account, others: Collection[str]) -> str:
    """Which claim is on the device without holding any of it, as with admin access; empty if there is none."""
    group = loser.pick.group
    who = ""
    for claim in account.prepared_claims():
        if not who and claim.group == group and claim.holder.uid != loser.asker.claim.uid:
            names = (answered.device for answered in decode(claim.answer).answer.devices)
            if any(known.name == device for name in names if (known := roster.by_name.get(name))):
                who = str(claim.holder)
    if not who and any(uid != loser.asker.claim.uid for uid in others):
        who = "another claim"
    return f"{who} has the device too, and a taint would evict its pods" if who else ""
