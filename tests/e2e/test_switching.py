"""Modes switched on a real node by its label while the daemon runs: pods go on, served on the plane that it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bridge.planes.modes import ACCEPT_STRANDED, LABEL
from tests.e2e.objects import Container, Manifest, pod
from tests.e2e.stage import Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SWITCH_LIMIT_S = 30.0
"""The kubelet here writes the Node's status each second; there are two such waits in the longest switch."""

DEVICES = 4


class Modes:
    """One group of a stage that goes on under its resource name."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.group = stage, stage.group()
        self._made = 0

    def start(self, mode: str, *, carried: bool = True) -> None:
        """Start the daemon; `carried`: the DeviceClass of its driver carries the group's resource name."""
        stage, group = self.stage, self.group
        stage.judged(group, DEVICES)
        stage.start(group.config(keepResourceName=True), mode=mode)
        stage.make_class(group, group.driver, extended_resource=group.resource if carried else "")
        stage.wait_for(lambda: stage.allocatable(group) == DEVICES, 15, "the node to count the devices")

    def want(self, mode: str | None) -> None:
        """Label the node for this group alone: other tests have the same node."""
        self._patch({"labels": {f"{LABEL}.{self.group.name}": mode}})

    def accept(self, groups: str | None) -> None:
        """Annotate it."""
        self._patch({"annotations": {ACCEPT_STRANDED: groups}})

    def _patch(self, metadata: dict[str, Any]) -> None:
        path = f"/api/v1/nodes/{self.stage.cluster.node_name}"
        self.stage.cluster.api.patch(path, {"metadata": metadata})

    def arrives(self, mode: str) -> None:
        """Wait until the daemon says that the group is in a mode."""
        series = f'device_bridge_mode_phase{{group="{self.group.name}",phase="Settled"}} 1.0'
        wanted = f'device_bridge_mode{{group="{self.group.name}",mode="{mode}"}} 1.0'
        said = self.stage.daemon.metrics
        self.stage.wait_for(
            lambda: {series, wanted} <= set(said().splitlines()), SWITCH_LIMIT_S, f"mode {mode}"
        )

    def served(self, name: str = "p") -> tuple[str, str]:
        """Make pods that ask by resource name until one runs, as a controller does: one that is bound between two
        counts of the node fails at the kubelet. Its name, and the plane that serves it."""
        while True:
            self._made += 1
            made = f"{name}-{self._made}"
            self.stage.apply(self._pod(made))
            phase = self.stage.wait_for(lambda made=made: self._began(made), 60, f"{made} to run or to fail")  # type: ignore[misc]
            if phase == "Running":
                self.stage.running(made)
                by_claim = self.stage.pod(made)["status"].get("extendedResourceClaimStatus")
                return made, "dra" if by_claim else "device-plugin"
            assert self.stage.pod(made)["status"]["reason"] == "UnexpectedAdmissionError"
            assert self._made < 100, f"{name} is never served"

    def _began(self, made: str) -> str:
        phase = str(self.stage.pod(made)["status"].get("phase", ""))
        return phase if phase in ("Running", "Failed") else ""

    def _pod(self, name: str) -> Manifest:
        holds = self.stage.holding(self.group.pattern)
        return pod(name, Container(holds, resources={self.group.resource: 1}))

    def refusal(self) -> str:
        """Wait until the node is told of one for this group."""
        found = self.stage.wait_for(self._refusals, SWITCH_LIMIT_S, "an event on the node")
        return str(found[0])

    def _refusals(self) -> list[str]:
        events = self.stage.cluster.list("Event", "default", fieldSelector="involvedObject.kind=Node")
        said = [e["message"] for e in events if e["reason"] == "ModeRefused"]
        return [text for text in said if text.startswith(f"group {self.group.name} ")]


@pytest.fixture
def modes(stage: Stage) -> Iterator[Modes]:
    made = Modes(stage)
    yield made
    made.want(None)
    made.accept(None)


@pytest.mark.ci
def test_h31_a_pod_that_asks_by_name_is_served_in_every_mode_on_the_plane_that_it_says(
    modes: Modes, since: Any
) -> None:
    since((1, 36), "DRA serves a resource name from here on")
    modes.start("device-plugin")
    stage = modes.stage
    first, plane = modes.served()
    assert plane == "device-plugin"
    before = stage.containers(first)
    served = [first]
    for mode, by in (("dual", "device-plugin"), ("dra", "dra"), ("device-plugin", "device-plugin")):
        modes.want(mode)
        modes.arrives(mode)
        name, plane = modes.served()
        assert plane == by, f"in mode {mode}"
        served.append(name)
    assert len(set(stage.opened(served).values())) == DEVICES, "the kernel has each device open once"
    assert stage.containers(first) == before


def test_a_switch_is_killed_turned_round_and_made_while_pods_hold_devices(modes: Modes, since: Any) -> None:
    since((1, 36), "DRA serves a resource name from here on")
    modes.start("dual")
    stage = modes.stage
    holder, plane = modes.served("holder")
    assert plane == "device-plugin"
    before = stage.containers(holder)
    for mode in ("dra", "device-plugin", "dra"):
        modes.want(mode)
        stage.wait_for(lambda mode=mode: f'"to": "{mode}"' in stage.daemon.log(), 20, "the turn")  # type: ignore[misc]
        stage.daemon.kill()
        stage.daemon.start()
    modes.arrives("dra")
    name, plane = modes.served("q")
    assert plane == "dra"
    assert stage.allocatable(modes.group) == 0
    assert stage.containers(holder) == before
    assert len(set(stage.opened([holder, name]).values())) == 2


@pytest.mark.oldest
@pytest.mark.ci
def test_where_no_class_can_carry_the_name_dra_is_refused_with_the_reason(modes: Modes) -> None:
    stage = modes.stage
    minor = stage.cluster.release.major_minor[1]
    # 1.34 drops the field without a word, before it there is none.
    modes.start("dual", carried=minor == 34)
    modes.want("dra")
    said = modes.refusal()
    why = {32: "Kubernetes 1.32 has no such field", 34: "Kubernetes 1.34 drops that field unless the gate"}
    assert why.get(minor, "carries no extendedResourceName") in said
    assert f"pods that ask for {modes.group.resource} would stay pending on this node" in said
    assert stage.allocatable(modes.group) == DEVICES
    _, plane = modes.served()
    assert plane == "device-plugin"
    modes.accept(modes.group.name)
    modes.arrives("dra")
    stage.wait_for(lambda: stage.allocatable(modes.group) == 0, 15, "nothing to be allocatable")


@pytest.mark.oldest
def test_with_names_of_their_own_the_planes_are_switched_on_every_release(stage: Stage) -> None:
    group = stage.group()
    stage.judged(group, DEVICES)
    stage.start(group.config(), mode="dual")
    stage.offered(group, DEVICES)
    holder = pod("holder", Container(stage.holding(group.pattern), resources={group.resource: 1}))
    stage.apply(holder)
    stage.running("holder")
    before = stage.containers("holder")
    modes = Modes(stage)
    modes.group = Group(group.name)
    try:
        for mode, allocatable, published in (
            ("dra", 1, DEVICES - 1),
            ("device-plugin", DEVICES, 0),
            ("dual", DEVICES, DEVICES - 1),
        ):
            modes.want(mode)
            modes.arrives(mode)
            stage.wait_for(
                lambda count=allocatable: stage.allocatable(group) == count, 15, f"{allocatable} allocatable"
            )  # type: ignore[misc]
            assert len(stage.published(group)) == published, f"in mode {mode}"
    finally:
        modes.want(None)
    assert stage.containers("holder") == before
