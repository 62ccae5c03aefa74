"""A group is turned to any modes at any steps, and dies at any of them: it always arrives."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from hypothesis import given
from hypothesis import strategies as st

from bridge.config import Mode
from bridge.ledger import rows
from bridge.ledger.holds import PutSwitch
from bridge.ledger.switches import Gate, Switch
from bridge.planes import modes
from bridge.planes.modes import Due, Phase

LONGEST = 4
"""No way has more steps: at most one for each gate to open and two for the device plugin's to close."""

turns = st.lists(st.one_of(st.sampled_from(Mode), st.just("step"), st.just("die")), max_size=30)


def read_back(switch: Switch) -> Switch:
    """As a daemon finds it that was killed after the commit."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        rows.create(db)
        rows.write(db, PutSwitch(switch))
        found = rows.load(db)[0].switch_of(switch.group)
    assert found is not None
    return found


def check(before: Switch, after: Switch, *, turned: bool, same_name: bool) -> None:
    """What may never be, in any record."""
    plugin, dra = after.device_plugin, after.dra
    assert (modes.due(after) is None) == modes.is_settled(after), "every step has an end, and no other"
    assert (modes.phase(after) is Phase.SETTLED) == modes.is_settled(after)
    assert not modes.is_settled(after) or after.mode is after.target
    assert dra is not Gate.WAITING
    if not plugin.offers and not dra.offers:
        assert same_name and after.target is Mode.DRA and plugin in (Gate.CLOSING, Gate.WAITING)
        assert dra is Gate.CLOSED, "what was open stays open"
    if dra is Gate.CLOSING:
        assert (after.target, plugin) == (Mode.DEVICE_PLUGIN, Gate.OPEN), "closed only beside the other one"
    if before.dra is Gate.CLOSED and dra is Gate.OPENING and after.target is Mode.DRA and same_name:
        assert plugin is Gate.CLOSED, "two counts of one name"
    if before.device_plugin.offers and not plugin.offers:
        assert modes.closes_device_plugin(before, after.target)
        assert turned or not same_name, "it can be refused before it begins"
        assert same_name or dra is Gate.OPEN, "of two names one is always there"
    if before.dra is Gate.CLOSED and dra.offers and turned:
        assert modes.opens_dra(before, after.target)


@given(st.sampled_from(Mode), turns, st.booleans())
def test_from_wherever_it_is_turned_a_group_arrives(
    first: Mode, turns: list[Mode | str], same_name: bool
) -> None:
    switch = modes.settled("acc", first, 0.0)
    check(switch, switch, turned=False, same_name=same_name)
    for number, turn in enumerate(turns, 1):
        before = switch
        match turn:
            case "die":
                switch = read_back(switch)
                assert switch == before
            case "step":
                due = modes.due(switch)
                if due is not None:
                    switch = modes.achieved(switch, due, float(number), same_name=same_name)
                assert due is None or switch != before
            case mode:
                switch = modes.turn(switch, Mode(mode), float(number), same_name=same_name)
                assert switch.target is mode
        check(before, switch, turned=isinstance(turn, Mode), same_name=same_name)
    for step in range(LONGEST + 1):
        due = modes.due(switch)
        if due is None:
            break
        assert step < LONGEST, f"it does not arrive: {switch}"
        before, switch = switch, modes.achieved(switch, due, 99.0 + step, same_name=same_name)
        check(before, switch, turned=False, same_name=same_name)
    assert modes.is_settled(switch) and switch.mode is switch.target


@given(st.sampled_from(Mode), turns, st.sampled_from(Due), st.booleans())
def test_what_is_confirmed_too_late_or_twice_changes_nothing(
    first: Mode, turns: list[Mode | str], late: Due, same_name: bool
) -> None:
    switch = modes.settled("acc", first, 0.0)
    for turn in turns:
        if isinstance(turn, Mode):
            switch = modes.turn(switch, turn, 1.0, same_name=same_name)
        elif (due := modes.due(switch)) is not None:
            switch = modes.achieved(switch, due, 1.0, same_name=same_name)
    if late is not modes.due(switch):
        assert modes.achieved(switch, late, 2.0, same_name=same_name) == switch
