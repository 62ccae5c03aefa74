"""What each plane shows of ledger and inventory: the table of the contract, and what holds whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import Mode
from bridge.config.model import Count, Names, Percent
from bridge.devices.model import Device
from bridge.ledger.account import Account
from bridge.ledger.holds import (
    ClaimHolder,
    DropHold,
    Hold,
    Plane,
    PutClaim,
    PutHold,
    PutQuarantine,
    Quarantine,
    Refused,
)
from bridge.ledger.holds import PreparedClaim as Remembered
from bridge.planes.cdi import static_edits
from bridge.planes.claims import Stored, encode
from bridge.planes.modes import Offering
from bridge.planes.projection import (
    IdOffer,
    Memory,
    device_plugin_view,
    dra_view,
    free_units,
    order_of,
    preferred,
)
from bridge.planes.roster import Roster, Unavailable
from bridge.planes.slices import slice_device
from dra_v1.driver import PreparedClaim, PreparedDevice
from dra_v1.slices import Capacity
from tests.unit.rosters import account, device, group, hold, inventory, roster

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


def ids(view_of: Roster, holds: Account) -> dict[str, bool]:
    return {offer.id: offer.healthy for offer in device_plugin_view(view_of, holds)}


def shown(view_of: Roster, holds: Account, *, consumable: bool = True) -> dict[str, int | None]:
    return {offer.name: offer.units for offer in dra_view(view_of, holds, consumable=consumable)}


@pytest.mark.parametrize(
    ("state", "held_by", "phase", "ok", "quarantined", "healthy", "published"),
    [
        ("free", None, "", True, False, True, True),
        ("granted", DP, "granted", True, False, True, False),
        ("held by the device plugin", DP, "held", True, False, True, False),
        ("prepared", DRA, "prepared", True, False, False, True),
        ("being released by DRA", DRA, "releasing", True, False, False, True),
        ("quarantined", None, "", True, True, False, False),
        ("quarantined and held by the device plugin", DP, "held", True, True, False, False),
        ("broken", None, "", False, False, False, False),
        ("broken, held by the device plugin", DP, "held", False, False, False, False),
    ],
)
def test_the_projection_table(
    state: str,
    held_by: Plane | None,
    phase: str,
    ok: bool,
    quarantined: bool,
    healthy: bool,
    published: bool,
) -> None:
    """kubelet-contract F: every row of a shared mode; the ID itself is listed in all of them."""
    acc0 = device("acc0", ok=ok)
    holds = [] if held_by is None else [hold(1, held_by, acc0, phase=phase)]
    kept = account(holds, {"acc0": "doubt"} if quarantined else None)
    view_of = roster(group(), inventory(acc0), kept)
    assert ids(view_of, kept) == {"acc0": healthy}, state
    assert ("acc0" in shown(view_of, kept)) is published, state


@pytest.mark.parametrize(("mode", "listed", "sliced"), [("dra", False, True), ("device-plugin", True, False)])
def test_a_mode_closes_the_other_plane(mode: str, listed: bool, sliced: bool) -> None:
    view_of = roster(group(Mode(mode)), inventory(device("acc0")), account())
    assert (bool(ids(view_of, account())), bool(shown(view_of, account()))) == (listed, sliced)


def closing(holds: Account, *, hides_held: bool = False, dra: bool = True) -> Roster:
    found = inventory(device("acc0"), device("acc1"), device("acc2"))
    return roster(group(), found, holds, offering=Offering(False, dra, True, hides_held))


def test_a_device_plugin_that_closes_lists_everything_and_has_nothing_to_give() -> None:
    holds = account([hold(1, DP, device("acc0")), hold(2, DRA, device("acc1"))])
    assert ids(closing(holds), holds) == {"acc0": True, "acc1": False, "acc2": False}
    assert shown(closing(holds), holds) == {"acc1": None, "acc2": None}


def test_for_a_name_that_dra_takes_over_what_is_held_is_listed_as_unhealthy_too() -> None:
    holds = account([hold(1, DP, device("acc0"))])
    assert set(ids(closing(holds, hides_held=True), holds).values()) == {False}
    assert "acc0" not in shown(closing(holds, hides_held=True), holds), "it is still its holder's"


def by_name(uid: str, *devices: str) -> PutClaim:
    """A claim that the scheduler made for a pod which asked by resource name."""
    answer = PreparedClaim(tuple(PreparedDevice(("req",), "node", name, (), None) for name in devices))
    stored = encode(Stored(answer, {}, by_name=True))
    return PutClaim(Remembered("acc", ClaimHolder("default", "c", uid), stored, 0.0))


def test_on_the_way_back_what_dra_serves_under_the_name_counts_and_is_taken_last() -> None:
    acc0, acc1, acc2 = device("acc0"), device("acc1"), device("acc2")
    holds = account([hold(1, DRA, acc0), hold(2, DRA, acc2)])
    holds.apply(by_name("u2", "acc2"))
    view = roster(
        group(), inventory(acc0, acc1, acc2), holds, offering=Offering(True, True, True, mirrors=True)
    )
    offers = device_plugin_view(view, holds)
    assert {o.id: (o.healthy, o.mirrored) for o in offers} == {
        "acc0": (False, False),  # a claim of its own is not in the scheduler's count
        "acc1": (True, False),
        "acc2": (True, True),
    }
    order = order_of(offers)
    assert preferred(["acc1", "acc2"], [], 1, order) == ["acc1"]
    assert preferred(["acc1", "acc2"], [], 2, order) == ["acc1", "acc2"]


def test_of_what_dra_has_under_the_name_what_is_about_to_be_free_is_taken_first() -> None:
    devices = [device(f"acc{number}") for number in range(4)]
    held = [
        hold(number, DRA, devices[number], phase="releasing" if number == 1 else "") for number in (0, 1, 2)
    ]
    holds = account([replace(one, by_name=True) for one in held])
    view = roster(group(), inventory(*devices), holds, offering=Offering(True, True, True, mirrors=True))
    order = order_of(device_plugin_view(view, holds))
    for size, taken in ((1, ["acc3"]), (2, ["acc3", "acc1"])):
        assert preferred(["acc0", "acc1", "acc2", "acc3"], [], size, order) == taken


def test_what_dra_served_under_the_name_counts_until_it_is_free_and_not_only_until_unprepare() -> None:
    acc0, acc1 = device("acc0"), device("acc1")
    ending = replace(hold(1, DRA, acc0, phase="releasing"), by_name=True)
    holds = account([ending, hold(2, DRA, acc1, phase="releasing")])
    view = roster(group(), inventory(acc0, acc1), holds, offering=Offering(True, True, True, mirrors=True))
    assert {o.id: (o.healthy, o.mirrored) for o in device_plugin_view(view, holds)} == {
        "acc0": (True, True),
        "acc1": (False, False),
    }


def test_numa_nodes_are_told_only_where_all_that_is_listed_is_the_device_plugins() -> None:
    """Else a kubelet with a topology policy fails pods for good, DRA's among them, or chooses what DRA has."""
    devices = [device(f"acc{number}", numa_node=number) for number in range(3)]
    found, back = inventory(*devices), Offering(True, True, True, mirrors=True)

    def numa(offering: Offering, holds: Account) -> list[int | None]:
        view = roster(group(), found, holds, offering=offering)
        return [offer.numa_node for offer in device_plugin_view(view, holds)]

    ours = account([hold(1, DP, devices[0])])
    assert numa(back, ours) == [0, 1, 2]
    assert numa(Offering(False, True, True, hides_held=True), ours) == [None] * 3, (
        "on the way to dra, or there"
    )
    by_claim = account([hold(1, DP, devices[0]), hold(2, DRA, devices[1])])
    assert numa(back, by_claim) == [0, 1, 2]
    for phase in ("prepared", "releasing"):
        named = replace(hold(2, DRA, devices[1], phase=phase), by_name=True)
        assert numa(back, account([hold(1, DP, devices[0]), named])) == [None] * 3, phase


