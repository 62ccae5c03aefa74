"""Switching between modes (design 2): what follows what, what has to be done, and what is offered meanwhile.

Pure: the record of a switch in, the next record out; the daemon does what is `due` and says when it is `achieved`.
Every record can be turned to any mode and read back after any death, and comes to its target from there. Nobody is
left without a plane for longer than the name on both planes demands: a plane that opens is confirmed before the other
one closes, except on the way to `dra` under the same name: the scheduler serves that by DRA only when the node has none
of it left.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from bridge.config import Mode
from bridge.ledger.switches import Gate, Switch

LABEL = "device-bridge.io/mode"
"""Label of the Node: the wanted mode of all groups; with `.<group>` behind it, of one."""

WAIT_FOR_HOLDERS = "device-bridge.io/wait-for-holders"
"""Annotation of the Node, `true`: close the device plugin only when its holders have ended."""

ACCEPT_STRANDED = "device-bridge.io/accept-stranded-pods"
"""Annotation of the Node, groups or `*`: go to `dra` although pods that ask by resource name would stay pending."""


class Phase(enum.StrEnum):
    """Where a group is on its way, for people and conditions."""

    SETTLED = "Settled"
    OPENING = "Opening"
    CLOSING = "Closing"
    WAITING = "Waiting"
    REFUSED = "Refused"


class Reason(enum.StrEnum):
    """Why it is there, in one word."""

    SETTLED = "AsWanted"
    UNKNOWN_MODE = "UnknownMode"
    NAME_NOT_CARRIED = "NameNotCarried"
    NO_DRA = "NoDynamicResourceAllocation"
    NOT_CHECKED = "NotChecked"
    OPENING_DEVICE_PLUGIN = "OpeningDevicePlugin"
    OPENING_DRA = "OpeningDRA"
    CLOSING_DEVICE_PLUGIN = "ClosingDevicePlugin"
    CLOSING_DRA = "ClosingDRA"
    ALLOCATABLE = "WaitingForAllocatable"
    HOLDERS = "WaitingForHolders"
    NODE_UNREADABLE = "NodeUnreadable"


@dataclass(frozen=True, slots=True)
class GroupMode:
    """One group's mode as everybody may see it.

    Attributes:
        group: its name.
        wanted: what label or configuration ask for.
        mode: the one that it was last wholly in.
        phase, reason, message: where it is on its way and why, for conditions and for people.
        since: wall clock, when that began.
    """

    group: str
    wanted: Mode
    mode: Mode
    phase: Phase
    reason: Reason
    message: str
    since: float


class Due(enum.StrEnum):
    """What has to be done, and confirmed, before a switch goes on."""

    LIST = "list"
    """The device plugin is registered, the kubelet has been sent what is free, and the Node counts it: only then does
    the scheduler know."""

    UNLIST = "unlist"
    """Every reader of the device plugin's list has been sent it with nothing free."""

    ALLOCATABLE = "allocatable"
    """The Node shows as allocatable no more than is listed as healthy, for a name on both planes nothing."""

    STORE = "store"
    """The driver is registered, and slices with what is free are stored."""

    WITHDRAW = "withdraw"
    """Slices without what is free are stored."""


@dataclass(frozen=True, slots=True)
class Offering:
    """What a group's planes show.

    Attributes:
        device_plugin, dra: whether what is free is offered there.
        listed: whether the device plugin lists all its IDs, offered or not: unhealthy ones tell the kubelet that they
            are no longer to be had, missing ones would make it forget them.
        hides_held: whether it lists held IDs as unhealthy too.
        mirrors: whether it lists as healthy what DRA serves under its own resource name: the scheduler counts the pods
            that have it, so allocatable has to count it too.
    """

    device_plugin: bool
    dra: bool
    listed: bool
    hides_held: bool = False
    mirrors: bool = False

    @classmethod
    def of(cls, mode: Mode) -> Offering:
        """Of a group that is wholly in a mode."""
        ours = mode is not Mode.DRA
        return cls(ours, mode is not Mode.DEVICE_PLUGIN, ours)

    @property
    def mode(self) -> Mode:
        """The mode that it comes nearest to; a group that offers nothing has closed DRA, or not opened it yet."""
        if self.dra:
            return Mode.DUAL if self.device_plugin else Mode.DRA
        return Mode.DEVICE_PLUGIN


