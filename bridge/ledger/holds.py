"""What the ledger speaks of: holds, holders, prepared claims, quarantines, and the changes of a transaction.

Pure values, no file and no clock. The account of them is `bridge.ledger.account`'s.
"""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass

from bridge.ledger.switches import Switch


class Plane(enum.StrEnum):
    """One of the two kubelet APIs."""

    DEVICE_PLUGIN = "device-plugin"
    DRA = "dra"


class Phase(enum.StrEnum):
    """Where a hold is in its life.

    GRANTED and HELD are the device plugin's: answered, and seen with its pod. RESERVED, PREPARED and RELEASING
    are DRA's: the claim is seen allocated and not prepared yet, it is prepared, it is unprepared and not yet
    known to be deallocated (S4 needs both).
    """

    GRANTED = "granted"
    HELD = "held"
    RESERVED = "reserved"
    PREPARED = "prepared"
    RELEASING = "releasing"


@dataclass(frozen=True, slots=True)
class PodHolder:
    """A pod that the device plugin API served; all empty until the kubelet's evidence names it (A.4: Allocate
    does not say who asks)."""

    namespace: str = ""
    name: str = ""
    container: str = ""
    uid: str = ""

    @property
    def known(self) -> bool:
        """Whether any evidence has named the pod."""
        return bool(self.name or self.uid)

    def __str__(self) -> str:
        if self.name:
            return f"pod {self.namespace}/{self.name}"
        return f"pod with UID {self.uid}" if self.uid else "a pod not yet identified"


@dataclass(frozen=True, slots=True)
class ClaimHolder:
    """A ResourceClaim; the UID is its identity, the name is for people and for GET (H6)."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"claim {self.namespace}/{self.name}"


Holder = PodHolder | ClaimHolder


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a part one hold uses, of which capacity.

    The capacity is the part's when the hold was made. A hold that used all of it had the part to itself, and
    keeps it so if the capacity grows later.
    """

    part: str
    amount: int
    capacity: int

    @property
    def whole(self) -> bool:
        """Whether it leaves nothing of the part to others."""
        return self.amount >= self.capacity


@dataclass(frozen=True, slots=True)
class Hold:
    """A durable record that a plane has handed out a device, or a share of one.

    Attributes:
        id: the ledger's number for it, never used twice.
        plane, phase: see there.
        group, device: the device as the inventory names it.
        share: what was handed out under: a device plugin ID, a DRA device name or a share ID.
        holder: the pod or the claim.
        uses: the parts it uses, fixed when it was made.
        since: wall clock, for people only (H42).
        boot: boot ID of the machine when it was made.
        by_name: of a claim that was unprepared: it was made for a pod that asked by resource name.
    """

    id: int
    plane: Plane
    phase: Phase
    group: str
    device: str
    share: str
    holder: Holder
    uses: tuple[Use, ...]
    since: float
    boot: str = ""
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class PreparedClaim:
    """What one group answered for a claim, kept word for word: Prepare repeats it (H13)."""

    group: str
    holder: ClaimHolder
    answer: str
    since: float


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A device nobody may have until an operator or better evidence says so (S5).

    `device` and `group` may be `*`: everything.
    """

    group: str
    device: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Record:
    """Something an operator did to the ledger by force, kept for those who ask later.

    Attributes:
        at: wall clock.
        what: in one word, as `release`.
        who: who asked for it.
        text: what it was done to, and why.
    """

    at: float
    what: str
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class Pick:
    """One device, or share of one, that a plane wants to hand out."""

    group: str
    device: str
    share: str
    uses: tuple[Use, ...]


class Refused(Exception):
    """A hand-out that the ledger does not allow.

    Attributes:
        pick: what was asked for.
        blockers: the holds in the way; empty where a quarantine is.
    """

    def __init__(self, pick: Pick, message: str, blockers: tuple[Hold, ...] = ()) -> None:
        super().__init__(message)
        self.pick = pick
        self.blockers = blockers


@dataclass(frozen=True, slots=True)
class PutHold:
    """Add a hold, or put a changed one in its place."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class DropHold:
    """End a hold."""

    id: int


@dataclass(frozen=True, slots=True)
class PutClaim:
    """Remember a claim's answer."""

    claim: PreparedClaim


@dataclass(frozen=True, slots=True)
class DropClaim:
    """Forget a claim's answer."""

    group: str
    uid: str


@dataclass(frozen=True, slots=True)
class PutQuarantine:
    """Quarantine a device, a group or everything."""

    quarantine: Quarantine


@dataclass(frozen=True, slots=True)
class LiftQuarantine:
    """End a quarantine."""

    group: str
    device: str


@dataclass(frozen=True, slots=True)
class PutRecord:
    """Keep a record."""

    record: Record


@dataclass(frozen=True, slots=True)
class Compared:
    """Note that a new ledger has been compared with whole evidence."""


@dataclass(frozen=True, slots=True)
class PutSwitch:
    """Remember how far a group is between two modes."""

    switch: Switch


Change = (
    PutHold
    | DropHold
    | PutClaim
    | DropClaim
    | PutQuarantine
    | LiftQuarantine
    | PutRecord
    | PutSwitch
    | Compared
)
"""What a transaction consists of; the account in memory and the file apply the same ones."""


def clock(at: float) -> str:
    """Wall clock time for people, UTC, ISO 8601."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_API = {
    Plane.DEVICE_PLUGIN: "through the device plugin API",
    Plane.DRA: "through DRA",
}


def refusal(pick: Pick, blockers: tuple[Hold, ...]) -> str:
    """Say who holds what was asked for, and when it is offered again (Q4)."""
    if not blockers:
        return (
            f"{pick.share} asks for more than there is: its part has no room for it even when nothing is held"
        )
    first, more = blockers[0], len(blockers) - 1
    others = f" and {more} more" if more else ""
    end = "that pod ends" if first.plane is Plane.DEVICE_PLUGIN else "that claim is deallocated"
    ending = ", which is being released" if first.phase is Phase.RELEASING else ""
    verb = "reserved for" if first.phase is Phase.RESERVED else "held by"
    since = clock(first.since)
    return (
        f"{pick.share} is {verb} {first.holder}{others} {_API[first.plane]} since {since}{ending}; "
        f"it is offered again when {end}"
    )
