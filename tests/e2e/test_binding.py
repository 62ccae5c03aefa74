"""Two-phase binding on a real node: a DRA pod is bound only after its device is reserved, and never to a lost one.

The lost race is made: the daemon is kept from changing its slices, so the scheduler goes on choosing a device that a
pod of the device plugin API has (H2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tests.e2e import journal
from tests.e2e.conftest import RBAC
from tests.e2e.objects import Container, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, POD_LIMIT_S, Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

Since = Callable[[tuple[int, int], str], None]
RIGHTS_LIMIT_S = 10.0
"""The API server's authorizer hears of a changed role by a watch of its own."""


@pytest.mark.ci
def test_q3_a_pod_is_bound_only_after_its_device_is_reserved(stage: Stage, since: Since) -> None:
    since((1, 36), "binding conditions are not on by default")
    group = offered(stage, devices=2)
    began = time.monotonic()
    wants(stage, group, "tomorrow")
    stage.running("tomorrow")
    took = time.monotonic() - began
    (said,) = conditions(stage, "tomorrow", group)
    assert said["type"] == f"{group.driver}/reserved" and said["status"] == "True"
    hand_outs = [
        r["message"] for r in journal.records(stage.daemon.log()) if r["logger"] == "bridge.hand-out"
    ]
    assert hand_outs[:3] == ["reserved", "binding condition", "handed out"]
    assert bound_at(stage, "tomorrow") >= said["lastTransitionTime"]
    print(f"{stage.cluster.version}: created to running with two-phase binding in {took:.1f} s")


def test_h2_a_device_that_the_other_plane_has_is_never_bound_to(stage: Stage, since: Since) -> None:
    """The scheduler chooses it from old slices; the pod stays unbound, and gets the device that comes free."""
    since((1, 36), "binding conditions are not on by default")
    group = offered(stage, devices=2)
    wants(stage, group, "first")
    stage.running("first")
    assert stage.opened(["first"]) == {"first": group.path(0)}
    with slices_frozen(stage):
        taker = Container(stage.holding(group.pattern, excl=False), resources={group.resource: 1})
        stage.apply(pod("yesterday", taker))
        assert stage.opened(["yesterday"]) == {"yesterday": group.path(1)}
        wants(stage, group, "tomorrow")
        stage.wait_for(lambda: refused(stage, group.device(1)), NEWS_LIMIT_S, "the reservation to be refused")
        assert not conditions(stage, "tomorrow", group), (
            "nothing is said while the slices still show the device"
        )
        assert stage.published(group) == [group.device(0), group.device(1)]
    stage.wait_for(
        lambda: told(stage, "held-elsewhere"), POD_LIMIT_S, "the scheduler to be told that the device is lost"
    )
    assert stage.published(group) == [group.device(0)]
    assert not stage.pod("tomorrow")["spec"].get("nodeName")
    stage.delete("first")
    stage.running("tomorrow")
    assert stage.opened(["tomorrow"]) == {"tomorrow": group.path(0)}
    assert stage.containers("yesterday")
    assert not [e for e in stage.events("tomorrow") if "FailedPrepareDynamicResources" in e]


@pytest.mark.ci
@pytest.mark.oldest
def test_h25_on_a_cluster_without_binding_conditions_pods_are_bound_at_once(stage: Stage) -> None:
    if stage.cluster.release.major_minor >= (1, 36):
        pytest.skip(f"Kubernetes {stage.cluster.version} has binding conditions")
    group = offered(stage, devices=1, waiting=False)
    wants(stage, group, "tomorrow")
    stage.running("tomorrow")
    assert not conditions(stage, "tomorrow", group)
    why = [
        r["why"]
        for r in journal.records(stage.daemon.log())
        if r["message"].startswith("no two-phase binding")
    ]
    assert len(why) == 1 and "binding conditions" in why[0], why


def offered(stage: Stage, devices: int, waiting: bool = True) -> Group:
    """A group that is published, with binding conditions or without."""
    group = stage.group()
    for i in range(devices):
        stage.plug(group.path(i))
    stage.start(group.config(binding="auto"))
    stage.offered(group, devices)
    stage.wait_for(
        lambda: all(("bindingConditions" in d) is waiting for s in stage.slices(group) for d in shown(s)),
        NEWS_LIMIT_S,
        "the devices to wait for the daemon" if waiting else "the devices to wait for nobody",
    )
    return group


def shown(one: dict[str, Any]) -> list[dict[str, Any]]:
    """The devices of a slice, in whichever version."""
    return [device.get("basic") or device for device in one["spec"].get("devices") or ()]


def wants(stage: Stage, group: Group, name: str) -> None:
    """A pod with a claim of its own name."""
    stage.apply(stage.dra.claim(name, Request("device", group.name)))
    holds = Container(stage.holding(group.pattern, excl=False), claims=("device",))
    stage.apply(pod(name, holds, claims=[PodClaim("device", claim=name)]))


def conditions(stage: Stage, claim: str, group: Group) -> list[dict[str, Any]]:
    """What the daemon has said of a claim's devices."""
    status = stage.cluster.get("ResourceClaim", claim, stage.namespace).get("status") or {}
    entries = [entry for entry in status.get("devices") or () if entry["driver"] == group.driver]
    return [condition for entry in entries for condition in entry["conditions"]]


def refused(stage: Stage, device: str) -> bool:
    """Whether the daemon has refused to reserve a device."""
    lost = [r for r in journal.records(stage.daemon.log()) if r["message"] == "reservation lost"]
    return any(device in record["devices"] for record in lost)


def told(stage: Stage, outcome: str) -> bool:
    """Whether the daemon has set a condition with that outcome."""
    said = [r for r in journal.records(stage.daemon.log()) if r["message"] == "binding condition"]
    return any(record["outcome"] == outcome for record in said)


def bound_at(stage: Stage, name: str) -> str:
    """When a pod was bound."""
    found = stage.pod(name)["status"]["conditions"]
    return str(next(c["lastTransitionTime"] for c in found if c["type"] == "PodScheduled"))


@contextmanager
def slices_frozen(stage: Stage) -> Iterator[None]:
    """Keep the daemon from changing its slices."""
    stage.provoked.add("slices cannot be published now")
    account = "system:serviceaccount:device-bridge:device-bridge"

    def may() -> bool:
        asked = {"group": "resource.k8s.io", "resource": "resourceslices", "verb": "update"}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": account, "resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(stage.cluster.api.create(path, review)["status"]["allowed"])

    role = next(one for one in yaml.safe_load_all(RBAC.read_text()) if one["kind"] == "ClusterRole")
    whole = [dict(rule) for rule in role["rules"]]
    for rule in role["rules"]:
        if rule["resources"] == ["resourceslices"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "update"]
    stage.cluster.apply(role)
    try:
        stage.wait_for(lambda: not may(), RIGHTS_LIMIT_S, "the right to be gone")
        yield
    finally:
        stage.cluster.apply({**role, "rules": whole})
        stage.wait_for(may, RIGHTS_LIMIT_S, "the right to be back")