@dataclass(frozen=True, slots=True)
class Wanted:
    """The mode that is asked for.

    Attributes:
        mode: which; None if what is asked for is no mode, then nothing changes.
        source: the label, or the configuration, for texts.
        problem: what is wrong with the label.
    """

    mode: Mode | None
    source: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How a switch is to be made; see the annotations."""

    wait_for_holders: bool = False
    accepted: frozenset[str] = frozenset()

    @classmethod
    def read(cls, annotations: Mapping[str, str]) -> Options:
        """From the Node's annotations."""
        accepted = (name.strip() for name in annotations.get(ACCEPT_STRANDED, "").split(","))
        return cls(annotations.get(WAIT_FOR_HOLDERS) == "true", frozenset(filter(None, accepted)))

    def accepts(self, group: str) -> bool:
        """Whether pods of this group may be left pending."""
        return bool(self.accepted & {group, "*"})


def wanted(group: str, configured: Mode, labels: Mapping[str, str]) -> Wanted:
    """What is wanted of a group: its own label, the label for all, or the configuration."""
    for label in (f"{LABEL}.{group}", LABEL):
        value = labels.get(label)
        if value is None:
            continue
        if value in tuple(Mode):
            return Wanted(Mode(value), f"label {label}")
        known = ", ".join(Mode)
        return Wanted(None, f"label {label}", f"label {label} is {value!r}, which is no mode; modes: {known}")
    return Wanted(configured, "the configuration")


# The record


def settled(group: str, mode: Mode, now: float) -> Switch:
    """A group that is wholly in a mode."""
    return Switch(group, mode, mode, *_gates(mode), now)


def is_settled(switch: Switch) -> bool:
    """Whether it has arrived."""
    return (switch.device_plugin, switch.dra) == _gates(switch.target)


def closes_device_plugin(switch: Switch, mode: Mode) -> bool:
    """Whether going to a mode would begin to close the device plugin, which may have to be refused."""
    return mode is Mode.DRA and switch.device_plugin.offers


def opens_dra(switch: Switch, mode: Mode) -> bool:
    """Whether going to a mode would open DRA."""
    return mode is not Mode.DEVICE_PLUGIN and switch.dra is Gate.CLOSED


def turn(switch: Switch, mode: Mode, now: float, *, same_name: bool) -> Switch:
    """Go to a mode from wherever it stands; `same_name`: DRA is to serve the resource name."""
    return switch if mode is switch.target else _steer(replace(switch, target=mode), now, same_name)


def due(switch: Switch) -> Due | None:
    """What has to be done next; None where it has arrived."""
    match switch.device_plugin:
        case Gate.OPENING if switch.target is not Mode.DRA:  # there it is to close, as soon as DRA is open
            return Due.LIST
        case Gate.CLOSING:
            return Due.UNLIST
        case Gate.WAITING:
            return Due.ALLOCATABLE
        case _:
            return {Gate.OPENING: Due.STORE, Gate.CLOSING: Due.WITHDRAW}.get(switch.dra)


def achieved(switch: Switch, done: Due, now: float, *, same_name: bool) -> Switch:
    """How it stands when that is done; unchanged if it was not, or no longer, due."""
    if done is not due(switch):
        return switch
    match done:
        case Due.LIST:
            after = replace(switch, device_plugin=Gate.OPEN)
        case Due.UNLIST:
            after = replace(switch, device_plugin=Gate.WAITING)
        case Due.ALLOCATABLE:
            after = replace(switch, device_plugin=Gate.CLOSED)
        case Due.STORE:
            after = replace(switch, dra=Gate.OPEN)
        case Due.WITHDRAW:
            after = replace(switch, dra=Gate.CLOSED)
    return _steer(after, now, same_name)


