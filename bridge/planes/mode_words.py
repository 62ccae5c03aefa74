"""What is said of a group on its way between modes: a phase, a reason in one word, and a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge.config import Group
from bridge.ledger.holds import Hold
from bridge.ledger.switches import Switch
from bridge.planes.modes import (
    WAIT_FOR_HOLDERS,
    Due,
    GroupMode,
    Phase,
    Reason,
    Wanted,
    due,
    is_settled,
    phase,
)

_SHOWN = 3
"""Holders named in a sentence; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A mode that is wanted and not gone to; `since`: wall clock."""

    reason: Reason
    text: str
    since: float


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a switch depends on now.

    Attributes:
        wanted: the mode that is asked for; None while it is not known, then the switch goes where it goes.
        refusal: why it is not gone to.
        allocatable: what the Node shows of the resource; None where it cannot be read.
        unread: why it cannot be.
        holds: of the device plugin plane.
        waits_for_holders: whether its end is waited for.
        admitting: whether the kubelet may be taking the holders up again, and what they hold is healthy for that.
        trouble: why what is due cannot be done now.
    """

    wanted: Wanted | None
    refusal: Refusal | None = None
    allocatable: int | None = None
    unread: str = ""
    holds: Sequence[Hold] = ()
    waits_for_holders: bool = False
    admitting: bool = False
    trouble: str = ""


def tell(switch: Switch, group: Group, around: Circumstances) -> GroupMode:
    """A group's mode as everybody may see it."""
    asked = around.wanted.mode if around.wanted is not None else None
    refused = around.refusal
    if refused is not None and is_settled(switch):
        wanted = asked or switch.target
        return GroupMode(
            group.name, wanted, switch.mode, Phase.REFUSED, refused.reason, refused.text, refused.since
        )
    reason, text = _state(switch, group, around)
    if around.trouble:
        text = f"{text}: {around.trouble}"
    if refused is not None:
        text = f"{text}; {refused.text}"
    wanted = asked or switch.target
    return GroupMode(group.name, wanted, switch.mode, phase(switch), reason, text, switch.since)


def _state(switch: Switch, group: Group, around: Circumstances) -> tuple[Reason, str]:
    resource = group.resource_name
    match due(switch):
        case None if around.unread:
            return Reason.NODE_UNREADABLE, f"in mode {switch.mode}; the Node cannot be read: {around.unread}"
        case None:  # no word of who wants it: a start that changes nothing would have news of it
            return Reason.SETTLED, f"in mode {switch.mode}"
        case Due.LIST if around.unread:
            why = f"waits for the Node to count {resource}, and it cannot be read: {around.unread}"
            return Reason.NODE_UNREADABLE, why
        case Due.LIST:
            return (
                Reason.OPENING_DEVICE_PLUGIN,
                f"the kubelet is being given {resource}, and the Node to count it",
            )
        case Due.UNLIST:
            text = f"the kubelet is being told that the device plugin has no {resource} to give"
            return Reason.CLOSING_DEVICE_PLUGIN, text
        case Due.STORE:
            return Reason.OPENING_DRA, f"driver {group.driver_name} is being registered and its slices stored"
        case Due.WITHDRAW:
            return (
                Reason.CLOSING_DRA,
                f"what is free is being withdrawn from the slices of {group.driver_name}",
            )
        case Due.ALLOCATABLE:
            return _waits(group, around)


def _waits(group: Group, around: Circumstances) -> tuple[Reason, str]:
    """For the Node to count the resource no more."""
    resource, held = group.resource_name, len(around.holds)
    if around.unread or around.allocatable is None:
        why = around.unread or "it was not read yet"
        return Reason.NODE_UNREADABLE, f"waits for {resource} to be 0 in the Node's allocatable: {why}"
    if around.waits_for_holders and held:
        return Reason.HOLDERS, (
            f"waits for the end of {_holders(around.holds)}, for annotation {WAIT_FOR_HOLDERS} asks for that; "
            f"without it the switch goes on at once"
        )
    if around.admitting and held:
        return Reason.ALLOCATABLE, (
            f"waits for the kubelet to take up {_holders(around.holds)} again: until they run, what they hold is "
            f"listed as healthy, and {resource} cannot stay 0 in the Node's allocatable"
        )
    until = "to be 0" if group.keep_resource_name else f"to be no more than the {held} held"
    text = f"waits for {resource} {until} in the Node's allocatable, which is {around.allocatable}"
    return Reason.ALLOCATABLE, text


def _holders(holds: Sequence[Hold]) -> str:
    names = list(dict.fromkeys(str(hold.holder) for hold in holds))
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
