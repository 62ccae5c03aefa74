"""The look before an ID is handed out again: does its last pod still have it?

The kubelet takes an ID for free when it has forgotten the pod: deleted by force (H9), or its checkpoint lost (H14).
And it forgets an ID that is being allocated while anybody lists its pods' resources and a pod has just ended: then it
gives the same ID to the next pod too (UpdateAllocatedDevices regenerates what is in use without what is under way).
Keeps S2's "proven in use" (design 1). At admission no container of the asking pod runs yet, so a running one of
the recorded holder is always somebody else's use (kubelet-contract E.3, H9). Costs nothing where an ID has no holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Plane, PodHolder


@dataclass(frozen=True, slots=True)
class Running:
    """What the runtime says of one pod.

    Attributes:
        containers: names of its containers that may still use devices.
        unknown: why the runtime could not tell; then `containers` says nothing.
    """

    containers: tuple[str, ...] = ()
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """Whom the kubelet shows with some IDs.

    Attributes:
        pods: by ID, the active pod that is listed with it, as `namespace/name`.
        uids: by ID, the UIDs of the pods that the checkpoint names, of ended ones perhaps too.
        unknown: why the kubelet could not tell; then `pods` says nothing.
    """

    pods: Mapping[str, str] = field(default_factory=dict)
    uids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unknown: str = ""


class Witnesses(Protocol):
    """Who can be asked on the path of Allocate: answer within a bounded time, and raise nothing for silence."""

    async def running_of(self, pod_uid: str) -> Running:
        """What still runs of a pod."""
        ...

    async def shown_with(self, resource: str, ids: Sequence[str]) -> Shown:
        """Whom the kubelet shows with these IDs."""
        ...


class StillUsed(Exception):
    """An ID whose last pod still runs; the text says which, and what to do."""


async def check_last_holders(
    account: Account, group: str, resource: str, ids: Sequence[str], witnesses: Witnesses
) -> dict[str, str]:
    """Raise StillUsed if the last pod that got one of these IDs still has it.

    Returns the IDs of which nobody could tell, with the reason. Where the holder's UID is known the runtime tells.
    Where it is not yet, the ID was handed out a moment ago: to a pod that the kubelet did not admit after all (H12),
    or to one that is about to start, which the kubelet shows with it.
    """
    held = {i: h for i in ids if (h := account.of_share(Plane.DEVICE_PLUGIN, group, i)) is not None}
    new = [i for i, hold in held.items() if not hold.holder.uid]
    shown = await witnesses.shown_with(resource, new) if new else Shown()
    for device_id in new:
        if device_id in shown.pods:
            raise StillUsed(_text_of_new(device_id, shown.pods[device_id]))
    owners = {
        i: shown.uids.get(i, frozenset()) if i in new else frozenset({h.holder.uid}) for i, h in held.items()
    }
    uids = sorted(frozenset[str]().union(*owners.values()))
    answers = dict(zip(uids, await asyncio.gather(*map(witnesses.running_of, uids)), strict=True))
    unknown = dict.fromkeys(new, shown.unknown) if shown.unknown else {}
    for device_id, hold in held.items():
        for answer in map(answers.__getitem__, owners[device_id]):
            if answer.unknown:
                unknown[device_id] = answer.unknown
            elif answer.containers:
                raise StillUsed(_text(device_id, hold, answer.containers))
    return unknown


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
