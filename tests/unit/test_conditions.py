"""Binding conditions: what is said of a claim's devices, once, and of that allocation only."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.planes.conditions import Names, Verdict, answer, answered, awaited
from dra_v1.claims import AllocatedDevice

DRIVER = "acc.device-bridge.io"
NAMES = Names.of(DRIVER)
FREE, LOST = Verdict(), Verdict("acc0 is held by pod default/p")
NOW = "2026-01-01T00:00:00Z"


def result(
    device: str, *, admin: bool = False, share: str | None = None, waits: bool = True
) -> AllocatedDevice:
    conditions = (NAMES.reserved,) if waits else ()
    return AllocatedDevice("r", "node", device, admin, share, binding_conditions=conditions)


def said(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"devices": list(entries)}


def types(status: dict[str, Any]) -> dict[str, list[str]]:
    return {e["device"]: [c["type"] for c in e["conditions"]] for e in status["devices"]}


def test_only_devices_that_carry_our_condition_are_spoken_of() -> None:
    other = AllocatedDevice("r", "node", "acc2", binding_conditions=("example.com/ready",))
    waiting = result("acc0")
    assert awaited([waiting, result("acc1", waits=False), other], NAMES) == (waiting,)


@pytest.mark.parametrize("verdict", [FREE, LOST])
def test_what_was_said_needs_not_be_said_again(verdict: Verdict) -> None:
    results = [result("acc0"), result("acc1", share="s1"), result("acc2", admin=True)]
    assert not answered({}, results, DRIVER, NAMES, verdict)
    status = answer(results, DRIVER, NAMES, verdict, NOW)
    assert answered(status, results, DRIVER, NAMES, verdict)
    assert not answered(status, results, DRIVER, NAMES, FREE if verdict is LOST else LOST)


def test_h26_admin_access_is_never_refused() -> None:
    status = answer([result("acc0"), result("acc1", admin=True)], DRIVER, NAMES, LOST, NOW)
    assert types(status) == {"acc0": [NAMES.elsewhere], "acc1": [NAMES.reserved]}
    assert status["devices"][0]["conditions"][0]["message"] == LOST.refusal


def test_shares_of_one_device_are_told_apart() -> None:
    first, second = result("acc0", share="s1"), result("acc0", share="s2")
    status = answer([first], DRIVER, NAMES, FREE, NOW)
    assert answered(status, [first], DRIVER, NAMES, FREE)
    assert not answered(status, [first, second], DRIVER, NAMES, FREE)


def test_what_others_say_and_what_is_not_true_does_not_count() -> None:
    ours = {"driver": DRIVER, "pool": "node", "device": "acc0"}
    false = said({**ours, "conditions": [{"type": NAMES.reserved, "status": "False"}]})
    foreign = said(
        {**ours, "driver": "x.example.com", "conditions": [{"type": NAMES.reserved, "status": "True"}]}
    )
    beside = said({**ours, "conditions": [{"type": n, "status": "True"} for n in (NAMES.reserved, "Ready")]})
    assert not answered(false, [result("acc0")], DRIVER, NAMES, FREE)
    assert not answered(foreign, [result("acc0")], DRIVER, NAMES, FREE)
    assert answered(beside, [result("acc0")], DRIVER, NAMES, FREE)


def test_nothing_is_left_to_say_where_nobody_waits() -> None:
    assert answered({}, [], DRIVER, NAMES, LOST)