def _steer(switch: Switch, now: float, same_name: bool) -> Switch:
    """Set the gates in motion that its target needs now."""
    plugin, dra = switch.device_plugin, switch.dra
    match switch.target:
        case Mode.DUAL:
            plugin, dra = _opened(plugin), _opened(dra)
        case Mode.DEVICE_PLUGIN:
            plugin = _opened(plugin)
            if plugin is Gate.OPEN:
                dra = Gate.CLOSED if dra is Gate.CLOSED else Gate.CLOSING
        case Mode.DRA if not same_name:
            dra = _opened(dra)
            plugin = Gate.CLOSING if plugin.offers and dra is Gate.OPEN else plugin
        case Mode.DRA:
            plugin = Gate.CLOSING if plugin.offers else plugin
            # Not opened before the device plugin is closed: a class of the same name would serve pods by slices
            # while the scheduler still counts the node's own (kubelet-contract H31).
            if plugin is Gate.CLOSED or dra is not Gate.CLOSED:
                dra = _opened(dra)
    after = replace(switch, device_plugin=plugin, dra=dra, since=now)
    return replace(after, mode=switch.target) if is_settled(after) else after


def _opened(gate: Gate) -> Gate:
    return gate if gate.offers else Gate.OPENING


def _gates(mode: Mode) -> tuple[Gate, Gate]:
    def gate(open_: bool) -> Gate:
        return Gate.OPEN if open_ else Gate.CLOSED

    return gate(mode is not Mode.DRA), gate(mode is not Mode.DEVICE_PLUGIN)


def offering(switch: Switch, *, same_name: bool, wait_for_holders: bool, admitting: bool) -> Offering:
    """What is shown while it stands so.

    Held IDs of the device plugin are hidden where allocatable, which counts them, has to come to 0: for a name that
    DRA takes over. Not if holders are waited for; once closed there are none of those. `admitting`: the kubelet is
    taking its pods up again, and fails those whose devices are not healthy.
    On the way back, what DRA serves under the name is listed as healthy: the scheduler counts every pod of the node
    that asks for the name, whichever plane serves it (seen in 1.37.1), and would find no room beside them.
    """
    plugin = switch.device_plugin
    waits = wait_for_holders and plugin in (Gate.CLOSING, Gate.WAITING)
    hides = same_name and not plugin.offers and not waits and not admitting
    mirrors = same_name and plugin.offers
    return Offering(plugin.offers, switch.dra.offers, plugin is not Gate.CLOSED, hides, mirrors)


def phase(switch: Switch) -> Phase:
    """Where it is; of two gates in motion the one that closes counts."""
    gates = (switch.device_plugin, switch.dra)
    if Gate.WAITING in gates:
        return Phase.WAITING
    if Gate.CLOSING in gates:
        return Phase.CLOSING
    return Phase.OPENING if Gate.OPENING in gates else Phase.SETTLED


def is_counted(allocatable: int | None, healthy: Collection[str], *, asked: bool) -> bool:
    """Whether the Node shows that the kubelet gives out something, if there is something.

    A Node that cannot be read now (None) does not show it; without anybody to ask (not `asked`) it never will.
    """
    return not healthy or (not asked if allocatable is None else allocatable > 0)


def counts_as_none(allocatable: int | None, healthy: Collection[str], *, same_name: bool) -> bool:
    """Whether the Node shows that the kubelet gives out no more; `allocatable` is None where it cannot be read.

    Nobody but the scheduler depends on it: for a name of the device plugin's own the ledger's refusal is enough.
    """
    if same_name:
        # A kubelet that has lost us, or has just begun, counts none either, and what is healthy as soon as it reads.
        return allocatable == 0 and not healthy
    return allocatable is None or allocatable <= len(healthy)
