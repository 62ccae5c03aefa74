"""The look before an ID is handed out again: does a container of its last pod still run?

The kubelet takes an ID for free when it has forgotten the pod: deleted by force (H9), or its checkpoint lost (H14).
Keeps S2's "proven in use" (design 1). At admission no container of the asking pod runs yet, so a running one of
the recorded holder is always somebody else's use (kubelet-contract E.3, H9). Costs nothing where an ID has no holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

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


RunningOf = Callable[[str], Awaitable[Running]]
"""Asks for a pod by UID. Answers within a bounded time and never raises for a runtime that does not."""


class StillUsed(Exception):
    """An ID whose last pod still runs; the text says which, and what to do."""


async def check_last_holders(
    account: Account, group: str, ids: Sequence[str], running_of: RunningOf
) -> dict[str, str]:
    """Raise StillUsed if the recorded holder of one of these IDs still runs.

    Returns the IDs of which nobody could tell, with the reason. A hold of which the pod's UID is not known yet is
    passed over: nothing tells its containers from another's.
    """
    held = {i: h for i in ids if (h := account.of_share(Plane.DEVICE_PLUGIN, group, i)) is not None}
    uids = list(dict.fromkeys(h.holder.uid for h in held.values() if h.holder.uid))
    answers = dict(zip(uids, await asyncio.gather(*map(running_of, uids)), strict=True)) if uids else {}
    unknown: dict[str, str] = {}
    for device_id, hold in held.items():
        answer = answers.get(hold.holder.uid)
        if answer is None:
            continue
        if answer.unknown:
            unknown[device_id] = answer.unknown
        elif answer.containers:
            raise StillUsed(_text(device_id, hold, answer.containers))
    return unknown


def _text(device_id: str, hold: Hold, containers: Sequence[str]) -> str:
    assert isinstance(hold.holder, PodHolder)
    names = ", ".join(sorted(containers))
    verb = "still runs" if len(containers) == 1 else "still run"
    return (
        f"{device_id} is still in use by {hold.holder} (UID {hold.holder.uid}), whose {names} {verb} although the "
        f"kubelet no longer counts it: wait until it has stopped, or stop it with crictl; then make the pod anew"
    )