def test_what_is_remembered_of_a_view_forgets_numa_nodes_with_the_first_that_dra_has_under_the_name() -> None:
    devices = [device(f"acc{number}", numa_node=number) for number in range(2)]
    holds, memory = account([]), Memory[tuple[IdOffer, ...]]()
    view = roster(group(), inventory(*devices), holds, offering=Offering(True, True, True, mirrors=True))
    assert [o.numa_node for o in device_plugin_view(view, holds, memory)] == [0, 1]
    holds.apply(PutHold(replace(hold(1, DRA, devices[0]), by_name=True)))
    assert [o.numa_node for o in device_plugin_view(view, holds, memory)] == [None, None]


def test_shares_that_dra_serves_under_the_name_count_as_so_many_ids() -> None:
    nx = device("nx", shares=4)
    holds = account([hold(1, DRA, nx, share="share-1", units=2)])
    holds.apply(by_name("u1", "nx"))
    view = roster(group(), inventory(nx), holds, offering=Offering(True, True, True, mirrors=True))
    offers = device_plugin_view(view, holds)
    assert [o.mirrored for o in offers] == [True, True, False, False]
    assert all(o.healthy for o in offers)


def test_between_the_planes_nothing_is_offered_on_either() -> None:
    holds = account([])
    assert set(ids(closing(holds, dra=False), holds).values()) == {False}
    assert shown(closing(holds, dra=False), holds) == {}


