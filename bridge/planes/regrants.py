"""The look before an ID is handed out again: does its last pod still have it?

The kubelet takes an ID for free when it has forgotten the pod: deleted by force (H9), or its checkpoint lost (H14).
And it forgets an ID that is being allocated while anybody lists its pods' resources and a pod has just ended: then it
gives the same ID to the next pod too (UpdateAllocatedDevices regenerates what is in use without what is under way).
Keeps S2's "proven in use" (design 1). At admission no container of the asking pod runs yet, so a running one of
the recorded holder is always somebody else's use (kubelet-contract E.3, H9). Costs nothing where an ID has no holder.
Who ought to know and does not answer in time counts as a yes: only where there is no runtime to ask does an ID go out
again on the word of the kubelet alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Plane, PodHolder

LOOK_S = 2.0
"""Longest look, at everybody together. So long because Allocate has no deadline and a busy node's runtime is slow,
just when a pod that was deleted lingers on it."""


@dataclass(frozen=True, slots=True)
class Running:
    """What the runtime says of one pod.

    Attributes:
        containers: names of its containers that may still use devices.
        silent: why a runtime that is there could not tell; then `containers` says nothing.
        missing: why there is no runtime to ask; then `containers` says nothing.
    """

    containers: tuple[str, ...] = ()
    silent: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """Whom the kubelet shows with some IDs.

    Attributes:
        pods: by ID, the active pod that is listed with it, as `namespace/name`.
        uids: by ID, the UIDs of the pods that the checkpoint names, of ended ones perhaps too.
        silent: why the kubelet could not tell; then the others say nothing.
    """

    pods: Mapping[str, str] = field(default_factory=dict)
    uids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    silent: str = ""


class Witnesses(Protocol):
    """Who can be asked on the path of Allocate: answer within so many seconds, and raise nothing for silence."""

    async def running_of(self, pod_uid: str, within: float) -> Running:
        """What still runs of a pod."""
        ...

    async def shown_with(self, resource: str, ids: Sequence[str], within: float) -> Shown:
        """Whom the kubelet shows with these IDs."""
        ...


class StillUsed(Exception):
    """An ID whose last pod still has it, or may have it for all that is known; the text says what to do."""


async def check_last_holders(
    account: Account, group: str, resource: str, ids: Sequence[str], witnesses: Witnesses
) -> dict[str, str]:
    """Raise StillUsed if the last pod that got one of these IDs still has it, or if who knows does not answer.

    Returns the IDs of which nobody could tell, with the reason: those of a node without a runtime to ask. Where the
    holder's UID is known the runtime tells. Where it is not yet, the ID was handed out a moment ago: to a pod that the
    kubelet did not admit after all (H12), or to one that is about to start, which the kubelet shows with it.
    """
    held = {i: h for i in ids if (h := account.of_share(Plane.DEVICE_PLUGIN, group, i)) is not None}
    new = [i for i, hold in held.items() if not hold.holder.uid]
    now = asyncio.get_running_loop().time
    until = now() + LOOK_S
    shown = await witnesses.shown_with(resource, new, LOOK_S) if new else Shown()
    for device_id in new:
        if shown.silent:
            raise StillUsed(_text_of_silence(device_id, held[device_id], "the kubelet", shown.silent))
        if device_id in shown.pods:
            raise StillUsed(_text_of_new(device_id, shown.pods[device_id]))
    owners = {
        i: shown.uids.get(i, frozenset()) if i in new else frozenset({h.holder.uid}) for i, h in held.items()
    }
    uids = sorted(frozenset[str]().union(*owners.values()))
    within = max(0.0, until - now())
    found = await asyncio.gather(*(witnesses.running_of(uid, within) for uid in uids))
    answers = dict(zip(uids, found, strict=True))
    unknown = dict[str, str]()
    for device_id, hold in held.items():
        for answer in map(answers.__getitem__, owners[device_id]):
            if answer.silent:
                raise StillUsed(_text_of_silence(device_id, hold, "the container runtime", answer.silent))
            if answer.containers:
                raise StillUsed(_text(device_id, hold, answer.containers))
            if answer.missing:
                unknown[device_id] = answer.missing
    return unknown


def _text_of_silence(device_id: str, hold: Hold, witness: str, why: str) -> str:
    return (
        f"{device_id} may still be in use by {hold.holder}, and {witness}, which would know, does not say: {why}; "
        f"make the pod anew once it answers"
    )


def _text_of_new(device_id: str, pod: str) -> str:
    return (
        f"{device_id} has just been given to pod {pod}, which the kubelet still shows with it although it gives it "
        "out again: make the pod anew"
    )


def _text(device_id: str, hold: Hold, containers: Sequence[str]) -> str:
    assert isinstance(hold.holder, PodHolder)
    names = ", ".join(sorted(containers))
    verb = "still runs" if len(containers) == 1 else "still run"
    return (
        f"{device_id} is still in use by {hold.holder} (UID {hold.holder.uid}), whose {names} {verb} although the "
        f"kubelet no longer counts it: wait until it has stopped, or stop it with crictl; then make the pod anew"
    )
