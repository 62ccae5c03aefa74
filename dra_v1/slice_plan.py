"""Which device stands in which slice, and which writes lead from what is stored to what is wanted.

Pure. Keeps four invariants: a device stands in exactly one slice; it keeps its slice for as long as that has room
(sticky: a withdrawal is one write and never moves another device); limits hold; one changed slice is one write
without a new generation, and anything more is a new generation of the whole pool (kubelet-contract B.5).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dra_v1.kube_errors import Json
from dra_v1.slices import Encoded, digest, digest_all

HARD_LIMIT: Final = 128
"""Devices in one slice (kubelet-contract C.1)."""

SMALL_LIMIT: Final = 64
"""Devices in a slice of which any has taints or consumes counters."""

COUNTER_SETS_LIMIT: Final = 8
"""Counter sets in one slice."""

_NAME_LIMIT: Final = 253


@dataclass(frozen=True, slots=True)
class Scope:
    """What all slices of one publisher have in common.

    Attributes:
        driver, node: as in the slices.
        owner: UID of the Node object, in the slices' owner reference.
        per_slice: devices in one slice at most; 64 leaves room for taints at any time.
    """

    driver: str
    node: str
    owner: str
    per_slice: int = SMALL_LIMIT


@dataclass(frozen=True, slots=True)
class WantedPool:
    """A pool of valid, encoded devices."""

    name: str
    devices: Sequence[Encoded]
    counters: Sequence[Encoded] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """One slice of this driver and node in the API server.

    Attributes:
        name, uid, resource_version: which object, and which state of it.
        pool, generation, count: its pool as it says.
        digest: equal to the wanted slice's where nothing has to be written.
        devices, counters: names, in order.
        taint_times: when each taint was set, by (device, key, value, effect).
    """

    name: str
    uid: str
    resource_version: str
    pool: str
    generation: int
    count: int
    digest: str
    devices: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    taint_times: Mapping[tuple[str, str, str, str], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a pool remembers between plans.

    Attributes:
        generation: the newest one planned.
        homes: slice of every device, of withdrawn ones too, so that they come back to their place.
        counter_homes: slice of every counter set.
    """

    generation: int = 0
    homes: Mapping[str, str] = field(default_factory=dict)
    counter_homes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete that very slice."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class Replace:
    """Replace that very slice; `digest` tells what will be wanted of it."""

    stored: Stored
    spec: Json
    digest: str


@dataclass(frozen=True, slots=True)
class Create:
    """Create a slice."""

    name: str
    spec: Json
    digest: str


Write = Delete | Replace | Create


@dataclass(frozen=True, slots=True)
class Plan:
    """The writes, in the order in which they have to be made: deletes, replaces, creates."""

    writes: tuple[Write, ...]
    layouts: Mapping[str, Layout]


def slice_name(index: int, driver: str, node: str) -> str:
    """Object name of the `index`-th slice. The scheduler tries slices in the order of their names."""
    tail = f"{driver}-{node}"
    if len(tail) > _NAME_LIMIT - 6:
        tail = f"{driver}-{hashlib.sha256(node.encode()).hexdigest()[:16]}"
    return f"{index:05x}-{tail}"


def read_slice(body: Json) -> Stored:
    """A stored ResourceSlice in the shape of v1."""
    meta, spec = body["metadata"], body["spec"]
    devices, counters = spec.get("devices") or (), spec.get("sharedCounters") or ()
    owners = [str(ref.get("uid")) for ref in meta.get("ownerReferences") or () if ref.get("kind") == "Node"]
    return Stored(
        name=str(meta["name"]),
        uid=str(meta.get("uid", "")),
        resource_version=str(meta.get("resourceVersion", "")),
        pool=str(spec["pool"]["name"]),
        generation=int(spec["pool"].get("generation", 0)),
        count=int(spec["pool"].get("resourceSliceCount", 0)),
        digest=digest_all((digest(entry) for entry in (*devices, *counters)), " ".join(owners)),
        devices=tuple(str(device["name"]) for device in devices),
        counters=tuple(str(entry["name"]) for entry in counters),
        taint_times={
            (str(device["name"]), *_taint_key(taint)): str(taint["timeAdded"])
            for device in devices
            for taint in device.get("taints") or ()
            if taint.get("timeAdded")
        },
    )