@pytest.mark.parametrize("consumable", [True, False])
def test_dra_that_closes_withdraws_what_is_free_and_keeps_what_it_has_out(consumable: bool) -> None:
    acc0, acc1, nx = device("acc0"), device("acc1"), device("nx", shares=4)
    holds = account([hold(1, DRA, acc0), hold(2, DRA, nx, share="nx--1")])
    view = roster(group(Mode.DEVICE_PLUGIN), inventory(acc0, acc1, nx), holds)
    kept = {"acc0": None, "nx": 1} if consumable else {"acc0": None, "nx--1": None}
    assert shown(view, holds, consumable=consumable) == kept
    assert ids(view, holds)["acc1"] and not ids(view, holds)["acc0"]


def test_a_closed_plane_still_lists_what_it_has_out() -> None:
    acc0, acc1 = device("acc0"), device("acc1")
    kept = account([hold(1, DP, acc0)])
    view_of = roster(group(Mode.DRA), inventory(acc0, acc1), kept)
    assert ids(view_of, kept) == {"acc0": True} and list(shown(view_of, kept)) == ["acc1"]


@pytest.mark.parametrize(
    ("partition", "ours"),
    [
        (Percent(50), ["acc2", "acc10"]),
        (Percent(0), []),
        (Percent(100), ["acc0", "acc1", "acc2", "acc10"]),
        (Count(1), ["acc10"]),
        (Names(("acc1*",)), ["acc1", "acc10"]),
    ],
)
def test_a_partition_gives_each_device_to_one_plane(
    partition: Percent | Count | Names, ours: list[str]
) -> None:
    devices = [device(name) for name in ("acc0", "acc1", "acc2", "acc10")]
    view_of = roster(group(partition=partition), inventory(*devices), account())
    assert list(ids(view_of, account())) == ours
    assert list(shown(view_of, account())) == [d.name for d in devices if d.name not in ours]


