"""Switching between modes, as a table: what follows what, and what is shown meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.config import Mode
from bridge.ledger.holds import Plane
from bridge.ledger.switches import Gate, Switch
from bridge.planes import modes
from bridge.planes.mode_words import Circumstances, tell
from bridge.planes.modes import Due, Offering, Options, Phase, Wanted
from tests.unit.rosters import device, group, hold

DP, DUAL, DRA = Mode.DEVICE_PLUGIN, Mode.DUAL, Mode.DRA
OPEN, OPENING, CLOSING, WAITING, CLOSED = Gate.OPEN, Gate.OPENING, Gate.CLOSING, Gate.WAITING, Gate.CLOSED


def way(mode: Mode, target: Mode, same_name: bool) -> list[tuple[Phase, Due]]:
    """Every step from a mode to another: the phase, and what is due in it."""
    switch = modes.turn(modes.settled("acc", mode, 0.0), target, 1.0, same_name=same_name)
    steps = []
    while (due := modes.due(switch)) is not None:
        assert switch.mode is mode, "it is in the old mode until it has arrived"
        steps.append((modes.phase(switch), due))
        switch = modes.achieved(switch, due, switch.since + 1, same_name=same_name)
    assert (switch.mode, modes.phase(switch), modes.is_settled(switch)) == (target, Phase.SETTLED, True)
    return steps


@pytest.mark.parametrize(
    ("mode", "target", "steps"),
    [
        (DP, DP, []),
        (DP, DUAL, [(Phase.OPENING, Due.STORE)]),
        (
            DP,
            DRA,
            [(Phase.CLOSING, Due.UNLIST), (Phase.WAITING, Due.ALLOCATABLE), (Phase.OPENING, Due.STORE)],
        ),
        (DUAL, DP, [(Phase.CLOSING, Due.WITHDRAW)]),
        (DUAL, DRA, [(Phase.CLOSING, Due.UNLIST), (Phase.WAITING, Due.ALLOCATABLE)]),
        (DRA, DUAL, [(Phase.OPENING, Due.LIST)]),
        (DRA, DP, [(Phase.OPENING, Due.LIST), (Phase.CLOSING, Due.WITHDRAW)]),
    ],
)
def test_the_steps_between_two_modes(mode: Mode, target: Mode, steps: list[tuple[Phase, Due]]) -> None:
    assert way(mode, target, same_name=True) == steps
    if (mode, target) != (DP, DRA):
        assert way(mode, target, same_name=False) == steps


def test_of_two_names_that_of_dra_is_open_before_the_device_plugin_begins_to_close() -> None:
    assert way(DP, DRA, same_name=False) == [
        (Phase.OPENING, Due.STORE),
        (Phase.CLOSING, Due.UNLIST),
        (Phase.WAITING, Due.ALLOCATABLE),
    ]


def half_way(mode: Mode, target: Mode, steps: int, same_name: bool = True) -> Switch:
    switch = modes.turn(modes.settled("acc", mode, 0.0), target, 1.0, same_name=same_name)
    for _ in range(steps):
        due = modes.due(switch)
        assert due is not None
        switch = modes.achieved(switch, due, 2.0, same_name=same_name)
    return switch


@pytest.mark.parametrize(
    ("mode", "target", "steps", "turned", "gates"),
    [
        # (device plugin, DRA) right after the turn: what was under way is undone, nothing else moves.
        (DP, DRA, 0, DP, (OPENING, CLOSED)),
        (DP, DRA, 1, DP, (OPENING, CLOSED)),
        (DP, DRA, 2, DP, (OPENING, OPENING)),
        (DP, DRA, 0, DUAL, (OPENING, OPENING)),
        (DP, DRA, 1, DUAL, (OPENING, OPENING)),
        (DP, DUAL, 0, DP, (OPEN, CLOSING)),
        (DP, DUAL, 0, DRA, (CLOSING, OPENING)),
        (DUAL, DRA, 0, DUAL, (OPENING, OPEN)),
        (DUAL, DRA, 1, DUAL, (OPENING, OPEN)),
        (DUAL, DRA, 1, DP, (OPENING, OPEN)),
        (DUAL, DP, 0, DUAL, (OPEN, OPENING)),
        (DUAL, DP, 0, DRA, (CLOSING, OPENING)),
        (DRA, DUAL, 0, DRA, (CLOSING, OPEN)),
        (DRA, DP, 0, DRA, (CLOSING, OPEN)),
        (DRA, DP, 1, DRA, (CLOSING, OPENING)),
        (DRA, DP, 1, DUAL, (OPEN, OPENING)),
    ],
)
def test_a_switch_is_turned_round_from_each_step(
    mode: Mode, target: Mode, steps: int, turned: Mode, gates: tuple[Gate, Gate]
) -> None:
    switch = modes.turn(half_way(mode, target, steps), turned, 3.0, same_name=True)
    assert (switch.device_plugin, switch.dra) == gates
    assert (switch.mode, switch.target) == (mode, turned)


@pytest.mark.parametrize(
    ("mode", "target", "steps", "turned", "gates"),
    [
        (DP, DRA, 0, DP, (OPEN, CLOSING)),
        (DP, DRA, 1, DP, (OPENING, OPEN)),
        (DP, DRA, 0, DUAL, (OPEN, OPENING)),
        (DP, DUAL, 0, DRA, (OPEN, OPENING)),
        (DUAL, DP, 0, DRA, (OPEN, OPENING)),
        (DRA, DP, 0, DRA, (CLOSING, OPEN)),
        (DRA, DP, 1, DRA, (OPEN, OPENING)),
    ],
)
def test_of_two_names_one_is_always_offered(
    mode: Mode, target: Mode, steps: int, turned: Mode, gates: tuple[Gate, Gate]
) -> None:
    switch = modes.turn(half_way(mode, target, steps, same_name=False), turned, 3.0, same_name=False)
    assert (switch.device_plugin, switch.dra) == gates


def test_a_device_plugin_that_is_to_close_is_not_waited_for_to_open() -> None:
    switch = replace(half_way(DP, DRA, 0, same_name=False), device_plugin=OPENING)
    assert modes.due(switch) is Due.STORE


def test_what_was_not_due_changes_nothing() -> None:
    switch = half_way(DUAL, DRA, 1)
    for done in set(Due) - {Due.ALLOCATABLE}:
        assert modes.achieved(switch, done, 9.0, same_name=True) == switch
    assert modes.turn(switch, DRA, 9.0, same_name=True) == switch


@pytest.mark.parametrize(
    ("gate", "options", "shown"),
    [
        (OPEN, {}, Offering(True, True, True)),
        (OPENING, {"same_name": True}, Offering(True, True, True, mirrors=True)),
        (CLOSING, {}, Offering(False, True, True)),
        (CLOSING, {"same_name": True}, Offering(False, True, True, hides_held=True)),
        (WAITING, {"same_name": True}, Offering(False, True, True, hides_held=True)),
        (CLOSED, {"same_name": True}, Offering(False, True, False, hides_held=True)),
        (CLOSED, {}, Offering(False, True, False)),
        # Holders are waited for: only then is it closed, and what comes after that is not theirs.
        (CLOSING, {"same_name": True, "wait_for_holders": True}, Offering(False, True, True)),
        (WAITING, {"same_name": True, "wait_for_holders": True}, Offering(False, True, True)),
        (CLOSED, {"same_name": True, "wait_for_holders": True}, Offering(False, True, False, True)),
        # The kubelet takes its pods up again.
        (WAITING, {"same_name": True, "admitting": True}, Offering(False, True, True)),
        (CLOSED, {"same_name": True, "admitting": True}, Offering(False, True, False)),
    ],
)
def test_what_is_shown_on_the_way(gate: Gate, options: dict[str, bool], shown: Offering) -> None:
    switch = replace(modes.settled("acc", DUAL, 0.0), device_plugin=gate)
    every = {"same_name": False, "wait_for_holders": False, "admitting": False}
    assert modes.offering(switch, **(every | options)) == shown


@pytest.mark.parametrize("mode", Mode)
def test_a_settled_group_shows_what_its_mode_says(mode: Mode) -> None:
    switch = modes.settled("acc", mode, 0.0)
    shown = modes.offering(switch, same_name=False, wait_for_holders=False, admitting=False)
    assert shown == Offering.of(mode)
    assert shown.mode is mode


def test_a_group_that_offers_nothing_is_nearest_to_the_mode_that_it_leaves() -> None:
    switch = half_way(DP, DRA, 1)
    shown = modes.offering(switch, same_name=True, wait_for_holders=False, admitting=False)
    assert (shown.device_plugin, shown.dra, shown.mode) == (False, False, DP)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({}, Wanted(DUAL, "the configuration")),
        ({modes.LABEL: "dra"}, Wanted(DRA, "label device-bridge.io/mode")),
        (
            {modes.LABEL: "dra", f"{modes.LABEL}.acc": "device-plugin"},
            Wanted(DP, "label device-bridge.io/mode.acc"),
        ),
        ({f"{modes.LABEL}.other": "dra"}, Wanted(DUAL, "the configuration")),
    ],
)
def test_the_wanted_mode_is_the_groups_label_or_the_nodes_or_the_configuration(
    labels: dict[str, str], found: Wanted
) -> None:
    assert modes.wanted("acc", DUAL, labels) == found


@pytest.mark.parametrize("value", ["DRA", "", "off"])
def test_a_label_that_is_no_mode_changes_nothing_and_is_named_with_the_modes_that_there_are(
    value: str,
) -> None:
    found = modes.wanted("acc", DUAL, {f"{modes.LABEL}.acc": value, modes.LABEL: "dra"})
    assert found.mode is None
    assert found.problem == (
        f"label device-bridge.io/mode.acc is {value!r}, which is no mode; modes: device-plugin, dual, dra"
    )


def test_the_options_of_a_switch_are_annotations() -> None:
    assert Options.read({}) == Options()
    read = Options.read({modes.WAIT_FOR_HOLDERS: "true", modes.ACCEPT_STRANDED: " acc, nx ,"})
    assert read == Options(True, frozenset({"acc", "nx"}))
    assert read.accepts("acc") and not read.accepts("other")
    assert Options.read({modes.ACCEPT_STRANDED: "*"}).accepts("anything")
    assert not Options.read({modes.WAIT_FOR_HOLDERS: "yes"}).wait_for_holders


@pytest.mark.parametrize(
    ("allocatable", "healthy", "same_name", "none"),
    [
        (0, "", True, True),
        (0, "", False, True),
        (2, "ab", False, True),
        (3, "ab", False, False),
        (2, "ab", True, False),
        (0, "ab", True, False),
        (None, "", True, False),
        (None, "", False, True),
    ],
)
def test_who_must_see_allocatable_at_zero(
    allocatable: int | None, healthy: str, same_name: bool, none: bool
) -> None:
    assert modes.counts_as_none(allocatable, healthy, same_name=same_name) is none


@pytest.mark.parametrize(
    ("allocatable", "healthy", "asked", "counted"),
    [
        (0, {"a"}, True, False),
        (1, {"a"}, True, True),
        (0, set(), True, True),
        (None, set(), True, True),
        # It cannot be read just now: it may count or not.
        (None, {"a"}, True, False),
        # There is nobody to ask, and there will not be.
        (None, {"a"}, False, True),
    ],
)
def test_the_node_counts_what_is_listed(
    allocatable: int | None, healthy: set[str], asked: bool, counted: bool
) -> None:
    assert modes.is_counted(allocatable, healthy, asked=asked) is counted


def said(allocatable: int, **more: Any) -> str:
    of = replace(group(), keep_resource_name=True)
    around = Circumstances(Wanted(DRA, "label"), allocatable=allocatable, **more)
    return tell(half_way(DUAL, DRA, 1), of, around).message


def test_it_is_not_said_to_wait_for_0_where_0_is_while_the_kubelet_takes_its_pods_up_again() -> None:
    held = (hold(1, Plane.DEVICE_PLUGIN, device("acc0")),)
    assert said(2, holds=held).endswith("to be 0 in the Node's allocatable, which is 2")
    taking_up = said(0, holds=held, admitting=True)
    assert taking_up.startswith("waits for the kubelet to take up pod default/p again: until they run,")
    assert "which is 0" not in taking_up