def plan(
    stored: Collection[Stored],
    wanted: Sequence[WantedPool],
    layouts: Mapping[str, Layout],
    scope: Scope,
    *,
    adopted: Mapping[str, tuple[str, str]] | None = None,
    taken: Collection[str] = (),
) -> Plan:
    """What to write so that exactly `wanted` is stored.

    Args:
        stored: every slice of this driver and node.
        wanted: the pools; slices of other pools are stale and go.
        layouts: what the last plan said, by pool; empty at start, where the stored slices tell it.
        scope: what the slices have in common.
        adopted: by slice name (wanted digest, stored digest): differences known to be the server's, so that what
            it drops or changes is not written again and again.
        taken: names that other objects have.
    """
    names = _Names(scope, {s.name for s in stored} | set(taken) | _known_names(layouts))
    by_pool = {pool.name: [s for s in stored if s.pool == pool.name] for pool in wanted}
    stale = [Delete(s) for s in stored if s.pool not in by_pool]
    planned = [
        _PoolPlan(
            by_pool[pool.name], pool, layouts.get(pool.name, Layout()), scope, names, adopted or {}, taken
        )
        for pool in sorted(wanted, key=lambda pool: pool.name)
    ]
    writes: list[Write] = [*stale, *(write for pool in planned for write in pool.writes())]
    order = (Delete, Replace, Create)
    writes.sort(key=lambda write: order.index(type(write)))
    return Plan(tuple(writes), {pool.wanted.name: pool.layout() for pool in planned})


class _Names:
    """Hands out object names that nobody has."""

    def __init__(self, scope: Scope, used: set[str]) -> None:
        self._scope, self._used = scope, used

    def next(self, slices: dict[str, list[Encoded]]) -> str:
        """Open a new slice in `slices`; its name."""
        index = 0
        while (name := slice_name(index, self._scope.driver, self._scope.node)) in self._used:
            index += 1
        self._used.add(name)
        slices[name] = []
        return name


class _PoolPlan:
    """One pool's plan; every attribute is settled by the constructor."""

    def __init__(
        self,
        stored: Sequence[Stored],
        wanted: WantedPool,
        memory: Layout,
        scope: Scope,
        names: _Names,
        adopted: Mapping[str, tuple[str, str]],
        taken: Collection[str],
    ) -> None:
        self.wanted, self._scope, self._adopted = wanted, scope, adopted
        self._stored = {s.name: s for s in stored}
        self._newest = max((s.generation for s in stored), default=0)
        free = {device: home for device, home in memory.homes.items() if home not in taken}
        self._homes = {**_homes(stored, "devices"), **free}
        sets = {name: home for name, home in memory.counter_homes.items() if home not in taken}
        counter_homes = {**_homes(stored, "counters"), **sets}
        counter_slices = set(counter_homes.values()) - set(self._homes.values())
        current = [s.name for s in stored if s.generation == self._newest and s.name not in counter_slices]
        keep = {*current, *free.values()}

        self._slices = _place(wanted.devices, self._homes, keep, names, scope.per_slice)
        sets_used = {name: home for name, home in counter_homes.items() if home not in self._slices}
        self._counters = _place(wanted.counters, sets_used, set(), names, COUNTER_SETS_LIMIT)
        if not self._slices and not self._counters:
            names.next(self._slices)
        self._generation, self._bumped = self._choose_generation(memory)
        if self._bumped:
            self._drop_empty()

    def writes(self) -> Iterator[Write]:
        """Deletes, replaces and creates of this pool."""
        target = self._target()
        for name, stored in self._stored.items():
            if name not in target:
                yield Delete(stored)
        for name, held in sorted(target.items()):
            known = self._stored.get(name)
            if known is None:
                yield Create(name, self._spec(name, held, len(target)), self._digest(held))
            elif self._bumped or self._differs(known, held):
                yield Replace(known, self._spec(name, held, len(target)), self._digest(held))

    def layout(self) -> Layout:
        """What to remember: homes in slices that still exist, withdrawn devices included."""
        homes = {device: home for device, home in self._homes.items() if home in self._slices}
        homes |= {entry.name: name for name, held in self._slices.items() for entry in held}
        counter_homes = {entry.name: name for name, held in self._counters.items() for entry in held}
        return Layout(self._generation, homes, counter_homes)

    def _target(self) -> dict[str, list[Encoded]]:
        return {**self._slices, **self._counters}

    def _choose_generation(self, memory: Layout) -> tuple[int, bool]:
        """The generation, and whether it is a new one of the whole pool.

        Slices that were lost are put back under the old generation as long as nothing else changes: the pool is
        incomplete until the last of them is there, so nobody sees a mixture (H13).
        """
        target = self._target()
        kept = [self._stored[name] for name in target if name in self._stored]
        if not self._stored:
            return max(memory.generation, 1), False
        if not kept:
            return self._newest + 1, False
        consistent = all(s.generation == self._newest and s.count == len(target) for s in kept)
        changed = sum(self._differs(s, target[s.name]) for s in kept)
        lost = len(target) - len(kept)
        if consistent and (changed == 0 or (changed == 1 and lost == 0)):
            return self._newest, False
        return max(self._newest, memory.generation) + 1, True

    def _drop_empty(self) -> None:
        """A new generation is the moment to let go of slices in which nothing is and nothing is awaited."""
        awaited = set(self._homes.values())
        for name in [n for n, held in self._slices.items() if not held and n not in awaited]:
            if len(self._target()) > 1:
                del self._slices[name]

    def _differs(self, stored: Stored, held: Sequence[Encoded]) -> bool:
        want = self._digest(held)
        return stored.digest != want and self._adopted.get(stored.name) != (want, stored.digest)

    def _digest(self, held: Sequence[Encoded]) -> str:
        return digest_all((entry.digest for entry in held), self._scope.owner)

    def _spec(self, name: str, held: Sequence[Encoded], count: int) -> Json:
        times = {key: at for s in self._stored.values() for key, at in s.taint_times.items()}
        spec: Json = {
            "driver": self._scope.driver,
            "nodeName": self._scope.node,
            "pool": {
                "name": self.wanted.name,
                "generation": self._generation,
                "resourceSliceCount": count,
            },
        }
        if name in self._counters:
            spec["sharedCounters"] = [entry.body for entry in held]
        else:
            spec["devices"] = [_with_taint_times(entry.body, times) for entry in held]
        return spec