def test_h38_an_unplugged_device_stays_listed_as_unhealthy_while_either_plane_holds_it() -> None:
    acc0, acc1 = device("acc0"), device("acc1")
    kept = account([hold(1, DP, acc0), hold(2, DRA, acc1)])
    before = roster(group(), inventory(acc0, acc1), kept)
    after = roster(group(), inventory(), kept, before)
    assert ids(after, kept) == {"acc0": False, "acc1": False} and shown(after, kept) == {}
    assert [d.health.reason for d in after.devices] == ["unplugged", "unplugged"]
    assert set(static_edits(after)) == {"acc0", "acc0--admin", "acc1", "acc1--admin"}, "H35: they may restart"
    with pytest.raises(Unavailable, match="acc0 is unplugged"):
        after.pick("acc0")


def test_an_unplugged_device_is_known_from_its_hold_after_a_restart() -> None:
    acc0 = device("acc0")
    kept = account([hold(1, DP, acc0)])
    assert ids(roster(group(), inventory(), kept), kept) == {"acc0": False}


def test_views_are_in_natural_order_and_planes_hide_from_opposite_ends() -> None:
    nx = device("nx", shares=4)
    kept = account([hold(1, DRA, nx, "share-id", units=2)])
    view_of = roster(group(), inventory(nx), kept)
    assert ids(view_of, kept) == {"nx--0": False, "nx--1": False, "nx--2": True, "nx--3": True}
    kept = account([hold(1, DP, nx, "nx--3")])
    view_of = roster(group(), inventory(nx), kept)
    assert list(shown(view_of, kept, consumable=False)) == ["nx--0", "nx--1", "nx--2"]
    assert shown(view_of, kept) == {"nx": 3}


@pytest.mark.parametrize(
    ("available", "must", "size", "chosen"),
    [
        (["a", "b", "c"], [], 2, ["c", "b"]),
        (["a", "b", "c"], ["a"], 2, ["a", "c"]),
        (["a"], [], 2, ["a"]),
        (["a", "b"], ["a", "b"], 1, ["a"]),
        (["b", "unknown"], [], 2, ["b", "unknown"]),
    ],
)
def test_preferred_takes_from_the_end_and_never_fails(
    available: list[str], must: list[str], size: int, chosen: list[str]
) -> None:
    assert preferred(available, must, size, {"a": 0, "b": 1, "c": 2}) == chosen


def test_admin_edits_let_one_look_and_not_touch() -> None:
    view_of = roster(group(), inventory(device("acc0")), account())
    edits = static_edits(view_of)
    assert [node.permissions for node in edits["acc0"].nodes] == ["rw"]
    assert [node.permissions for node in edits["acc0--admin"].nodes] == ["r"]


# -- whatever happens


@dataclass(frozen=True)
class World:
    """A group with holds, all of which the ledger would have allowed."""

    view_of: Roster
    kept: Account
    devices: Sequence[Device]


PARTITIONS = st.sampled_from([None, Percent(50), Count(1), Names(("d0*",))])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    devices = [
        device(
            f"d{number}",
            shares=draw(st.sampled_from([1, 1, 3])),
            ok=draw(st.booleans()) or draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 5)))
    ]
    found = inventory(*devices)
    kept = account()
    mode = draw(st.sampled_from([Mode.DUAL, Mode.DUAL, Mode.DRA, Mode.DEVICE_PLUGIN]))
    of = group(mode, draw(PARTITIONS) if mode is Mode.DUAL else None)
    plain = roster(of, found, kept)
    for number in range(1, draw(st.integers(0, 8)) + 1):
        one = draw(st.sampled_from(devices))
        plane = draw(st.sampled_from([DP, DRA]))
        units = 1 if plane is DP else draw(st.integers(1, one.shares))
        free = [s for s in one.share_names() if kept.of_share(plane, "acc", s) is None]
        if units > free_units(plain, kept, one) or not free:
            continue
        share = free[-1] if plane is DP else (f"id-{number}" if one.shareable else one.name)
        kept.apply(PutHold(hold(number, plane, one, share, units)))
    for one in devices:
        if draw(st.integers(0, 5)) == 0:
            kept.apply(PutQuarantine(Quarantine("acc", one.name, "doubt", 0.0)))
    gone = draw(st.sets(st.sampled_from([one.name for one in devices])))
    left = inventory(*(one for one in devices if one.name not in gone))
    return World(roster(of, left, kept, roster(of, found, kept)), kept, devices)


