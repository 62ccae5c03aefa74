"""What the planes report: each hand-out, refusal, release, quarantine and healing, once, as a value.

Who wants to know takes the values: the log, the metrics, Kubernetes events. The planes know none of them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.config import Mode
from bridge.ledger.holds import ClaimHolder, Hold, Plane, PodHolder, Refused
from bridge.ledger.store import LedgerError
from bridge.planes.regrants import StillUsed
from bridge.planes.roster import Unavailable
from bridge.platform.cdi import CdiError


class Cause(enum.StrEnum):
    """Why something was refused, in one word, for counting."""

    HELD = "held"
    """Somebody else has it."""

    QUARANTINED = "quarantined"
    """Nobody may have it."""

    UNAVAILABLE = "unavailable"
    """It is unplugged, broken, unknown, of the other plane, or asked for in a way that is not possible."""

    MOVING = "moving"
    """A claim that lost it is being moved away."""

    IN_USE = "in-use"
    """Its last pod still runs."""

    LEDGER = "ledger"
    """The ledger cannot be written."""

    CDI = "cdi"
    """The claim's CDI file cannot be written."""

    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Asker:
    """The claim that was refused something, and the pods that it is reserved for."""

    claim: ClaimHolder
    pods: tuple[PodHolder, ...] = ()


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Devices were handed out, durably; `seconds` from the call to the answer."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WasRefused:
    """A request was refused; `why` is the text that the caller got, `asker` is empty for Allocate (A.4)."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    holder: str
    why: str
    cause: Cause = Cause.OTHER
    blockers: tuple[Hold, ...] = ()
    asker: Asker | None = None


@dataclass(frozen=True, slots=True)
class Reserved:
    """Devices were reserved for a claim that was seen allocated; `seconds` as the ledger needed."""

    group: str
    devices: tuple[str, ...]
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConditionSet:
    """The scheduler was told what became of a claim that it waits with: `reserved`, `held-elsewhere`; or `failed`,
    it could not be told yet, and `why`."""

    group: str
    claim: ClaimHolder
    outcome: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReservationLost:
    """A claim is allocated what somebody else has; nobody has asked for it yet."""

    group: str
    devices: tuple[str, ...]
    why: str
    asker: Asker
    blockers: tuple[Hold, ...] = ()


@dataclass(frozen=True, slots=True)
class Unproven:
    """Devices were handed out again, and nobody could say whether their last pod still runs."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A hold that somebody else made, past the ledger or before it: the kubelet shows it."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    holder: str


@dataclass(frozen=True, slots=True)
class Idle:
    """A claim has devices and no pod of this node names it, for long."""

    group: str
    devices: tuple[str, ...]
    claim: ClaimHolder


@dataclass(frozen=True, slots=True)
class Orphaned:
    """A claim that is gone was treated as unprepared: the kubelet will never do it."""

    group: str
    devices: tuple[str, ...]
    holder: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Holds ended on proof; the devices are free again."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    holder: str
    why: str


@dataclass(frozen=True, slots=True)
class Forced:
    """An operator ended holds without proof."""

    plane: Plane
    group: str
    devices: tuple[str, ...]
    holder: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A claim has no device any longer, and keeps these here: the kubelet does not unprepare it."""

    group: str
    devices: tuple[str, ...]
    claim: ClaimHolder


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Nobody gets a device (`*`: any of the group; group `*`: any at all)."""

    group: str
    device: str
    why: str


@dataclass(frozen=True, slots=True)
class QuarantineLifted:
    """A quarantine ended; `why` it had been is told once more."""

    group: str
    device: str
    why: str


@dataclass(frozen=True, slots=True)
class Healing:
    """A device is tainted, so that the claim that lost it to these holders is moved elsewhere."""

    group: str
    device: str
    asker: Asker
    holders: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class Healed:
    """That taint is taken back."""

    group: str
    device: str
    asker: Asker
    why: str


