"""The table of races: who won, what the loser was told, where it ran, and when it was no race."""

from __future__ import annotations

import pytest

from tests.campaign.journal import DEVICE_PLUGIN, DRA, Claim, Close, Device, Line, Open, Pod
from tests.campaign.races_report import Race, Told, report
from tests.e2e.stage import Group

GROUP, SPARE = Group("race0n1"), Group("spare1")


def race(number: int = 0, freed: float | None = None) -> Race:
    pods = {DEVICE_PLUGIN: [f"dp{number}"], DRA: [f"dra{number}"]}
    return Race(number, GROUP, SPARE, 0.5, begun=10.0, pods=pods, freed=freed)


def devices() -> list[Line]:
    return [
        Device(0, group.path(0), group.resource, group.driver, "node0", group.device(0))
        for group in (GROUP, SPARE)
    ]


def scheduled(number: int = 0) -> list[Line]:
    """Both pods bound, the claim allocated the device."""
    return [
        Pod(9, f"dp{number}", "n", f"dp{number}", node="node0", wants={GROUP.resource: 1}),
        Pod(9, f"dra{number}", "n", f"dra{number}", node="node0", claims=(f"c{number}",)),
        allocated(9, number, GROUP),
    ]


def allocated(t: float, number: int, group: Group) -> Claim:
    result = (group.driver, "node0", group.device(0))
    return Claim(t, f"c{number}", "n", f"c{number}", devices=(result,), users=(f"dra{number}",))


def opened(t: float, group: Group, pod: str) -> Open:
    return Open(t, group.path(0), f"{pod}/0", pod)


@pytest.mark.parametrize("won", [10.5, 15.5], ids=["won first", "ran elsewhere first"])
def test_a_claim_that_lost_and_ran_elsewhere_is_no_stuck_one(won: float) -> None:
    moved: list[Line] = [allocated(13, 0, SPARE), opened(15, SPARE, "dra0")]
    word = Told(11, "dra0", "DeviceReservationLost", "race0n1x0 is held by a pod")
    table = report("binding", [race()], [*devices(), *scheduled(), opened(won, GROUP, "dp0"), *moved], [word])
    assert "1 device-plugin, 0 dra" in table.text
    assert "told by {'DeviceReservationLost': 1}" in table.text
    assert "bound with a spare device after p50 3.00 s" in table.text
    assert "ran elsewhere after p50 5.00 s" in table.text
    assert table.wrong == ()


@pytest.mark.parametrize(("arm", "stuck"), [("binding", 1), ("taints", 1), ("neither", 0)])
def test_a_claim_that_had_to_wait_for_the_winner_is_stuck_where_the_cluster_can_help(
    arm: str, stuck: int
) -> None:
    lines = [*devices(), *scheduled(), opened(10.5, GROUP, "dp0")]
    # The winner's container is gone before the loser has the device.
    lines += [Pod(41, "dp0", "n", "dp0", node="node0", phase="Succeeded")]
    table = report(arm, [race(freed=40.0)], lines, [])
    assert "stuck: 1" in table.text  # it never ran
    after = [*lines, *closed("dp0", 41), opened(50, GROUP, "dra0")]
    assert f"stuck: {stuck}" in report(arm, [race(freed=40.0)], after, []).text


def closed(pod: str, t: float) -> list[Line]:
    return [Close(t, GROUP.path(0), f"{pod}/0")]


def test_two_who_have_the_device_at_once_are_wrong() -> None:
    lines = [*devices(), *scheduled(), opened(10.5, GROUP, "dp0"), opened(11, GROUP, "dra0")]
    assert any("double use" in text for text in report("neither", [race()], lines, []).wrong)


def test_where_one_plane_always_wins_it_was_no_race() -> None:
    lines = [
        *devices(),
        *scheduled(),
        opened(10.5, GROUP, "dp0"),
        *closed("dp0", 41),
        opened(50, GROUP, "dra0"),
    ]
    (wrong,) = report("neither", [race(freed=40.0)], lines, []).wrong
    assert wrong.startswith("it was no race")


def test_who_was_not_given_the_device_while_the_other_had_it_did_not_race() -> None:
    unbound = [Pod(9, "dp0", "n", "dp0", wants={GROUP.resource: 1})]
    lines = [*devices(), *scheduled()[1:], *unbound, opened(10.5, GROUP, "dra0")]
    assert "the cluster gave the device to both in 0" in report("binding", [race()], lines, []).text