def _known_names(layouts: Mapping[str, Layout]) -> set[str]:
    return {
        name
        for layout in layouts.values()
        for homes in (layout.homes, layout.counter_homes)
        for name in homes.values()
    }


def _homes(stored: Iterable[Stored], kind: str) -> dict[str, str]:
    """Slice by device (or counter set); of a device in several slices the newest generation's counts."""
    homes: dict[str, str] = {}
    for s in sorted(stored, key=lambda s: (-s.generation, s.name)):
        for name in s.devices if kind == "devices" else s.counters:
            homes.setdefault(name, s.name)
    return homes


def _ceiling(held: Sequence[Encoded], per_slice: int) -> int:
    """How many devices a slice with these may have."""
    limit = min(per_slice, HARD_LIMIT)
    return min(limit, SMALL_LIMIT) if any(entry.small_slice for entry in held) else limit


def _place(
    entries: Sequence[Encoded], homes: Mapping[str, str], keep: Collection[str], names: _Names, per_slice: int
) -> dict[str, list[Encoded]]:
    """Fill slices: everything at its home as far as that has room, the rest where there is room, else anew.

    Room that withdrawn entries left is used only when there is no other: they shall find it free.
    """
    rank = {entry.name: place for place, entry in enumerate(entries)}
    slices: dict[str, list[Encoded]] = {name: [] for name in sorted(keep)}
    homeless: list[Encoded] = []
    for entry in entries:
        home = homes.get(entry.name)
        slices.setdefault(home, []).append(entry) if home else homeless.append(entry)
    for held in slices.values():
        most = _ceiling(held, per_slice)
        homeless += held[most:]
        del held[most:]
    reserved = Counter(home for name, home in homes.items() if name not in rank)
    for entry in sorted(homeless, key=lambda entry: rank[entry.name]):
        slices[_room_for(entry, slices, reserved, per_slice) or names.next(slices)].append(entry)
    for held in slices.values():
        held.sort(key=lambda entry: rank[entry.name])
    return slices


def _room_for(
    entry: Encoded, slices: Mapping[str, Sequence[Encoded]], reserved: Mapping[str, int], per_slice: int
) -> str | None:
    for heed in (True, False):
        for name in sorted(slices):
            held = slices[name]
            used = len(held) + (reserved.get(name, 0) if heed else 0)
            if used < per_slice and used < _ceiling([*held, entry], per_slice):
                return name
    return None


def _taint_key(taint: Json) -> tuple[str, str, str]:
    return (str(taint.get("key")), str(taint.get("value", "")), str(taint.get("effect", "")))


def _with_taint_times(body: Json, times: Mapping[tuple[str, str, str, str], str]) -> Json:
    """The device with the times of its unchanged taints: else a rewrite would start their clocks anew."""
    if "taints" not in body or not times:
        return body
    taints = []
    for taint in body["taints"]:
        at = times.get((str(body["name"]), *_taint_key(taint)))
        taints.append({**taint, "timeAdded": at} if at else taint)
    return {**body, "taints": taints}