@dataclass(frozen=True, slots=True)
class ConflictStands:
    """A claim that lost a device is left where it is."""

    group: str
    device: str
    asker: Asker
    holders: tuple[Hold, ...]
    why: str


@dataclass(frozen=True, slots=True)
class ProofDegraded:
    """A source of evidence does not answer; `effect` on releases."""

    source: str
    trouble: str
    effect: str


@dataclass(frozen=True, slots=True)
class ProofRestored:
    """A source of evidence answers again."""

    source: str


@dataclass(frozen=True, slots=True)
class ModeSwitched:
    """A group has arrived at another mode."""

    group: str
    mode: Mode
    before: Mode


@dataclass(frozen=True, slots=True)
class ModeRefused:
    """A group is not switched to the mode that is wanted; `mode` is what it stays in or goes to."""

    group: str
    wanted: str
    mode: Mode
    why: str


@dataclass(frozen=True, slots=True)
class ModeWaiting:
    """A group has been on its way for a while, and what it waits for."""

    group: str
    wanted: Mode
    phase: str
    why: str


News = (
    HandedOut
    | WasRefused
    | Reserved
    | ReservationLost
    | ConditionSet
    | Unproven
    | TakenUp
    | Idle
    | Orphaned
    | Ended
    | Forced
    | Kept
    | Quarantined
    | QuarantineLifted
    | Healing
    | Healed
    | ConflictStands
    | ProofDegraded
    | ProofRestored
    | ModeSwitched
    | ModeRefused
    | ModeWaiting
)

Sink = Callable[[News], None]
"""Takes news; never waits and never raises."""


class Report:
    """Where the planes tell what they did; every sink hears all of it."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)

    def add(self, sink: Sink) -> None:
        """One more that hears what is told from now on."""
        self._sinks.append(sink)

    def tell(self, news: News) -> None:
        """Pass it on."""
        for sink in self._sinks:
            sink(news)

    def handed_out(
        self, plane: Plane, group: str, devices: Sequence[str], holder: str, seconds: float
    ) -> None:
        """Devices were handed out, durably; `seconds` from the call to the answer."""
        self.tell(HandedOut(plane, group, tuple(devices), holder, seconds))

    def refused(
        self,
        plane: Plane,
        group: str,
        devices: Sequence[str],
        holder: str,
        why: str,
        error: Exception | None = None,
        asker: Asker | None = None,
    ) -> None:
        """A request was refused, with the text that the caller got; the error that it came from tells the cause."""
        blockers = error.blockers if isinstance(error, Refused) else ()
        self.tell(WasRefused(plane, group, tuple(devices), holder, why, cause_of(error), blockers, asker))

    def unproven(self, plane: Plane, group: str, devices: Sequence[str], why: str) -> None:
        """Devices were handed out again, and nobody could say whether their last pod still runs."""
        self.tell(Unproven(plane, group, tuple(devices), why))

    def taken_up(self, plane: Plane, group: str, devices: Sequence[str], holder: str) -> None:
        """Holds were taken up that this daemon had not made."""
        self.tell(TakenUp(plane, group, tuple(devices), holder))

    def ended(self, plane: Plane, group: str, devices: Sequence[str], holder: str, why: str) -> None:
        """Holds ended; the devices are free again."""
        self.tell(Ended(plane, group, tuple(devices), holder, why))


class Moving(Unavailable):
    """A device that no claim may be given while another is being moved away from it."""


def cause_of(error: Exception | None) -> Cause:
    """The cause of a refusal. Pure."""
    match error:
        case Refused(blockers=blockers):
            return Cause.HELD if blockers else Cause.QUARANTINED
        case StillUsed():
            return Cause.IN_USE
        case Moving():
            return Cause.MOVING
        case Unavailable():
            return Cause.UNAVAILABLE
        case LedgerError():
            return Cause.LEDGER
        case CdiError():
            return Cause.CDI
        case _:
            return Cause.OTHER
