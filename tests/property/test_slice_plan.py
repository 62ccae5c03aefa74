"""Plans of ResourceSlices keep their invariants whatever devices come, go, change and are tainted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from dra_v1.slice_plan import (
    COUNTER_SETS_LIMIT,
    HARD_LIMIT,
    SMALL_LIMIT,
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
)
from dra_v1.slices import CounterSet, SliceDevice, Taint, encode_counters, encode_device

POOL = "node1"


@dataclass
class Server:
    """Applies plans as the API server and the publisher would."""

    per_slice: int = 5
    slices: dict[str, Stored] = field(default_factory=dict)
    specs: dict[str, dict] = field(default_factory=dict)  # type: ignore[type-arg]
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    revision: int = 0

    @property
    def scope(self) -> Scope:
        return Scope("d.example.com", "node1", "uid", self.per_slice)

    def plan(self, wanted: Sequence[WantedPool]) -> Plan:
        made = plan(tuple(self.slices.values()), wanted, self.layouts, self.scope)
        self.layouts = made.layouts
        return made

    def apply(self, writes: Sequence[object]) -> None:
        for write in writes:
            match write:
                case Delete(stored):
                    del self.slices[stored.name], self.specs[stored.name]
                case Replace(stored, spec, _):
                    assert self.slices[stored.name].resource_version == stored.resource_version
                    self.put(stored.name, spec)
                case Create(name, spec, _):
                    assert name not in self.slices
                    self.put(name, spec)

    def put(self, name: str, spec: dict) -> None:  # type: ignore[type-arg]
        self.revision += 1
        owner = {"kind": "Node", "uid": "uid"}
        meta = {"name": name, "uid": name, "resourceVersion": str(self.revision), "ownerReferences": [owner]}
        self.specs[name] = spec
        self.slices[name] = read_slice({"metadata": meta, "spec": spec})

    def converge(self, wanted: Sequence[WantedPool]) -> Plan:
        made = self.plan(wanted)
        self.apply(made.writes)
        return made

    def homes(self) -> dict[str, str]:
        return {device: s.name for s in self.slices.values() for device in s.devices}


def wanted(devices: Mapping[int, tuple[int, bool]], counters: int = 0, pool: str = POOL) -> WantedPool:
    """Devices by number: (a value that may change, whether tainted)."""
    shown = [
        SliceDevice(f"d{n}", {"value": value}, taints=(Taint("example.com/x"),) if tainted else ())
        for n, (value, tainted) in sorted(devices.items())
    ]
    sets = [CounterSet(f"s{n}", {"c": "1"}) for n in range(counters)]
    return WantedPool(pool, [encode_device(one) for one in shown], [encode_counters(one) for one in sets])


states = st.dictionaries(st.integers(0, 30), st.tuples(st.integers(0, 2), st.booleans()), max_size=31)
histories = st.lists(st.tuples(states, st.integers(0, 10)), min_size=1, max_size=6)


def check(server: Server, pool: WantedPool) -> None:
    """Everything that has to hold of what is stored."""
    listed = [device for s in server.slices.values() for device in s.devices]
    assert sorted(listed) == sorted(entry.name for entry in pool.devices)
    listed_sets = [name for s in server.slices.values() for name in s.counters]
    assert sorted(listed_sets) == sorted(entry.name for entry in pool.counters)
    assert server.slices
    assert {s.generation for s in server.slices.values()} == {
        max(s.generation for s in server.slices.values())
    }
    assert {s.count for s in server.slices.values()} == {len(server.slices)}
    order = {entry.name: place for place, entry in enumerate(pool.devices)}
    for s in server.slices.values():
        spec = server.specs[s.name]
        assert not (spec.get("devices") and spec.get("sharedCounters"))
        tainted = any("taints" in device for device in spec.get("devices") or ())
        assert len(s.devices) <= min(server.per_slice, SMALL_LIMIT if tainted else HARD_LIMIT)
        assert len(s.counters) <= COUNTER_SETS_LIMIT
        assert list(s.devices) == sorted(s.devices, key=lambda name: order[name])


@settings(max_examples=200, deadline=None)
@given(histories, st.integers(1, 9), st.booleans())
def test_what_is_stored_after_a_plan_is_what_is_wanted(
    history: list[tuple[dict[int, tuple[int, bool]], int]], per_slice: int, forgetful: bool
) -> None:
    server = Server(per_slice)
    for devices, counters in history:
        pool = wanted(devices, counters)
        server.converge([pool])
        check(server, pool)
        assert server.plan([pool]).writes == (), "unchanged, and yet something is written"
        if forgetful:
            server.layouts = {}
            assert server.plan([pool]).writes == (), "a restart alone makes writes"


@settings(max_examples=200, deadline=None)
@given(states.filter(bool), st.data())
def test_a_withdrawal_and_its_return_are_one_replace_each_and_move_nobody(
    devices: dict[int, tuple[int, bool]], data: st.DataObject
) -> None:
    server = Server()
    server.converge([wanted(devices)])
    homes, generation = server.homes(), server.layouts[POOL].generation
    gone = data.draw(st.sampled_from(sorted(devices)))
    rest = {number: state for number, state in devices.items() if number != gone}

    away = server.converge([wanted(rest)])
    assert [type(write) for write in away.writes] == [Replace]
    assert server.homes() == {name: home for name, home in homes.items() if name != f"d{gone}"}

    back = server.converge([wanted(devices)])
    assert [type(write) for write in back.writes] == [Replace]
    assert server.homes() == homes
    assert server.layouts[POOL].generation == generation


@settings(max_examples=200, deadline=None)
@given(histories, st.data())
def test_h16_a_plan_that_was_broken_off_anywhere_is_made_good_by_the_next(
    history: list[tuple[dict[int, tuple[int, bool]], int]], data: st.DataObject
) -> None:
    server = Server()
    for devices, counters in history:
        writes = server.plan([wanted(devices, counters)]).writes
        server.apply(writes[: data.draw(st.integers(0, len(writes)))])
        if data.draw(st.booleans()):
            server.layouts = {}  # it was a crash
    pool = wanted(*history[-1])
    server.converge([pool])
    check(server, pool)
    assert server.plan([pool]).writes == ()


@settings(max_examples=100, deadline=None)
@given(states, st.data())
def test_h13_slices_that_were_lost_are_created_again_and_nothing_else(
    devices: dict[int, tuple[int, bool]], data: st.DataObject
) -> None:
    server = Server()
    pool = wanted(devices, 3)
    server.converge([pool])
    before = dict(server.specs)
    lost = data.draw(st.sets(st.sampled_from(sorted(before)), min_size=1))
    for name in lost:
        del server.slices[name], server.specs[name]
    made = server.converge([pool])
    assert {write.name for write in made.writes if isinstance(write, Create)} == lost
    assert len(made.writes) == len(lost)
    assert server.specs == before


@settings(max_examples=100, deadline=None)
@given(states, states)
def test_pools_do_not_mix_and_pools_no_longer_wanted_go(
    one: dict[int, tuple[int, bool]], two: dict[int, tuple[int, bool]]
) -> None:
    server = Server()
    server.converge([wanted(one, pool="a"), wanted(two, pool="b")])
    by_pool = {name: [s for s in server.slices.values() if s.pool == name] for name in ("a", "b")}
    assert {d for s in by_pool["a"] for d in s.devices} == {f"d{n}" for n in one}
    assert {d for s in by_pool["b"] for d in s.devices} == {f"d{n}" for n in two}
    names = {s.name for s in by_pool["b"]}
    made = server.converge([wanted(one, pool="a")])
    assert {write.stored.name for write in made.writes if isinstance(write, Delete)} == names
    assert len(made.writes) == len(names)
