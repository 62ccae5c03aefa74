"""Devices come and go under a running daemon: both planes follow, and who holds one keeps it (H38)."""

from __future__ import annotations

import time

import pytest

from tests.e2e.objects import Container, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(300)]


def test_a_device_that_is_plugged_in_is_offered_on_both_planes_until_it_is_unplugged(stage: Stage) -> None:
    group = stage.group()
    stage.plug(group.path(0))
    stage.start(group.config())
    stage.offered(group, 1)

    begun = time.monotonic()
    stage.plug(group.path(1))
    stage.wait_for(lambda: group.device(1) in stage.published(group), NEWS_LIMIT_S, "the slice to have it")
    published = time.monotonic() - begun
    stage.offered(group, 2)
    assert published < 2, f"published after {published:.2f} s"

    stage.apply(
        stage.dra.template("both", Request("devices", group.name, count=2)),
        pod(
            "both",
            Container("ls /dev/crypto", claims=("devices",)),
            claims=[PodClaim("devices", template="both")],
        ),
    )
    assert stage.finished("both").split() == [group.path(i).rpartition("/")[2] for i in (0, 1)]
    stage.delete("both")

    stage.cluster.rm(group.path(0))
    stage.offered(group, 1)
    assert stage.published(group) == [group.device(1)]
    stage.wait_for(lambda: stage.capacity(group) == 1, NEWS_LIMIT_S, "the kubelet to forget it")


@pytest.mark.oldest
def test_h38_a_held_device_that_is_unplugged_stays_with_its_pod_and_goes_after_it(stage: Stage) -> None:
    group = stage.group()
    minors = [stage.plug(group.path(i)) for i in range(3)]
    daemon = stage.start(group.config())
    stage.offered(group, 3)
    hold = stage.holding(group.pattern, excl=False)
    stage.apply(
        stage.dra.template("one", Request("device", group.name)),
        pod("dp", Container(hold, resources={group.resource: 1})),
        pod("dra", Container(hold, claims=("device",)), claims=[PodClaim("device", template="one")]),
    )
    has = stage.opened(["dp", "dra"])
    assert len(set(has.values())) == 2
    before = stage.containers("dp", "dra")
    free = ({group.path(i) for i in range(3)} - set(has.values())).pop()
    stage.wait_for(lambda: stage.allocatable(group) == 2, NEWS_LIMIT_S, "DRA's device to leave the plugin's")

    for path in has.values():
        stage.cluster.rm(path)

    # The kubelet keeps hearing of both, as unhealthy; nobody is offered either.
    stage.wait_for(lambda: stage.allocatable(group) == 1, NEWS_LIMIT_S, "the free one to be left")
    name = {group.path(i): group.device(i) for i in range(3)}
    stage.wait_for(lambda: stage.published(group) == [name[free]], NEWS_LIMIT_S, "the slice to follow")
    assert stage.capacity(group) == 3
    assert stage.containers("dp", "dra") == before
    assert held(daemon.devices()) == {name[path] for path in has.values()}

    stage.delete("dp", "dra")
    stage.wait_for(lambda: held(daemon.devices()) == set(), 60, "the holds to end")
    stage.wait_for(lambda: stage.capacity(group) == 1, NEWS_LIMIT_S, "the kubelet to forget them")

    for index in range(3):
        if group.path(index) != free:
            stage.plug(group.path(index), minors[index])
    stage.offered(group, 3)


def held(rows: list[dict[str, object]]) -> set[str]:
    """The names of the devices that somebody holds, as `bridge devices` tells."""
    return {str(row["device"]) for row in rows if row.get("plane")}