@given(worlds())
def test_no_device_is_offered_as_free_by_a_plane_when_the_ledger_would_refuse_it(world: World) -> None:
    """Every ID that is healthy and not held, and every device of a slice that DRA has not out, can be had."""
    for offer in device_plugin_view(world.view_of, world.kept):
        if offer.healthy and world.kept.of_share(DP, "acc", offer.id) is None:
            world.kept.check(world.view_of.pick(offer.id))
    for shown_device in dra_view(world.view_of, world.kept, consumable=True):
        if shown_device.units is None and world.kept.of_share(DRA, "acc", shown_device.name) is None:
            world.kept.check(world.view_of.pick(shown_device.name))


@given(worlds())
def test_free_offers_of_a_plane_never_exceed_free_capacity(world: World) -> None:
    """Each plane alone: both may show the same free unit, which is what `dual` with `shared` means."""
    for one in world.view_of.devices:
        free = free_units(world.view_of, world.kept, one)
        mine = [
            offer
            for offer in device_plugin_view(world.view_of, world.kept)
            if world.view_of.by_name.get(offer.id) is one
            and offer.healthy
            and world.kept.of_share(DP, "acc", offer.id) is None
        ]
        assert len(mine) <= free
        used = sum(h.uses[0].amount for h in world.kept.of_group(DRA, "acc") if h.device == one.name)
        for offered in dra_view(world.view_of, world.kept, consumable=True):
            if offered.device is one and offered.units is not None:
                assert 0 < offered.units <= used + free <= one.shares


@given(worlds())
def test_what_the_device_plugin_has_out_is_always_listed_and_healthy_if_physically_fine(world: World) -> None:
    listed = {offer.id: offer.healthy for offer in device_plugin_view(world.view_of, world.kept)}
    for held in world.kept.of_group(DP, "acc"):
        one = world.view_of.by_name[held.device]
        doubted = world.kept.quarantine_of("acc", held.device) is not None
        assert listed[held.share] is (one.health.ok and not doubted)


@given(worlds())
def test_an_exclusive_device_of_one_plane_is_never_on_offer_at_the_other(world: World) -> None:
    listed = {offer.id: offer.healthy for offer in device_plugin_view(world.view_of, world.kept)}
    sliced = {offer.name for offer in dra_view(world.view_of, world.kept, consumable=False)}
    for held in world.kept:
        if world.view_of.by_name[held.device].shareable:
            continue
        if held.plane is DP:
            assert held.device not in sliced
        else:
            assert not listed.get(held.device, False)


@given(worlds())
def test_each_id_and_each_name_is_shown_once_and_in_order(world: World) -> None:
    for consumable in (True, False):
        names = [offer.name for offer in dra_view(world.view_of, world.kept, consumable=consumable)]
        assert len(names) == len(set(names))
    listed = [offer.id for offer in device_plugin_view(world.view_of, world.kept)]
    assert len(listed) == len(set(listed))
    order = [one.name for one in world.view_of.devices]
    seen = [order.index(world.view_of.by_name[i].name) for i in listed if i in world.view_of.by_name]
    assert seen == sorted(seen)


