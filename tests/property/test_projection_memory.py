"""Remembered projections show what fresh ones would, whatever happened in between (Q1)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import Group, load
from bridge.devices.model import ContainerEdits, Device, Health, Inventory
from bridge.ledger.account import Account
from bridge.ledger.holds import (
    ClaimHolder,
    DropHold,
    Hold,
    Holder,
    LiftQuarantine,
    Phase,
    Pick,
    Plane,
    PodHolder,
    PutHold,
    PutQuarantine,
    Quarantine,
    Refused,
)
from bridge.planes.projection import IdOffer, Memory, SliceOffer, device_plugin_view, dra_view
from bridge.planes.roster import Roster

COUNTS = {"a": 1, "b": 2, "c": 3}
"""Shares by device."""

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hand out"), st.sampled_from(list(Plane)), st.integers(0, 5)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("quarantine"), st.sampled_from(["a", "b", "*"])),
        st.tuples(st.just("lift"), st.sampled_from(["a", "b", "*"])),
        st.tuples(st.just("break"), st.sampled_from(list(COUNTS))),
        st.tuples(st.just("contest"), st.integers(0, 9)),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Group:
    path: Path = tmp_path_factory.mktemp("config") / "config.yaml"
    one = {"name": "acc", "kind": "device-node", "options": {"include": ["/dev/acc*"]}}
    path.write_text(
        json.dumps({"apiVersion": "device-bridge.io/v1alpha1", "kind": "BridgeConfig", "groups": [one]})
    )
    return load(path).groups[0]


class Node:
    """A roster and an account that change."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.account = Account()
        self.broken: set[str] = set()
        self.contested: frozenset[int] = frozenset()
        self.roster = self._build()
        self._made = 0

    def _build(self) -> Roster:
        devices = tuple(
            Device(
                "acc",
                name,
                "device-node",
                ContainerEdits(),
                health=Health(name not in self.broken),
                parts={f"/dev/{name}": 1},
                shares=count,
            )
            for name, count in COUNTS.items()
        )
        parts = {f"/dev/{name}": count for name, count in COUNTS.items()}
        return Roster.build(self.group, Inventory(devices, parts), self.account)

    def step(self, what: str, *arguments: object) -> None:
        match what, *arguments:
            case "hand out", Plane() as plane, int() as index:
                self._hand_out(plane, index)
            case "end", int() as index:
                holds = list(self.account)
                if index < len(holds):
                    self.account.apply(DropHold(holds[index].id))
            case "contest", int() as index:
                self.contested ^= {index}
            case "quarantine", str() as name:
                self.account.apply(PutQuarantine(Quarantine("acc", name, "doubt", 0.0)))
            case "lift", str() as name:
                self.account.apply(LiftQuarantine("acc", name))
            case "break", str() as name:
                self.broken ^= {name}
                self.roster = self._build()
            case other:
                raise AssertionError(other)

    def _hand_out(self, plane: Plane, index: int) -> None:
        shares = [share for device in self.roster.devices for share in device.share_names()]
        share = shares[index]
        device = self.roster.by_name[share]
        if self.account.of_share(plane, "acc", share) is not None:
            return
        pick = Pick("acc", device.name, share, self.roster.uses(device))
        try:
            self.account.check(pick)
        except Refused:
            return
        self._made += 1
        holder: Holder = ClaimHolder("d", "c", str(self._made)) if plane is Plane.DRA else PodHolder()
        phase = Phase.PREPARED if plane is Plane.DRA else Phase.GRANTED
        self.account.apply(
            PutHold(Hold(self._made, plane, phase, "acc", device.name, share, holder, pick.uses, 0.0))
        )


@given(steps=STEPS, consumable=st.booleans())
def test_remembered_views_are_the_views(group: Group, steps: list[tuple[str, ...]], consumable: bool) -> None:
    node = Node(group)
    ids, offers = Memory[tuple[IdOffer, ...]](), Memory[tuple[SliceOffer, ...]]()
    for step in steps:
        node.step(*step)
        assert device_plugin_view(node.roster, node.account, ids) == device_plugin_view(
            node.roster, node.account
        )
        remembered = dra_view(
            node.roster, node.account, consumable=consumable, memory=offers, contested=node.contested
        )
        fresh = dra_view(node.roster, node.account, consumable=consumable, contested=node.contested)
        assert remembered == fresh
