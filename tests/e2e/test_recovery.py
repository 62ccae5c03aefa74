"""The kubelet and the daemon end and come back while pods of both planes run: nobody loses or doubles a device."""

from __future__ import annotations

import pytest

from tests.e2e import journal
from tests.e2e.objects import Container, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(300)]

DEVICES = 6


@pytest.mark.parametrize("route", [pytest.param("watcher", marks=pytest.mark.oldest), "legacy"])
def test_h13_a_kubelet_restart_costs_no_pod_and_both_planes_come_back(stage: Stage, route: str) -> None:
    group = held_on_both_planes(stage, route)
    before = stage.containers("dp-old", "dra-old")
    published = {s["metadata"]["uid"] for s in stage.slices(group)}
    offered = stage.published(group)

    stage.cluster.restart_kubelet()

    def again() -> bool:
        new = {s["metadata"]["uid"] for s in stage.slices(group)}
        return bool(new) and not new & published

    stage.wait_for(again, NEWS_LIMIT_S, "slices again, after the kubelet has removed all of its node")
    assert stage.published(group) == offered
    stage.wait_for(lambda: stage.allocatable(group) == DEVICES - 1, 30, "the plugin to be registered again")
    new_pods_on_both_planes(stage, group)
    assert stage.containers("dp-old", "dra-old") == before
    judge(stage)


@pytest.mark.parametrize("route", ["watcher", pytest.param("legacy", marks=pytest.mark.oldest)])
def test_h15_a_daemon_that_is_killed_knows_its_holds_when_it_comes_back(stage: Stage, route: str) -> None:
    group = held_on_both_planes(stage, route)
    before = stage.containers("dp-old", "dra-old")
    daemon = stage.daemon
    holds = held(daemon.devices())
    assert len(holds) == 2

    daemon.kill()
    stage.wait_for(lambda: stage.allocatable(group) == 0, NEWS_LIMIT_S, "the kubelet to miss the plugin")
    assert held(daemon.devices()) == holds
    daemon.start()

    stage.wait_for(lambda: stage.allocatable(group) == DEVICES - 1, NEWS_LIMIT_S, "the plugin to be back")
    assert held(daemon.devices()) == holds
    new_pods_on_both_planes(stage, group)
    assert stage.containers("dp-old", "dra-old") == before
    judge(stage)


def held_on_both_planes(stage: Stage, route: str) -> Group:
    """Six judged devices, one of them held by a pod of each plane."""
    group = stage.group()
    stage.judged(group, DEVICES)
    stage.start(group.config(registration=route))
    stage.offered(group, DEVICES)
    stage.apply(stage.dra.template("one", Request("device", group.name)))
    hold_on_both_planes(stage, group, "old")
    stage.wait_for(
        lambda: stage.allocatable(group) == DEVICES - 1, NEWS_LIMIT_S, "DRA's device to leave the other plane"
    )
    stage.wait_for(
        lambda: len(stage.published(group)) == DEVICES - 1,
        NEWS_LIMIT_S,
        "the slice to be without the other's",
    )
    return group


def hold_on_both_planes(stage: Stage, group: Group, name: str) -> dict[str, str]:
    """Run a pod of each plane until it has its device open; return which."""
    hold = stage.holding(group.pattern)
    stage.apply(
        pod(f"dp-{name}", Container(hold, resources={group.resource: 1})),
        pod(
            f"dra-{name}",
            Container(hold, claims=("device",)),
            claims=[PodClaim("device", template="one")],
        ),
    )
    return stage.opened([f"dp-{name}", f"dra-{name}"])


def new_pods_on_both_planes(stage: Stage, group: Group) -> None:
    """As many new pods as there are devices left for one more round, each with one of its own."""
    hold_on_both_planes(stage, group, "new")
    stage.running("dp-old", "dra-old", "dp-new", "dra-new")


def judge(stage: Stage) -> None:
    """The kernel and the journal have seen no device with two holders."""
    notes = stage.notes()
    assert journal.refused_by_kernel(notes) == []
    assert journal.double_uses(journal.uses(notes)) == []


def held(rows: list[dict[str, object]]) -> set[tuple[object, object]]:
    """Who holds which device: (device, plane)."""
    return {(row["device"], row["plane"]) for row in rows if row.get("plane")}
