"""Holds and the account of them: what is held, what fits, who stands in the way.

Pure: values and an in-memory account, no file and no clock. Keeps S2 and S3 (design 1): whatever does not fit
into the parts, or is quarantined, is refused, and the refusal names the holder (Q4).
"""

from __future__ import annotations

import datetime
import enum
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never


class Plane(enum.StrEnum):
    """One of the two kubelet APIs."""

    DEVICE_PLUGIN = "device-plugin"
    DRA = "dra"


class Phase(enum.StrEnum):
    """Where a hold is in its life.

    GRANTED and HELD are the device plugin's: answered, and seen with its pod. PREPARED and RELEASING are
    DRA's: prepared, and unprepared while the claim is not yet known to be deallocated (S4 needs both).
    """

    GRANTED = "granted"
    HELD = "held"
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


Change = PutHold | DropHold | PutClaim | DropClaim | PutQuarantine | LiftQuarantine
"""What a transaction consists of; the account in memory and the file apply the same ones."""

_NONE: Counter[str] = Counter()


class Account:
    """All holds, indexed. Every operation is O(1) in the number of holds of other devices."""

    def __init__(
        self,
        holds: Iterable[Hold] = (),
        claims: Iterable[PreparedClaim] = (),
        quarantines: Iterable[Quarantine] = (),
    ) -> None:
        self._holds: dict[int, Hold] = {}
        self._used: dict[str, int] = defaultdict(int)
        self._used_by: dict[tuple[str, Plane], int] = defaultdict(int)
        self._whole: Counter[str] = Counter()
        self._by_part: dict[str, set[int]] = defaultdict(set)
        self._by_share: dict[tuple[Plane, str, str], int] = {}
        # Tuples, for a claim has one hold as a rule and a set of one takes four times the memory.
        self._by_claim: dict[tuple[str, str], tuple[int, ...]] = {}
        self._by_group: dict[tuple[Plane, str], set[int]] = defaultdict(set)
        self._claims: dict[tuple[str, str], PreparedClaim] = {(c.group, c.holder.uid): c for c in claims}
        self._quarantines: dict[tuple[str, str], Quarantine] = {(q.group, q.device): q for q in quarantines}
        for hold in holds:
            self._add(hold)

    # Reading

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._holds.values())

    def __len__(self) -> int:
        return len(self._holds)

    def get(self, hold_id: int) -> Hold | None:
        """The hold of that number, if it is still there."""
        return self._holds.get(hold_id)

    def used(self, part: str) -> int:
        """How much of a part all holds together use."""
        return self._used.get(part, 0)

    def room(self, part: str, capacity: int) -> int:
        """How much of a part is free; nothing while somebody has it to himself."""
        return 0 if self._whole[part] > 0 else max(0, capacity - self.used(part))

    def standing(self, part: str) -> tuple[int, bool]:
        """All that `room` depends on: how much is used, and whether somebody has the part to himself."""
        return self.used(part), self._whole[part] > 0

    def used_by(self, part: str, plane: Plane) -> int:
        """How much of a part the holds of one plane use."""
        return self._used_by.get((part, plane), 0)

    def on_part(self, part: str) -> tuple[Hold, ...]:
        """The holds that use a part, oldest first."""
        return tuple(self._holds[i] for i in sorted(self._by_part.get(part, ())))

    def of_share(self, plane: Plane, group: str, share: str) -> Hold | None:
        """The hold under which a plane has handed out that ID, device name or share ID."""
        hold_id = self._by_share.get((plane, group, share))
        return None if hold_id is None else self._holds[hold_id]

    def of_claim(self, group: str, uid: str) -> tuple[Hold, ...]:
        """The holds that a claim has in one group, in the order they were made."""
        return tuple(self._holds[i] for i in sorted(self._by_claim.get((group, uid), ())))

    def prepared(self, group: str, uid: str) -> PreparedClaim | None:
        """What a group answered for a claim that is prepared."""
        return self._claims.get((group, uid))

    def prepared_claims(self) -> tuple[PreparedClaim, ...]:
        """All prepared claims, one entry for each group that has devices in it."""
        return tuple(self._claims.values())

    def of_group(self, plane: Plane, group: str) -> tuple[Hold, ...]:
        """The holds of one group on one plane, oldest first."""
        return tuple(self._holds[i] for i in sorted(self._by_group.get((plane, group), ())))

    def on_plane(self, plane: Plane) -> tuple[Hold, ...]:
        """All holds of one plane, oldest first."""
        return tuple(hold for hold in self._holds.values() if hold.plane is plane)

    def quarantine_of(self, group: str, device: str) -> Quarantine | None:
        """The quarantine that covers a device, the widest first."""
        for key in (("*", "*"), (group, "*"), (group, device)):
            if key in self._quarantines:
                return self._quarantines[key]
        return None

    def quarantines(self) -> tuple[Quarantine, ...]:
        """All quarantines."""
        return tuple(self._quarantines.values())

    # Deciding

    def check(self, pick: Pick, ending: frozenset[int] = frozenset(), planned: Counter[str] = _NONE) -> None:
        """Raise Refused unless the pick is not quarantined and fits beside all holds; see `check_room`."""
        self.check_quarantine(pick)
        self.check_room(pick, ending, planned)

    def check_quarantine(self, pick: Pick) -> None:
        """Raise Refused if the pick's device is quarantined."""
        quarantine = self.quarantine_of(pick.group, pick.device)
        if quarantine is not None:
            since = clock(quarantine.since)
            raise Refused(pick, f"{pick.share} is quarantined since {since}: {quarantine.reason}")

    def check_room(
        self, pick: Pick, ending: frozenset[int] = frozenset(), planned: Counter[str] = _NONE
    ) -> None:
        """Raise Refused unless the pick fits beside all holds.

        The same transaction may end some holds (`ending`) and has already taken some amounts (`planned`, by
        part) for its earlier picks.
        """
        for use in pick.uses:
            freed = [u for i in ending for u in self._holds[i].uses if u.part == use.part]
            whole = self._whole[use.part] - sum(u.whole for u in freed)
            used = self.used(use.part) - sum(u.amount for u in freed) + planned[use.part]
            if whole > 0 or used + use.amount > use.capacity:
                blockers = tuple(h for h in self.on_part(use.part) if h.id not in ending)
                raise Refused(pick, refusal(pick, blockers), blockers)

    # Changing

    def apply(self, change: Change) -> None:
        """Carry out one change. Raises KeyError where it ends a hold that is not there."""
        match change:
            case PutHold(hold):
                if hold.id in self._holds:
                    self._remove(hold.id)
                self._add(hold)
            case DropHold(hold_id):
                self._remove(hold_id)
            case PutClaim(claim):
                self._claims[claim.group, claim.holder.uid] = claim
            case DropClaim(group, uid):
                self._claims.pop((group, uid), None)
            case PutQuarantine(quarantine):
                self._quarantines[quarantine.group, quarantine.device] = quarantine
            case LiftQuarantine(group, device):
                self._quarantines.pop((group, device), None)
            case _:
                assert_never(change)

    def _add(self, hold: Hold) -> None:
        self._holds[hold.id] = hold
        self._by_share[hold.plane, hold.group, hold.share] = hold.id
        self._by_group[hold.plane, hold.group].add(hold.id)
        if isinstance(hold.holder, ClaimHolder):
            key = (hold.group, hold.holder.uid)
            self._by_claim[key] = (*self._by_claim.get(key, ()), hold.id)
        for use in hold.uses:
            self._used[use.part] += use.amount
            self._used_by[use.part, hold.plane] += use.amount
            self._whole[use.part] += use.whole
            self._by_part[use.part].add(hold.id)

    def _remove(self, hold_id: int) -> None:
        hold = self._holds.pop(hold_id)
        del self._by_share[hold.plane, hold.group, hold.share]
        self._by_group[hold.plane, hold.group].discard(hold_id)
        if isinstance(hold.holder, ClaimHolder):
            key = (hold.group, hold.holder.uid)
            if left := tuple(i for i in self._by_claim.pop(key) if i != hold_id):
                self._by_claim[key] = left
        for use in hold.uses:
            self._used[use.part] -= use.amount
            self._used_by[use.part, hold.plane] -= use.amount
            self._whole[use.part] -= use.whole
            ids = self._by_part[use.part]
            ids.discard(hold_id)
            if not ids:
                del self._by_part[use.part]  # an index must not grow with time


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
    since = clock(first.since)
    return (
        f"{pick.share} is held by {first.holder}{others} {_API[first.plane]} since {since}{ending}; "
        f"it is offered again when {end}"
    )
