"""Counting by state and by plane agrees with what the planes show."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bridge.config import Mode
from bridge.config.model import Count, Partition
from bridge.ledger.account import Account
from bridge.ledger.holds import Phase, Plane
from bridge.planes.counts import Counts, count
from bridge.planes.projection import device_plugin_view, dra_view
from bridge.planes.roster import Roster
from tests.unit.rosters import account, device, group, hold, inventory, roster

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA

DEVICES = [device("acc0"), device("acc1"), device("acc2", ok=False), device("acc3"), device("nx", shares=4)]


def stage(mode: Mode, partition: Partition | None = None) -> tuple[Roster, Account]:
    kept = account(
        [
            hold(1, DP, DEVICES[0]),
            hold(2, DRA, DEVICES[4], "share-id", units=2),
            hold(3, DP, DEVICES[4], "nx--3"),
        ],
        {"acc3": "in doubt"},
    )
    return roster(group(mode, partition), inventory(*DEVICES), kept), kept


def shown(of: Roster, kept: Account) -> Mapping[Plane, int]:
    """What the views of the planes offer, beyond what they have out."""
    held = {one.share for one in kept.of_group(DP, "acc")}
    ids = [one for one in device_plugin_view(of, kept) if one.healthy and one.id not in held]
    out: dict[str, int] = {"nx": 2}
    dra = sum((one.units or 1) - out.get(one.name, 0) for one in dra_view(of, kept, consumable=True))
    return {DP: len(ids), DRA: max(0, dra)}


@pytest.mark.parametrize(
    ("mode", "partition", "wanted"),
    [
        (Mode.DUAL, None, {DP: 2, DRA: 2}),
        (Mode.DEVICE_PLUGIN, None, {DP: 2, DRA: 0}),
        (Mode.DRA, None, {DP: 0, DRA: 2}),
        (Mode.DUAL, Count(2), {DP: 1, DRA: 1}),
        (Mode.DUAL, Count(0), {DP: 0, DRA: 2}),
    ],
)
def test_what_is_open_on_a_plane_is_what_it_shows(
    mode: Mode, partition: Partition | None, wanted: dict[Plane, int]
) -> None:
    of, kept = stage(mode, partition)
    counts = count(of, kept)
    assert counts.open == wanted
    assert (counts.free, counts.unhealthy, counts.quarantined) == (2, 1, 1)
    assert (counts.held_on(DP), counts.held_on(DRA)) == (2, 2)
    assert counts.all == sum(one.shares for one in DEVICES)
    if mode is not Mode.DEVICE_PLUGIN:
        assert shown(of, kept) == wanted


def test_every_phase_has_its_plane() -> None:
    of, kept = stage(Mode.DUAL)
    assert isinstance(counts := count(of, kept), Counts)
    assert set(counts.held) == set(Phase)
