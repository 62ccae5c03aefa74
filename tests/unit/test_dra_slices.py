"""Slices as values: what the API server would refuse, what it would store alike, and which writes a change is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from dra_v1.slice_plan import (
    Create,
    Delete,
    Layout,
    Plan,
    Replace,
    Scope,
    Stored,
    WantedPool,
    plan,
    read_slice,
    slice_name,
)
from dra_v1.slice_rules import PublishError, check_driver_name, check_pool
from dra_v1.slices import (
    Capacity,
    CounterSet,
    Pool,
    RequestPolicy,
    SliceDevice,
    Taint,
    Version,
    canonical,
    dropped_fields,
    encode_device,
    quantity,
)

NODE = "node1"
SCOPE = Scope("d.example.com", NODE, "node-uid")


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("1000", "1k"),
        ("1024Mi", "1Gi"),
        ("0.5", "500m"),
        ("1e3", "1k"),
        ("0", "0"),
        ("2.50", "2500m"),
        ("1E", "1e18"),
    ],
)
def test_quantities_are_compared_by_amount(one: str, same: str) -> None:
    assert quantity(one) == quantity(same)


@pytest.mark.parametrize("text", ["", "1KB", "one", "1 Gi", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity(text)


def test_attributes_are_written_by_their_type() -> None:
    shown = encode_device(SliceDevice("a", {"b": False, "i": 1, "s": "x", "v": Version("1.2.3")}))
    assert shown.body["attributes"] == {
        "b": {"bool": False},
        "i": {"int": 1},
        "s": {"string": "x"},
        "v": {"version": "1.2.3"},
    }


def test_what_the_server_fills_in_does_not_count() -> None:
    ours = {
        "name": "a",
        "taints": [{"key": "k", "effect": "NoSchedule"}],
        "capacity": {"m": {"value": "1024"}},
    }
    theirs = {
        "name": "a",
        "attributes": {},
        "taints": [{"key": "k", "value": "", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}],
        "capacity": {"m": {"value": "1Ki"}},
        "bindsToNode": False,
    }
    assert canonical(ours) == canonical(theirs)


def test_h25_dropped_fields_are_named() -> None:
    wanted = {
        "devices": [
            {
                "name": "a",
                "taints": [{"key": "k"}],
                "capacity": {"c": {"value": "4", "requestPolicy": {"default": "1"}}},
            }
        ],
        "sharedCounters": [{"name": "s"}],
    }
    stored = {"devices": [{"name": "a", "capacity": {"c": {"value": "4"}}}]}
    assert dropped_fields(wanted, stored) == {"taints", "capacity.requestPolicy", "sharedCounters"}


GOOD = SliceDevice(
    "acc0",
    attributes={"resource.kubernetes.io/numaNode": 1, "model": "x", "driverVersion": Version("1.0.0-rc.1")},
    capacity={
        "memory": "16Gi",
        "credits": Capacity("64", RequestPolicy("1", minimum="1", maximum="64", step="1")),
    },
    allow_multiple=True,
    taints=(Taint("example.com/fault", "ecc", "NoExecute"),),
    consumes_counters=(CounterSet("chip", {"units": "1"}),),
    binding_conditions=("example.com/ready",),
    binding_failure_conditions=("example.com/failed",),
)
SETS = (CounterSet("chip", {"units": "4"}),)


def test_a_device_that_uses_everything_is_valid() -> None:
    assert check_pool(Pool(NODE, [GOOD], SETS)).rejected == ()


@pytest.mark.parametrize(
    ("device", "field", "said"),
    [
        (SliceDevice("a" * 64), "name", "no DNS label"),
        (SliceDevice("a", {f"k{n}": n for n in range(33)}), "attributes", "more than 32"),
        (SliceDevice("a", {"1st": 1}), "attributes[1st]", "no C identifier"),
        (SliceDevice("a", {"Dom/x": 1}), "attributes[Dom/x]", "no lowercase DNS name"),
        (SliceDevice("a", {"x": "y" * 65}), "attributes[x]", "longer than 64 bytes"),
        (SliceDevice("a", {"x": 2**63}), "attributes[x]", "64 bits"),
        (SliceDevice("a", {"x": Version("1.2")}), "attributes[x]", "no semantic version"),
        (SliceDevice("a", capacity={"m": "4GB"}), "capacity[m]", "not a quantity"),
        (
            SliceDevice("a", capacity={"m": Capacity("4", RequestPolicy("1"))}),
            "capacity[m]",
            "needs allow_multiple",
        ),
        (
            SliceDevice("a", capacity={"m": Capacity("4", RequestPolicy("8"))}, allow_multiple=True),
            "capacity[m].policy.default",
            "exceeds the capacity of 4",
        ),
        (
            SliceDevice(
                "a", capacity={"m": Capacity("4", RequestPolicy("1", ("2", "1")))}, allow_multiple=True
            ),
            "capacity[m].policy",
            "ascending",
        ),
        (
            SliceDevice(
                "a", capacity={"m": Capacity("4", RequestPolicy("1", minimum="2"))}, allow_multiple=True
            ),
            "capacity[m].policy",
            "outside the range",
        ),
        (
            SliceDevice(
                "a",
                capacity={"m": Capacity("1", RequestPolicy("1", minimum="1", step="1"))},
                allow_multiple=True,
            ),
            "capacity[m].policy",
            "one step above the minimum exceeds the capacity of 1",
        ),
        (
            SliceDevice(
                "a",
                capacity={"m": Capacity("8", RequestPolicy("2", minimum="1", maximum="5", step="4"))},
                allow_multiple=True,
            ),
            "capacity[m].policy",
            "the default 2 is no multiple of the step 4 above 1",
        ),
        (SliceDevice("a", taints=(Taint("no good"),)), "taints[no good]", "no qualified name"),
        (SliceDevice("a", taints=(Taint("k"), Taint("k"))), "taints", "same key and effect"),
        (
            SliceDevice("a", consumes_counters=(CounterSet("x", {"u": "1"}),)),
            "consumes_counters[x]",
            "no counter set",
        ),
        (
            SliceDevice("a", consumes_counters=(CounterSet("chip", {"other": "1"}),)),
            "consumes_counters[chip]",
            "no counter 'other'",
        ),
        (SliceDevice("a", binding_conditions=("x",)), "binding_conditions", "need each other"),
        (
            SliceDevice("a", binding_conditions=("x",), binding_failure_conditions=("x",)),
            "binding_conditions",
            "named twice",
        ),
    ],
)
def test_a_broken_rule_is_told_by_device_and_field_and_the_rest_goes_on(
    device: SliceDevice, field: str, said: str
) -> None:
    checked = check_pool(Pool(NODE, [device, GOOD], SETS))
    assert checked.pool.devices == (GOOD,)
    assert [error.field for error in checked.rejected] == [field]
    assert said in str(checked.rejected[0])
    assert f"device {device.name} of pool {NODE}" in str(checked.rejected[0])


def test_of_two_devices_with_one_name_the_first_stays() -> None:
    checked = check_pool(Pool(NODE, [SliceDevice("a", {"n": 1}), SliceDevice("a", {"n": 2})]))
    assert [device.attributes for device in checked.pool.devices] == [{"n": 1}]
    assert "same name" in str(checked.rejected[0])


@pytest.mark.parametrize(
    "pool",
    [
        Pool("A"),
        Pool("a//b"),
        Pool("a" * 254),
        Pool("a", (), (CounterSet("s", {"c": "1"}),) * 2),
        Pool("a", (), (CounterSet("s", {}),)),
    ],
)
def test_a_pool_that_cannot_be_published_is_refused_whole(pool: Pool) -> None:
    with pytest.raises(PublishError):
        check_pool(pool)


@pytest.mark.parametrize("name", ["Acc.example.com", "a_b", "a" * 64, ""])
def test_driver_names_are_short_lowercase_dns_names(name: str) -> None:
    with pytest.raises(ValueError, match="no driver name"):
        check_driver_name(name)


def test_slice_names_are_ordered_stable_and_fit() -> None:
    assert slice_name(10, "d", "n") == "0000a-d-n"
    long = slice_name(1, "d" * 63, "n" * 253)
    assert len(long) <= 253
    assert long == slice_name(1, "d" * 63, "n" * 253)
    assert long != slice_name(1, "d" * 63, "n" * 252)


def pool_of(
    *numbers: int, tainted: int = -1, name: str = NODE, value: Mapping[int, int] | None = None
) -> WantedPool:
    shown = [
        SliceDevice(f"d{n:03}", {"v": (value or {}).get(n, 0)}, taints=(Taint("k"),) if n == tainted else ())
        for n in numbers
    ]
    return WantedPool(name, [encode_device(device) for device in shown])


def stored_by(made: Plan, before: Mapping[str, Stored] | None = None) -> dict[str, Stored]:
    after = dict(before or {})
    for write in made.writes:
        match write:
            case Delete(stored):
                del after[stored.name]
            case Create(name, spec) | Replace(Stored(name=name), spec):
                owner = [{"kind": "Node", "uid": "node-uid"}]
                meta = {"name": name, "uid": "u", "resourceVersion": "1", "ownerReferences": owner}
                after[name] = read_slice({"metadata": meta, "spec": spec})
    return after


def kinds(made: Plan) -> list[str]:
    return sorted(type(write).__name__ for write in made.writes)


def test_devices_fill_slices_of_64_in_order() -> None:
    after = stored_by(plan((), [pool_of(*range(130))], {}, SCOPE))
    assert [len(s.devices) for _, s in sorted(after.items())] == [64, 64, 2]
    assert [s.devices[0] for _, s in sorted(after.items())] == ["d000", "d064", "d128"]


def test_one_changed_slice_keeps_the_generation_and_two_make_a_new_one() -> None:
    first = plan((), [pool_of(*range(130))], {}, SCOPE)
    after = stored_by(first)
    one = plan(after.values(), [pool_of(*range(130), value={3: 1, 4: 1})], first.layouts, SCOPE)
    assert kinds(one) == ["Replace"]
    assert one.layouts[NODE].generation == 1
    two = plan(after.values(), [pool_of(*range(130), value={3: 1, 70: 1})], first.layouts, SCOPE)
    assert kinds(two) == ["Replace", "Replace", "Replace"]
    assert {s.generation for s in stored_by(two, after).values()} == {2}


def test_one_device_too_many_is_a_new_slice_and_a_new_generation_of_all() -> None:
    first = plan((), [pool_of(*range(64))], {}, SCOPE)
    after = stored_by(first)
    more = plan(after.values(), [pool_of(*range(65))], first.layouts, SCOPE)
    assert kinds(more) == ["Create", "Replace"]
    assert {(s.generation, s.count) for s in stored_by(more, after).values()} == {(2, 2)}


def test_a_taint_in_a_slice_of_more_than_64_moves_the_surplus() -> None:
    wide = Scope("d.example.com", NODE, "node-uid", per_slice=128)
    first = plan((), [pool_of(*range(100))], {}, wide)
    after = stored_by(first)
    assert [len(s.devices) for s in after.values()] == [100]
    after = stored_by(plan(after.values(), [pool_of(*range(100), tainted=5)], first.layouts, wide), after)
    assert sorted(len(s.devices) for s in after.values()) == [36, 64]


def test_slices_that_a_go_helper_named_are_kept() -> None:
    spec = stored_by(plan((), [pool_of(1, 2)], {}, SCOPE))
    (theirs,) = spec.values()
    known = [replace(theirs, name="00000-d.example.com-node1-x7k2p")]
    assert plan(known, [pool_of(1, 2)], {}, SCOPE).writes == ()
    assert kinds(plan(known, [pool_of(1)], {}, SCOPE)) == ["Replace"]


def test_leftovers_of_an_older_generation_go_first() -> None:
    first = plan((), [pool_of(1)], {}, SCOPE)
    after = stored_by(first)
    old = Stored("zz-old", "u", "1", NODE, 0, 1, "x", devices=("d001",))
    made = plan([*after.values(), old], [pool_of(1)], {}, SCOPE)
    assert made.writes[0] == Delete(old)
    assert kinds(made)[0] == "Delete"


def test_a_difference_that_the_server_made_is_not_written_again() -> None:
    first = plan((), [pool_of(1)], {}, SCOPE)
    (wanted,) = first.writes
    assert isinstance(wanted, Create)
    (kept,) = stored_by(first).values()
    odd = replace(kept, digest="as the server likes it")
    adopted = {odd.name: (wanted.digest, odd.digest)}
    assert plan([odd], [pool_of(1)], {}, SCOPE, adopted=adopted).writes == ()
    assert kinds(plan([odd], [pool_of(1, 2)], {}, SCOPE, adopted=adopted)) == ["Replace"]


def test_a_node_made_anew_owns_its_slices() -> None:
    after = stored_by(plan((), [pool_of(1)], {}, SCOPE))
    anew = Scope(SCOPE.driver, SCOPE.node, "another-uid")
    assert kinds(plan(after.values(), [pool_of(1)], {NODE: Layout(1)}, anew)) == ["Replace"]
