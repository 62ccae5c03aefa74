"""The status of a NodeBridge: what it says, when its times change, and that the kind as shipped takes it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import Mode
from bridge.ledger.holds import Phase as HoldPhase
from bridge.ledger.holds import Plane
from bridge.planes.counts import Counts
from bridge.planes.modes import GroupMode, Phase, Reason
from bridge.planes.report import Cause, WasRefused
from bridge.planes.status import SAME_REFUSAL_S, Facts, GroupState, Json, Refusal, Silent, status_of
from tests.unit.rosters import group

CRD = Path(__file__).parents[2] / "kustomize" / "base" / "node-bridge-crd.yaml"
NOW = 1_800_000_000.0
LATER = NOW + 3600
THEN = "2027-01-15T08:00:00Z"
AFTERWARDS = "2027-01-15T09:00:00Z"


def counts(free: int = 3, dp: int = 4, dra: int = 1, *, dra_open: int | None = None) -> Counts:
    held = dict.fromkeys(HoldPhase, 0) | {HoldPhase.HELD: dp, HoldPhase.PREPARED: dra}
    shown = {Plane.DEVICE_PLUGIN: free, Plane.DRA: free if dra_open is None else dra_open}
    return Counts(held, free, 1, 2, shown)


def state(name: str = "acc", counted: Counts | None = None, **mode: Any) -> GroupState:
    values: dict[str, Any] = {
        "wanted": Mode.DUAL,
        "mode": Mode.DUAL,
        "phase": Phase.SETTLED,
        "reason": Reason.SETTLED,
        "message": "",
        "since": 0.0,
    }
    return GroupState(replace(group(), name=name), GroupMode(name, **(values | mode)), counted or counts())


WAITING: dict[str, Any] = {
    "wanted": Mode.DRA,
    "phase": Phase.WAITING,
    "reason": Reason.ALLOCATABLE,
    "message": "the Node still shows 4 of device-bridge.io/acc as allocatable",
    "since": NOW,
}


def facts(*groups: GroupState, **more: Any) -> Facts:
    return Facts("0.1.0", groups or (state(),), **more)


def condition(status: Json, kind: str) -> Json:
    (found,) = (one for one in status["conditions"] if one["type"] == kind)
    return dict(found)


def test_a_settled_node() -> None:
    status = status_of(facts(), {}, NOW)
    assert {key: status[key] for key in ("wanted", "mode", "phase", "free", "held")} == {
        "wanted": "dual",
        "mode": "dual",
        "phase": "Settled",
        "free": {"devicePlugin": 3, "dra": 3},
        "held": {"devicePlugin": 4, "dra": 1},
    }
    assert [(one["type"], one["status"]) for one in status["conditions"]] == [
        ("Ready", "True"),
        ("Switched", "True"),
        ("EvidenceComplete", "True"),
    ]
    assert status["groups"] == [
        {
            "name": "acc",
            "resourceName": "device-bridge.io/acc",
            "driverName": "acc.device-bridge.io",
            "deviceClassName": "acc.device-bridge.io",
            "wanted": "dual",
            "mode": "dual",
            "phase": "Settled",
            "reason": "AsWanted",
            "since": THEN,
            "devices": 11,
            "quarantined": 2,
            "unhealthy": 1,
            "free": {"devicePlugin": 3, "dra": 3},
            "held": {"devicePlugin": 4, "dra": 1},
        }
    ]
    assert "lastRefusal" not in status


def test_groups_that_differ_are_mixed_and_the_worst_phase_counts() -> None:
    status = status_of(
        facts(state(counted=counts(dra_open=0)), state("nx", **WAITING), state("other", wanted=Mode.DRA)),
        {},
        NOW,
    )
    assert (status["wanted"], status["mode"], status["phase"]) == ("mixed", "dual", "Waiting")
    assert status["free"] == {"devicePlugin": 9, "dra": 6}
    assert status["held"] == {"devicePlugin": 12, "dra": 3}


def test_a_switch_that_waits_says_why() -> None:
    said = condition(status_of(facts(state(**WAITING), state("nx")), {}, NOW), "Switched")
    assert said == {
        "type": "Switched",
        "status": "False",
        "reason": "WaitingForAllocatable",
        "message": "Group acc, dual to dra: the Node still shows 4 of device-bridge.io/acc as allocatable",
        "lastTransitionTime": THEN,
    }


@pytest.mark.parametrize("phase", Phase)
def test_a_switch_without_words_of_its_own_has_some(phase: Phase) -> None:
    said = condition(status_of(facts(state(wanted=Mode.DRA, phase=phase)), {}, NOW), "Switched")
    assert said["status"] == "False"
    assert re.fullmatch(r"Group acc, dual to dra: .+\.", said["message"])


def test_a_refused_mode_is_worse_than_all_else() -> None:
    refused = state("nx", phase=Phase.REFUSED, reason=Reason.UNKNOWN_MODE, message="label says 'DRA'")
    status = status_of(facts(state(**WAITING), refused), {}, NOW)
    assert status["phase"] == "Refused"
    assert condition(status, "Switched")["reason"] == "UnknownMode"
    assert (
        condition(status, "Switched")["message"].splitlines()[1] == "Group nx, dual to dual: label says 'DRA'"
    )


def test_nothing_changes_without_a_reason() -> None:
    first = status_of(facts(wrong=["group acc: not registered yet"]), {}, NOW)
    assert status_of(facts(wrong=["group acc: not registered yet"]), first, LATER) == first


def test_a_condition_changes_its_time_with_its_status_and_not_with_its_words() -> None:
    first = status_of(facts(wrong=["group acc: not registered yet"]), {}, NOW)
    assert condition(first, "Ready")["reason"] == "NotServing"
    other = status_of(facts(wrong=["group acc: socket in use"]), first, LATER)
    assert condition(other, "Ready")["lastTransitionTime"] == THEN
    assert "group acc: socket in use. `bridge doctor`" in condition(other, "Ready")["message"]
    well = status_of(facts(), other, LATER)
    assert condition(well, "Ready")["lastTransitionTime"] == AFTERWARDS
    assert condition(well, "Switched")["lastTransitionTime"] == THEN


def test_a_group_keeps_its_time_until_its_mode_or_phase_changes() -> None:
    first = status_of(facts(), {}, NOW)
    same = status_of(facts(state(counted=counts(free=0))), first, LATER)
    assert same["groups"][0]["since"] == THEN
    switched = status_of(facts(state(wanted=Mode.DRA, phase=Phase.CLOSING)), first, LATER)
    assert switched["groups"][0]["since"] == AFTERWARDS
    told = status_of(facts(state(**WAITING)), first, LATER)
    assert told["groups"][0]["since"] == THEN, "a switch knows its own"


def test_sources_that_do_not_answer_are_named_with_what_it_costs() -> None:
    silent = [Silent("runtime", "no socket", "holds end 10 minutes later"), Silent("pods", "403", "no end")]
    said = condition(status_of(facts(silent=silent), {}, NOW), "EvidenceComplete")
    assert (said["status"], said["reason"]) == ("False", "SourceSilent")
    assert said["message"].startswith(
        "runtime does not answer (no socket): holds end 10 minutes later; pods does not answer (403): no end. `bridge"
    )


def refused(why: str = "acc0 is held") -> WasRefused:
    return WasRefused(Plane.DRA, "acc", ("acc0",), "claim default/c", why, Cause.HELD)


def test_a_refusal_is_shown_and_kept_by_the_next_process() -> None:
    first = status_of(facts(refusal=Refusal.of(refused(), NOW)), {}, NOW)
    assert first["lastRefusal"] == {
        "time": THEN,
        "plane": "dra",
        "reason": "held",
        "message": "acc0 is held",
    }
    assert status_of(facts(), first, LATER) == first


def test_a_refusal_that_is_repeated_is_no_news_for_a_while() -> None:
    first = Refusal.of(refused(), NOW)
    assert not first.repeats(None)
    assert Refusal.of(refused(), NOW + 60).repeats(first)
    assert not Refusal.of(refused("acc0 is quarantined"), NOW + 60).repeats(first)
    assert not Refusal.of(refused(), NOW + SAME_REFUSAL_S).repeats(first)


def wrong(value: object, schema: Json, path: str = "") -> Iterator[str]:
    """What a structural schema has against a value; as the API server says it of fields that are applied."""
    match schema["type"], value:
        case "object", dict():
            known = schema.get("properties", {})
            yield from (f"{path}.{name}: not declared" for name in value.keys() - known.keys())
            yield from (f"{path}.{name}: required" for name in set(schema.get("required", ())) - value.keys())
            for name in value.keys() & known.keys():
                yield from wrong(value[name], known[name], f"{path}.{name}")
        case "array", list():
            keys = schema["x-kubernetes-list-map-keys"]
            found = [tuple(item[key] for key in keys) for item in value]
            if len(found) != len(set(found)) or len(found) > schema["maxItems"]:
                yield f"{path}: not a map"
            for item in value:
                yield from wrong(item, schema["items"], f"{path}[]")
        case "string", str():
            yield from _text(value, schema, path)
        case "integer", int():
            if value < schema.get("minimum", value):
                yield f"{path}: too small"
        case wanted, _:
            yield f"{path}: {value!r} is no {wanted}"


def _text(value: str, schema: Json, path: str) -> Iterator[str]:
    if value not in schema.get("enum", [value]) or len(value) > schema.get("maxLength", len(value)):
        yield f"{path}: {value[:50]!r}"
    if not re.fullmatch(schema.get("pattern", ".*"), value, re.DOTALL):
        yield f"{path}: {value!r} does not match"
    if schema.get("format") == "date-time":
        datetime.datetime.fromisoformat(value)


def statuses() -> Sequence[Json]:
    modes = [
        state(f"g{at}-{phase.lower()}", wanted=Mode.DRA, phase=phase, reason=reason, message="x" * 5000)
        for at, reason in enumerate(Reason)
        for phase in Phase
    ]
    everything = facts(
        *modes,
        wrong=["w" * 40_000],
        silent=[Silent("runtime", "e", "w")],
        refusal=Refusal.of(refused("y" * 2000), NOW),
    )
    return [status_of(facts(), {}, NOW), status_of(everything, {}, NOW), status_of(facts(), {}, NOW)]


def test_the_kind_as_shipped_takes_all_of_it() -> None:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    for status in statuses():
        assert list(wrong(status, schema)) == []
    broken = statuses()[0] | {"mode": "Dual", "free": {"dra": -1}, "more": 1}
    assert len(list(wrong(broken, schema))) == 4


def test_its_columns_are_there() -> None:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    status = statuses()[1]
    for column in version["additionalPrinterColumns"]:
        found: Any = {"status": status, "metadata": {"creationTimestamp": THEN}}
        for step in re.findall(r"\.(\w+)(\[[^\]]*\])?", column["jsonPath"].replace("@.type", "@type")):
            found = found[step[0]]
            if step[1]:
                (found,) = (one for one in found if one["type"] in step[1])
        assert found not in (None, ""), column["name"]