@given(world=worlds(), data=st.data())
def test_h9_nothing_is_shown_that_only_contested_holds_have(world: World, data: st.DataObject) -> None:
    """What the scheduler takes for free and is not: devices, shares and amounts; the rest is shown as before."""
    holds = world.kept.of_group(DRA, "acc")
    contested = frozenset(h.id for h in holds if data.draw(st.booleans()))
    devices = {h.device for h in holds if h.id in contested}
    shares = {h.share for h in holds if h.id in contested}
    before = dra_view(world.view_of, world.kept, consumable=True)
    after = dra_view(world.view_of, world.kept, consumable=True, contested=contested)
    assert [o for o in after if o.name not in devices] == [o for o in before if o.name not in devices]
    for offer in before:
        free = free_units(world.view_of, world.kept, offer.device)
        if offer.name in devices:
            assert [o for o in after if o.name == offer.name] == ([replace(offer, most=free)] if free else [])
    named = [o for o in dra_view(world.view_of, world.kept, consumable=False) if o.name not in shares]
    shown_named = dra_view(world.view_of, world.kept, consumable=False, contested=contested)
    assert [o for o in named if o.device.shareable] == [o for o in shown_named if o.device.shareable]


def test_h9_only_the_contested_hold_withdraws_its_device() -> None:
    one, two, free = device("acc0"), device("acc1"), device("acc2")
    kept = account([hold(1, DRA, one), hold(2, DRA, two)])
    there = roster(group(), inventory(one, two, free), kept)
    view = dra_view(there, kept, consumable=True, contested=frozenset({1}))
    assert [offer.name for offer in view] == ["acc1", "acc2"]


def test_of_a_contested_device_no_claim_may_ask_for_more_than_is_free() -> None:
    nx = device("nx", shares=4)
    kept = account([hold(1, DRA, nx, "share", units=2)])
    (offer,) = dra_view(roster(group(), inventory(nx), kept), kept, consumable=True, contested=frozenset({1}))
    shown_capacity = slice_device(offer, "acc.device-bridge.io").capacity[nx.share_unit]
    assert isinstance(shown_capacity, Capacity) and shown_capacity.policy is not None
    assert (shown_capacity.value, shown_capacity.policy.maximum) == ("4", "2")


@given(world=worlds(), data=st.data())
def test_a_remembered_view_is_the_view(world: World, data: st.DataObject) -> None:
    """What `Memory` saves never shows: after any change of the account the views are those made from nothing."""
    ours: Memory = Memory()
    theirs: Memory = Memory()
    next_id = 100
    for _ in range(data.draw(st.integers(1, 6))):
        consumable = data.draw(st.booleans())
        assert device_plugin_view(world.view_of, world.kept, ours) == device_plugin_view(
            world.view_of, world.kept
        )
        assert dra_view(world.view_of, world.kept, consumable=True, memory=theirs) == dra_view(
            world.view_of, world.kept, consumable=True
        ), consumable
        holds: list[Hold] = list(world.kept)
        if holds and data.draw(st.booleans()):
            world.kept.apply(DropHold(data.draw(st.sampled_from([h.id for h in holds]))))
            continue
        one = data.draw(st.sampled_from(list(world.view_of.devices) or list(world.devices)))
        plane = data.draw(st.sampled_from([DP, DRA]))
        try:
            pick = world.view_of.pick(data.draw(st.sampled_from(one.share_names())))
            world.kept.check(pick)
        except (Unavailable, Refused):
            continue
        if world.kept.of_share(plane, "acc", pick.share) is None:
            next_id += 1
            world.kept.apply(PutHold(hold(next_id, plane, one, pick.share)))


def test_a_held_name_that_stands_for_other_silicon_keeps_its_holders_edits_and_is_not_to_be_had() -> None:
    first = device("acc0")
    held = account([hold(1, Plane.DRA, first)])
    before = Roster.build(group(), inventory(first), held)
    other = replace(device("acc1"), name="acc0")
    after = Roster.build(group(), inventory(other), held, before)
    assert after.by_name["acc0"].edits == first.edits
    assert "changed while it is held" in after.by_name["acc0"].health.reason
    assert [offer.healthy for offer in device_plugin_view(after, held)] == [False]
    restarted = Roster.build(group(), inventory(other), held)
    assert static_edits(restarted) == {}, (
        "a container that restarts must not get what was never booked for it"
    )
    assert Roster.build(group(), inventory(other), account(), after).by_name["acc0"] == other
