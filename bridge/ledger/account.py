"""The account of all holds: what is held, what fits, who stands in the way.

Pure: in memory, no file and no clock. Keeps S2 and S3 (design 1): whatever does not fit into the parts, or is
quarantined, is refused, and the refusal names the holder (Q4).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import assert_never

from bridge.ledger.holds import (
    Change,
    ClaimHolder,
    Compared,
    DropClaim,
    DropHold,
    Hold,
    LiftQuarantine,
    Pick,
    Plane,
    PreparedClaim,
    PutClaim,
    PutHold,
    PutQuarantine,
    PutRecord,
    PutSwitch,
    Quarantine,
    Refused,
    clock,
    refusal,
)
from bridge.ledger.switches import Switch

_NONE: Counter[str] = Counter()


class Account:
    """All holds, indexed. Every operation is O(1) in the number of holds of other devices."""

    def __init__(
        self,
        holds: Iterable[Hold] = (),
        claims: Iterable[PreparedClaim] = (),
        quarantines: Iterable[Quarantine] = (),
        switches: Iterable[Switch] = (),
    ) -> None:
        self._holds: dict[int, Hold] = {}
        self._used: dict[str, int] = defaultdict(int)
        self._whole: Counter[str] = Counter()
        self._by_part: dict[str, set[int]] = defaultdict(set)
        self._by_share: dict[tuple[Plane, str, str], int] = {}
        # Tuples, for a claim has one hold as a rule and a set of one takes four times the memory.
        self._by_claim: dict[tuple[str, str], tuple[int, ...]] = {}
        self._by_group: dict[tuple[Plane, str], set[int]] = defaultdict(set)
        self._claims: dict[tuple[str, str], PreparedClaim] = {(c.group, c.holder.uid): c for c in claims}
        self._quarantines: dict[tuple[str, str], Quarantine] = {(q.group, q.device): q for q in quarantines}
        self._switches: dict[str, Switch] = {switch.group: switch for switch in switches}
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

    def switch_of(self, group: str) -> Switch | None:
        """How far a group is between two modes; None for one that has not been served yet."""
        return self._switches.get(group)

    def switches(self) -> tuple[Switch, ...]:
        """The same of all groups that were ever served."""
        return tuple(self._switches.values())

    # Deciding

    def check(self, pick: Pick, ending: frozenset[int] = frozenset(), planned: Counter[str] = _NONE) -> None:
        """Raise Refused unless the pick is not quarantined and fits beside all holds; see `check_room`."""
        self.check_quarantine(pick)
        self.check_room(pick, ending, planned)

    def check_share(self, plane: Plane, pick: Pick, ending: frozenset[int] = frozenset()) -> None:
        """Raise Refused if a plane has that very share out already, room for another of its kind or not."""
        hold = self.of_share(plane, pick.group, pick.share)
        if hold is not None and hold.id not in ending:
            raise Refused(pick, refusal(pick, (hold,)), (hold,))

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
            case PutSwitch(switch):
                self._switches[switch.group] = switch
            case PutRecord() | Compared():
                pass  # nothing that is held depends on it
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
            self._whole[use.part] -= use.whole
            ids = self._by_part[use.part]
            ids.discard(hold_id)
            if not ids:
                del self._by_part[use.part]  # an index must not grow with time
