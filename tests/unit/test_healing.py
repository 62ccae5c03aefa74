"""The verdict on a claim that lost its device: as a table, and that no combination evicts whoever holds rightly."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Phase, Pick, Plane, PodHolder, PreparedClaim
from bridge.planes.claims import Stored, encode
from bridge.planes.conflicts import Leave, Loser, Move, Over, decide
from bridge.planes.projection import SliceOffer, dra_view
from bridge.planes.report import Asker
from bridge.planes.roster import Roster
from bridge.planes.slices import slice_device
from dra_v1 import driver
from dra_v1.slices import Taint
from tests.unit.rosters import account, device, group, hold, inventory, roster

ACC, OTHER, NX = device("acc0"), device("acc1"), device("nx", shares=4)
POD = PodHolder("default", "loser-0", uid="p1")
LOSER = ClaimHolder("default", "loser", "u-loser")
DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


def named(kept: Account) -> Roster:
    return roster(group(), inventory(ACC, OTHER, NX), kept)


def loser(of: str = "acc0", units: int = 1, pods: tuple[PodHolder, ...] = (POD,), **more: bool) -> Loser:
    one = {"acc0": ACC, "acc1": OTHER, "nx": NX}[of]
    uses = named(account([])).uses(one, units)
    return Loser(Asker(LOSER, pods), Pick("acc", of, of, uses), of, **more)


def admin(name: str, uid: str) -> PreparedClaim:
    """A claim that was prepared and holds nothing."""
    answer = driver.PreparedClaim((driver.PreparedDevice(("req",), "node-a", name, ()),))
    return PreparedClaim("acc", ClaimHolder("default", "watcher", uid), encode(Stored(answer, {})), 0.0)


def verdict(who: Loser, kept: Account, others: tuple[str, ...] = ()) -> type:
    return type(decide(who, named(kept), kept, others))


def test_the_loser_is_moved_where_it_is_the_only_claim_and_a_pod_names_it() -> None:
    held = hold(1, DP, ACC)
    kept = account([held])
    assert decide(loser(), named(kept), kept, ["u-loser"]) == Move((held,))


TABLE = {
    "its own loss known twice": (loser(), account([hold(1, DP, ACC)]), ("u-loser",), Move),
    "free": (loser(), account([]), (), Over),
    "held by another claim": (loser(), account([hold(1, DRA, ACC)]), (), Leave),
    "quarantined": (loser(), account([hold(1, DP, ACC)], {"acc0": "in doubt"}), (), Leave),
    "an extended resource": (loser(extended_resource=True), account([hold(1, DP, ACC)]), (), Leave),
    "nobody names it": (loser(pods=()), account([hold(1, DP, ACC)]), (), Leave),
    "another claim known": (loser(), account([hold(1, DP, ACC)]), ("u-other",), Leave),
    "another device's claim": (loser(), account([hold(1, DP, ACC), hold(2, DRA, OTHER)]), (), Move),
    "shared, all of it held by pods": (
        loser("nx"),
        account([hold(n, DP, NX, f"nx--{n}") for n in range(4)]),
        (),
        Move,
    ),
    "shared, another claim has a share": (
        loser("nx"),
        account([*(hold(n, DP, NX, f"nx--{n}") for n in range(3)), hold(9, DRA, NX, "share")]),
        (),
        Leave,
    ),
    "room enough": (loser("nx"), account([hold(1, DP, NX, "nx--1")]), (), Over),
    "more than there is": (loser("nx", units=5), account([]), (), Leave),
}


@pytest.mark.parametrize("case", TABLE)
def test_h43_table_of_verdicts(case: str) -> None:
    who, kept, others, expected = TABLE[case]
    assert verdict(who, kept, others) is expected


@pytest.mark.parametrize("phase", [Phase.RESERVED, Phase.PREPARED, Phase.RELEASING])
def test_h43_a_sharer_in_any_phase_keeps_the_taint_away(phase: Phase) -> None:
    holds = [*(hold(n, DP, NX, f"nx--{n}") for n in range(3)), hold(9, DRA, NX, "s", phase=phase)]
    assert verdict(loser("nx"), account(holds)) is Leave


def test_h43_admin_access_keeps_the_taint_away() -> None:
    kept = Account([hold(1, DP, ACC)], [admin("acc0", "u-admin")])
    left = decide(loser(), named(kept), kept)
    assert isinstance(left, Leave) and "claim default/watcher has the device too" in left.why
    assert verdict(loser(), Account([hold(1, DP, ACC)], [admin("acc1", "u-admin")])) is Move
    assert verdict(loser(), Account([hold(1, DP, ACC)], [admin("acc0", "u-loser")])) is Move


def test_an_unplugged_device_is_no_conflict() -> None:
    kept = account([hold(1, DP, ACC)])
    gone = roster(group(), inventory(OTHER), kept)
    assert isinstance(decide(loser(), gone, kept), Over)


HOLDS = st.lists(
    st.tuples(
        st.sampled_from([DP, DRA]), st.sampled_from(["acc0", "acc1", "nx"]), st.sampled_from(list(Phase))
    ),
    max_size=6,
)


@given(
    HOLDS,
    st.sampled_from(["acc0", "nx"]),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(["u-loser", "u-other"]), max_size=2),
    st.sampled_from(["", "acc0", "acc1", "nx"]),
)
def test_h43_a_taint_never_meets_another_claim(
    drawn: list[tuple[Plane, str, Phase]],
    of: str,
    extended: bool,
    podless: bool,
    others: list[str],
    watched: str,
) -> None:
    """Whatever is held by whom: a taint is set only where nothing of DRA is on the device but the loser, whose pod
    the cluster would move, and where pods of the device plugin have it."""
    holds = []
    room = {"acc0": 1, "acc1": 1, "nx": 4}
    by_name = {"acc0": ACC, "acc1": OTHER, "nx": NX}
    for number, (plane, name, phase) in enumerate(drawn):
        fits = (phase in (Phase.GRANTED, Phase.HELD)) is (plane is DP)
        if fits and room[name]:
            room[name] -= 1
            holds.append(hold(number, plane, by_name[name], f"{name}-{number}", phase=phase))
    kept = Account(holds, [admin(watched, "u-admin")] if watched else [])
    who = loser(of, pods=() if podless else (POD,), extended_resource=extended)
    if isinstance(decide(who, named(kept), kept, others), Move):
        assert not extended and not podless and "u-other" not in others
        assert watched != of
        on_it = [one for one in holds if one.device == of]
        assert on_it and all(one.plane is DP for one in on_it)


def test_a_device_that_is_being_freed_of_a_claim_is_shown_with_the_taint() -> None:
    kept = account([hold(1, DP, ACC)])
    there = named(kept)
    assert [offer.name for offer in dra_view(there, kept, consumable=True)] == ["acc1", "nx"]
    shown = dra_view(there, kept, consumable=True, moving=frozenset({"acc0"}))
    assert [(offer.name, offer.evict) for offer in shown] == [("acc0", True), ("acc1", False), ("nx", False)]
    assert slice_device(shown[0], "acc.example.com").taints == (
        Taint("acc.example.com/held-by-device-plugin", effect="NoExecute"),
    )
    assert slice_device(shown[1], "acc.example.com").taints == ()


@pytest.mark.parametrize("consumable", [True, False])
def test_a_share_is_tainted_under_the_name_that_its_claim_has(consumable: bool) -> None:
    kept = account([hold(n, DP, NX, f"nx--{n}") for n in range(4)])
    name = "nx" if consumable else "nx--2"
    shown = dra_view(named(kept), kept, consumable=consumable, moving=frozenset({name}))
    tainted = [offer for offer in shown if offer.evict]
    assert tainted == [SliceOffer(name, NX, 1 if consumable else None, evict=True)]
    assert slice_device(tainted[0], "d.example.com").taints


@given(st.sets(st.sampled_from(["acc0", "acc1", "nx", "nx--0", "nx--3"])), HOLDS, st.booleans())
def test_taints_change_nothing_else_of_the_view(
    moving: set[str], drawn: list[tuple[Plane, str, Phase]], consumable: bool
) -> None:
    kept = account([hold(1, DP, ACC)] if drawn else [])
    before = dra_view(named(kept), kept, consumable=consumable)
    after = dra_view(named(kept), kept, consumable=consumable, moving=frozenset(moving))
    assert [o for o in before if o.name not in moving] == [o for o in after if not o.evict]
    assert all(o.name in moving for o in after if o.evict)
    for one, two in itertools.pairwise(after):
        assert one.name < two.name, "the order stays"
    kept_shown = {o.name: o for o in before}
    for offer in after:
        if offer.evict and offer.name in kept_shown:
            assert dataclasses.replace(offer, evict=False) == kept_shown[offer.name]
