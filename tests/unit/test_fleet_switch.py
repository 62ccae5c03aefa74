"""The pure parts of a rolling switch: marks and patches, batches, verdicts, the order of an undo."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from bridge.cli.fleet import marks
from bridge.cli.fleet.batches import batches, seconds, size
from bridge.cli.fleet.journey import Report, Result, back, forth
from bridge.cli.fleet.marks import Ask, Marks
from bridge.cli.fleet.options import Wanted
from bridge.cli.fleet.states import State, state
from bridge.cli.fleet.verdicts import Standing, ready, towards
from bridge.cli.problems import Problem
from bridge.config import Mode
from bridge.planes import modes

NOW = datetime.datetime(2026, 11, 21, 12, 0, tzinfo=datetime.UTC)
STRANDED = "device-bridge.io/accept-stranded-pods"
WAIT = "device-bridge.io/wait-for-holders"
PREVIOUS = "device-bridge.io/previous-mode"


def node(
    name: str = "a", labels: dict[str, str] | None = None, notes: dict[str, str] | None = None
) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "resourceVersion": "7", "labels": labels or {}, "annotations": notes or {}}
    }


def bridge(name: str = "a", *groups: dict[str, str], ready: str = "True") -> State:
    told = {"phase": "Settled", "wanted": "dual", "mode": "dual"}
    status = {
        "wanted": "dual",
        "mode": "dual",
        "groups": [{**told, **one} for one in groups or ({"name": "acc"},)],
        "conditions": [
            {"type": "Ready", "status": ready, "reason": "Rivals", "message": "another one serves"}
        ],
    }
    return state({"metadata": {"name": name, "resourceVersion": "9"}, "status": status})


def after(given: dict[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
    """What a server makes of a merge patch."""
    merged = {**given["metadata"]}
    for field, changed in (body or {"metadata": {}})["metadata"].items():
        if isinstance(changed, dict):
            kept = {**merged.get(field, {}), **changed}
            merged[field] = {key: value for key, value in kept.items() if value is not None}
    return {"metadata": merged}


# -- marks


def test_the_modes_and_the_labels_are_those_of_the_daemon() -> None:
    assert [one.value for one in Wanted] == [one.value for one in Mode]
    assert (marks.MODE, marks.WAIT_FOR_HOLDERS, marks.STRANDED) == (
        modes.LABEL,
        modes.WAIT_FOR_HOLDERS,
        modes.ACCEPT_STRANDED,
    )


def test_a_switch_keeps_what_was_in_the_same_patch() -> None:
    given = node(labels={marks.MODE: "dual"}, notes={WAIT: "true"})
    wanted = marks.switched(marks.marks(given, ""), "dra", Ask(), "", NOW, "dual")
    body = marks.patch(given, "", wanted)
    assert body is not None
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["metadata"]["labels"] == {marks.MODE: "dra"}
    assert body["metadata"]["annotations"][WAIT] is None
    previous = json.loads(body["metadata"]["annotations"][PREVIOUS])
    assert previous == {
        "mode": "dual",
        "wait": "true",
        "stranded": None,
        "at": NOW.isoformat(),
        "was": "dual",
    }


@pytest.mark.parametrize("group", ["", "acc"])
@pytest.mark.parametrize("before", [None, "dual"])
def test_an_undo_puts_back_all_that_a_switch_changed(group: str, before: str | None) -> None:
    labels = {marks.key(marks.MODE, group): before} if before else {}
    given = node(labels={**labels, "pool": "a"}, notes={STRANDED: "nx"})
    ask = Ask(wait_for_holders=True, accept_stranded_pods=True)
    there = after(
        given, marks.patch(given, group, marks.switched(marks.marks(given, group), "dra", ask, group, NOW))
    )
    assert marks.marks(there, group).mode == "dra"
    undone = marks.undone(marks.marks(there, group))
    assert undone is not None
    half = after(there, marks.patch(there, group, undone))
    assert marks.undone(marks.marks(half, group)) == undone, "an undo that stopped can be done again"
    whole = after(half, marks.patch(half, group, marks.forgotten(undone)))
    assert (whole["metadata"]["labels"], whole["metadata"]["annotations"]) == (
        given["metadata"]["labels"],
        given["metadata"]["annotations"],
    )


def test_a_second_switch_to_the_same_mode_keeps_the_note_and_changes_options_alone() -> None:
    given = node(labels={marks.MODE: "dual"})
    there = after(
        given, marks.patch(given, "", marks.switched(marks.marks(given, ""), "dra", Ask(), "", NOW))
    )
    assert marks.patch(there, "", marks.switched(marks.marks(there, ""), "dra", Ask(), "", NOW)) is None
    accepted = marks.switched(marks.marks(there, ""), "dra", Ask(accept_stranded_pods=True), "", NOW)
    body = marks.patch(there, "", accepted)
    assert body == {"metadata": {"resourceVersion": "7", "annotations": {STRANDED: "*"}}}


@pytest.mark.parametrize(
    ("before", "accept", "wanted"),
    [
        (None, True, "acc"),
        (None, False, None),
        ("nx", True, "nx,acc"),
        ("nx, acc", False, "nx"),
        ("acc", False, None),
        ("*", False, "*"),
        ("acc", True, "acc"),
    ],
)
def test_a_switch_of_a_group_leaves_the_options_of_others(
    before: str | None, accept: bool, wanted: str | None
) -> None:
    now = Marks("dual", None, before, None)
    assert marks.switched(now, "dra", Ask(accept_stranded_pods=accept), "acc", NOW).stranded == wanted


@pytest.mark.parametrize("text", ["", "no json", "[]", "7"])
def test_a_note_that_cannot_be_read_is_none(text: str) -> None:
    found = marks.marks(node(notes={PREVIOUS: text}), "")
    assert found.previous is None and marks.undone(found) is None


# -- batches


def test_batches() -> None:
    assert [size("3", 10), size("10%", 25), size("10%", 5), size("100%", 7)] == [3, 2, 1, 7]
    assert batches("abcde", 2) == ["ab", "cd", "e"]
    for wrong in ("0", "-1", "101%", "ten", "", "%"):
        with pytest.raises(Problem, match="--batch"):
            size(wrong, 5)


def test_lengths_of_time() -> None:
    assert [seconds(text, "--x") for text in ("90", "90s", "5m", "1h30m", "0.5s")] == [90, 90, 300, 5400, 0.5]
    for wrong in ("", "soon", "5d", "-1s"):
        with pytest.raises(Problem, match="--x is a length of time"):
            seconds(wrong, "--x")


# -- verdicts


@pytest.mark.parametrize(
    ("told", "standing"),
    [
        ({"wanted": "dra", "mode": "dra"}, Standing.THERE),
        ({"wanted": "dra", "mode": "dual", "phase": "Closing"}, Standing.UNDER_WAY),
        ({"wanted": "dra", "mode": "dra", "phase": "Opening"}, Standing.UNDER_WAY),
        ({"wanted": "dra", "mode": "dual"}, Standing.UNDER_WAY),
        ({"wanted": "dual", "mode": "dual"}, Standing.UNDER_WAY),
        ({"wanted": "dual", "mode": "dual", "phase": "Refused"}, Standing.UNDER_WAY),
        ({"wanted": "dra", "mode": "dual", "phase": "Refused"}, Standing.REFUSED),
        ({"wanted": "dra", "mode": "dual", "phase": "Refused", "reason": "NotChecked"}, Standing.WRONG),
    ],
)
def test_how_far_a_node_is(told: dict[str, str], standing: Standing) -> None:
    assert towards("dra", "", ())(bridge("a", {"name": "acc", **told})).standing is standing


def test_the_worst_group_speaks_for_a_node_and_one_with_a_label_of_its_own_does_not() -> None:
    there, refused = (
        {"name": "acc", "wanted": "dra", "mode": "dra"},
        {"name": "nx", "wanted": "dra", "phase": "Refused"},
    )
    both = bridge("a", there, {**refused, "message": "no class"})
    assert towards("dra", "", ())(both).says == "group nx refuses dra: no class"
    assert towards("dra", "", ("nx",))(both).there
    assert towards("dra", "acc", ())(both).there
    assert towards("dra", "gpu", ())(both).says == "it has no group gpu; it has acc, nx"


def test_nobody_is_there_whose_daemon_is_not_ready_or_silent() -> None:
    for judge in (ready, towards("dra", "", ())):
        assert judge(None).standing is Standing.WRONG
        assert judge(bridge(ready="False")).says == "not Ready: Rivals: another one serves"
    silent = state({"metadata": {"name": "a"}})
    assert ready(silent).says == "not Ready: its daemon has not said that it is ready"


# -- the order


def test_an_undo_goes_the_other_way_round() -> None:
    given = [node("a"), node("b", {marks.MODE: "device-plugin"}), node("c")]
    states = {name: bridge(name) for name in "abc"}
    legs = forth(given, states, "dra", "", Ask(), NOW)
    assert [leg.was for leg in legs] == ["dual", "device-plugin", "dual"]
    there = [after(one, marks.patch(one, "", leg.wanted)) for one, leg in zip(given, legs, strict=True)]
    returns = back([*there, node("never")], states, "")
    assert [(leg.node, leg.wanted.mode, leg.mode) for leg in returns] == [
        ("c", None, "dual"),
        ("b", "device-plugin", "device-plugin"),
        ("a", None, "dual"),
    ]
    report = Report.of(legs)
    report.rows["a"].result = Result.SWITCHED
    assert (report.count(Result.SWITCHED), report.count(Result.UNTOUCHED)) == (1, 2)
