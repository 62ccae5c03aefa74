"""Why a device is or is not offered: each state on each plane, with what to do; and names on the command line."""

from __future__ import annotations

import dataclasses

import pytest

from bridge.config import Mode, parse
from bridge.devices.model import Device
from bridge.ledger.account import Account
from bridge.ledger.holds import Plane
from bridge.planes.explain import NotFound, Target, View, explain, find, rows
from bridge.planes.modes import Offering
from bridge.planes.roster import Roster
from tests.unit.rosters import account, device, group, hold, inventory, roster

ACC, SICK, NX = device("acc0"), device("acc1", ok=False), device("nx", shares=4)
DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


def there(kept: Account, *devices: Device) -> Roster:
    return roster(group(), inventory(*(devices or (ACC, SICK, NX))), kept)


def views(name: str, kept: Account, *, moving: frozenset[str] = frozenset()) -> dict[Plane, View]:
    found = explain(Target("acc", name), there(kept), kept, moving)
    return {view.plane: view for view in found}


def test_a_free_device_is_offered_on_both_planes() -> None:
    for view in views("acc0", account([])).values():
        assert view.offered and view.why == ("free",) and view.do == ""


@pytest.mark.parametrize("plane", [DP, DRA])
def test_a_held_device_names_its_holder_and_what_ends_it(plane: Plane) -> None:
    kept = account([hold(1, plane, ACC)])
    found = views("acc0", kept)
    here, there_ = found[plane], found[DRA if plane is DP else DP]
    assert not here.offered and not there_.offered
    assert ", here, since" in here.why[0]
    through = "through the device plugin API" if plane is DP else "through DRA"
    assert through in there_.why[0]
    assert there_.do.startswith(
        "delete pod default/p" if plane is DP else "delete the pods of claim default/c"
    )


def test_reserved_and_releasing_are_told_apart() -> None:
    assert "reserved for claim" in views("acc0", account([hold(1, DRA, ACC, phase="reserved")]))[DP].why[0]
    assert "being released" in views("acc0", account([hold(1, DRA, ACC, phase="releasing")]))[DP].why[0]


def test_a_quarantine_says_how_to_end_it() -> None:
    found = views("acc0", account([], {"acc0": "both planes seem to have it"}))
    for view in found.values():
        assert not view.offered and "both planes seem to have it" in view.why[0]
        assert "`bridge release 'acc/acc0' --yes-i-know`" in view.do


def test_a_sick_device_says_so() -> None:
    view = views("acc1", account([]))[DRA]
    assert not view.offered and view.why[0].startswith("not healthy: ") and view.do == "mend the device"


def test_an_unplugged_device_is_known_while_it_is_held() -> None:
    kept = account([hold(1, DP, ACC)])
    found = explain(Target("acc", "acc0"), there(kept, NX), kept)
    assert all(not view.offered and view.why[0].startswith("unplugged") for view in found)
    with pytest.raises(NotFound, match="neither by the last scan nor in the ledger"):
        explain(Target("acc", "acc0"), there(account([]), NX), account([]))


def test_a_shared_device_is_offered_as_long_as_a_share_is_free() -> None:
    kept = account([hold(1, DP, NX, "nx--3"), hold(2, DRA, NX, "s", units=2)])
    view = views("nx", kept)[DRA]
    assert view.offered and view.why[0] == "free: 1 of 4 replicas" and len(view.why) == 3
    full = account([hold(1, DP, NX, "nx--3"), hold(2, DRA, NX, "s", units=3)])
    assert not views("nx", full)[DRA].offered


def test_other_silicon_users_are_named() -> None:
    kept = account([hold(1, DP, dataclasses.replace(device("vf0"), parts=ACC.parts))])
    view = views("acc0", kept)[DRA]
    assert not view.offered and view.why[0].startswith(
        "its silicon is that of acc/vf0, held by pod default/p"
    )


def test_a_taint_is_told_on_the_plane_that_has_taints() -> None:
    kept = account([hold(1, DP, ACC)])
    found = views("acc0", kept, moving=frozenset({"acc0"}))
    assert any("tainted in the slices" in why for why in found[DRA].why)
    assert not any("tainted" in why for why in found[DP].why)


@pytest.mark.parametrize(("mode", "closed"), [(Mode.DRA, DP), (Mode.DEVICE_PLUGIN, DRA)])
def test_a_mode_closes_the_other_plane(mode: Mode, closed: Plane) -> None:
    kept = account([])
    made = roster(group(mode=mode), inventory(ACC), kept)
    found = {view.plane: view for view in explain(Target("acc", "acc0"), made, kept)}
    assert not found[closed].offered and f"mode {mode}" in found[closed].why[0]
    assert found[DP if closed is DRA else DRA].offered


def test_a_device_plugin_that_closes_says_where_the_group_goes() -> None:
    kept = account([])
    on_its_way = roster(group(), inventory(ACC), kept, offering=Offering(False, True, True))
    found = {view.plane: view for view in explain(Target("acc", "acc0"), on_its_way, kept)}
    assert found[DRA].offered and not found[DP].offered
    assert found[DP].why == ("group acc is on its way to mode dra",)
    assert "label of the Node" in found[DP].do


def test_a_partition_gives_a_device_to_one_plane() -> None:
    kept = account([])
    text = """
apiVersion: device-bridge.io/v1alpha1
kind: BridgeConfig
mode: dual
groups:
- {name: acc, kind: device-node, sharing: partition, partition: {devicePlugin: [acc0]}, options: {include: [/dev/a*]}}
"""
    made = roster(parse(text).groups[0], inventory(ACC), kept)
    found = {view.plane: view for view in explain(Target("acc", "acc0"), made, kept)}
    assert found[DP].offered and not found[DRA].offered and "partition" in found[DRA].why[0]


def test_names_stand_for_devices_shares_nodes_groups_and_everything() -> None:
    kept = account([hold(1, DRA, NX, "6d1b-share")])
    made = there(kept)
    for name, target in {
        "acc0": Target("acc", "acc0"),
        "acc/acc0": Target("acc", "acc0"),
        "nx--2": Target("acc", "nx", "nx--2"),
        "6d1b-share": Target("acc", "nx", "6d1b-share"),
        "acc/*": Target("acc", "*"),
        "*": Target("*", "*"),
    }.items():
        assert find(name, [made], kept) == target
    for node in ACC.edits.nodes:
        assert find(node.host_path, [made], kept) == Target("acc", "acc0")
    with pytest.raises(NotFound, match="no group has a device acc9"):
        find("acc9", [made], kept)


def test_holds_and_quarantines_are_rows() -> None:
    kept = account([hold(1, DP, ACC), hold(2, DRA, NX, phase="releasing")], {"acc1": "in doubt"})
    found = rows(kept, {1: "in use by pod default/p, says podresources"})
    assert [(row["device"], row["state"], row["evidence"]) for row in found] == [
        ("acc0", "held", "in use by pod default/p, says podresources"),
        ("acc1", "quarantined", "in doubt"),
        ("nx", "releasing", "unprepared; it ends when the claim is deallocated"),
    ]
