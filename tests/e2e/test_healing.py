"""A claim that lost its device to the device plugin API: its pod is moved elsewhere, or told who has the device.

The lost race is made, not waited for: while the scheduler stands still, a claim is allocated by hand what a pod of the
device plugin API has just been given. That is what a scheduler with an older view does (H2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster import ApiError
from tests.e2e.objects import Container, Manifest, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXTENDED = "resource.kubernetes.io/extended-resource-claim"
MOVED_LIMIT_S = 20.0
"""The taint takes well under a second; the next pod has its claim, its sandbox and a busy machine before it."""

Since = Callable[[tuple[int, int], str], None]


@pytest.mark.ci
def test_h43_who_lost_a_race_is_moved_and_its_next_pod_runs_elsewhere(stage: Stage, since: Since) -> None:
    since((1, 36), "device taints are not on by default")
    group, taken = taken_by_a_pod(stage, devices=2)
    stage.apply(stage.dra.template("one", Request("device", group.name)))
    wants = Container(stage.holding(group.pattern), claims=("device",))
    with scheduler_still(stage):
        stage.apply(replicas("loser", wants, PodClaim("device", template="one")))
        first = stage.wait_for(lambda: pods_of(stage), NEWS_LIMIT_S, "the controller's pod")[0]
        claim = stage.wait_for(lambda: claim_of(stage, first), NEWS_LIMIT_S, "the pod's claim")
        began = time.monotonic()
        allocate_late(stage, group, first, claim, taken)
    second = stage.wait_for(lambda: successor(stage, first), MOVED_LIMIT_S, "the controller's next pod")
    stage.running(second)
    took = time.monotonic() - began
    opened = stage.opened(["winner", second])
    assert {opened["winner"], opened[second]} == {group.path(0), group.path(1)}
    told = [event for event in stage.events(first) if event.startswith("DeviceConflictHealing")]
    assert told and "through the device plugin API" in told[0]
    stage.wait_for(lambda: not tainted(stage, group), NEWS_LIMIT_S, "the taint to be taken back")
    assert taken not in stage.published(group)
    stage.cluster.delete("ReplicaSet", "loser", stage.namespace)
    print(f"{stage.cluster.version}: lost, moved and running elsewhere in {took:.1f} s")


@pytest.mark.parametrize("beside", ["an extended resource's claim", "admin access"])
def test_h43_who_may_not_be_evicted_is_told(stage: Stage, since: Since, beside: str) -> None:
    """The cluster would evict them: a taint evicts every pod whose claim names the device. The daemon must not ask."""
    since((1, 36), "device taints are not on by default")
    group, taken = taken_by_a_pod(stage, devices=1)
    if beside == "admin access":
        watch(stage, group)
    marks = {EXTENDED: "true"} if beside == "an extended resource's claim" else {}
    lost(stage, group, taken, annotations=marks)
    text = conflict_told(stage)
    assert ("extended resource" if marks else "has the device too") in text
    assert f"pod {stage.namespace}/winner" in text, "it names who has the device"
    for name in ("winner", "watcher") if beside == "admin access" else ("winner",):
        assert stage.containers(name)
    assert alive(stage, "loser") and not tainted(stage, group) and not evictions(stage)


def test_h43_a_sharer_is_never_evicted(stage: Stage, since: Since) -> None:
    """Two credits of one accelerator: a claim has one, a pod of the device plugin API the other."""
    since((1, 36), "device taints are not on by default")
    group = stage.group()
    stage.plug(group.path(0))
    stage.start(group.config(options={"replicas": 2}))
    stage.wait_for(lambda: stage.allocatable(group) == 2, NEWS_LIMIT_S, "2 allocatable")
    stage.wait_for(lambda: stage.published(group), NEWS_LIMIT_S, "the device to be published")
    stage.apply(stage.dra.template("one", Request("device", group.name)))
    hold = stage.holding(group.pattern, excl=False)
    sharer = pod("sharer", Container(hold, claims=("device",)), claims=[PodClaim("device", template="one")])
    stage.apply(sharer)
    stage.opened(["sharer"])
    stage.apply(pod("winner", Container(hold, resources={group.resource: 1})))
    stage.opened(["winner"])
    share = {"shareID": "6d1b2b0e-6e9b-4f4c-9d53-0a9c6d0c7e11", "consumedCapacity": {"replicas": "1"}}
    lost(stage, group, group.device(0), **share)
    assert "a taint would evict that claim's pods" in conflict_told(stage)
    assert stage.containers("sharer", "winner") and alive(stage, "loser") and not evictions(stage)


@pytest.mark.ci
@pytest.mark.oldest
def test_h43_on_a_cluster_without_taints_the_pod_is_told_who_has_its_device(stage: Stage) -> None:
    if stage.cluster.release.major_minor >= (1, 36):
        pytest.skip(f"Kubernetes {stage.cluster.version} has device taints")
    group, taken = taken_by_a_pod(stage, devices=1)
    lost(stage, group, taken)
    text = conflict_told(stage)
    assert "this cluster has no device taints" in text
    assert f"delete pod {stage.namespace}/winner" in text
    assert any(e.startswith("DeviceRefused") for e in stage.events("loser"))
    assert any(e.startswith("DeviceRefused") for e in stage.events("late"))
    assert stage.containers("winner") and alive(stage, "loser")
    stage.wait_for(lambda: stage.published(group) == [], NEWS_LIMIT_S, "the device to stay withdrawn")


def taken_by_a_pod(stage: Stage, devices: int) -> tuple[Group, str]:
    """Devices of which the device plugin API has given one to the pod `winner`; which."""
    group = stage.group()
    stage.judged(group, devices)
    stage.start(group.config())
    stage.offered(group, devices)
    stage.apply(pod("winner", Container(stage.holding(group.pattern), resources={group.resource: 1})))
    stage.opened(["winner"])
    stage.wait_for(
        lambda: len(stage.published(group)) == devices - 1, NEWS_LIMIT_S, "its device to be withdrawn"
    )
    (taken,) = {group.device(i) for i in range(devices)} - set(stage.published(group))
    return group, taken


def watch(stage: Stage, group: Group) -> None:
    """Run a pod with admin access to the device that another pod has."""
    label = {"resource.kubernetes.io/admin-access": "true"}
    stage.cluster.api.patch(f"/api/v1/namespaces/{stage.namespace}", {"metadata": {"labels": label}})
    stage.apply(stage.dra.claim("watch", Request("device", group.name, admin=True)))
    looks = Container("exec sleep 1000", claims=("device",))
    watcher = pod("watcher", looks, claims=[PodClaim("device", claim="watch")])
    with scheduler_still(stage):
        stage.apply(watcher)
        allocate_late(stage, group, "watcher", "watch", group.device(0), adminAccess=True)
    stage.running("watcher")


def lost(
    stage: Stage, group: Group, device: str, annotations: dict[str, str] | None = None, **result: Any
) -> None:
    """Make a pod `loser` with a claim `late` that is allocated a device which is not to be had."""
    claim: Manifest = stage.dra.claim("late", Request("device", group.name))
    claim["metadata"]["annotations"] = annotations or {}
    stage.apply(claim)
    hold = Container(stage.holding(group.pattern, excl=False), claims=("device",))
    loser = pod("loser", hold, claims=[PodClaim("device", claim="late")])
    with scheduler_still(stage):
        stage.apply(loser)
        allocate_late(stage, group, "loser", "late", device, **result)


@contextmanager
def scheduler_still(stage: Stage) -> Iterator[None]:
    """Make the scheduler stand still, and let it go on."""
    scheduler = stage.cluster.component("kube-scheduler")
    scheduler.freeze()
    try:
        yield
    finally:
        scheduler.thaw()


def allocate_late(stage: Stage, group: Group, name: str, claim: str, device: str, **result: Any) -> None:
    """Allocate a claim by hand and bind its pod, as a scheduler with an older view would."""
    api = stage.cluster.api
    path = f"/apis/resource.k8s.io/{stage.dra.version}/namespaces/{stage.namespace}/resourceclaims/{claim}"
    body = api.get(path)
    body["metadata"]["finalizers"] = ["resource.kubernetes.io/delete-protection"]
    body = api.replace(path, body)
    node = stage.cluster.node_name
    chosen = {"request": "device", "driver": group.driver, "pool": node, "device": device, **result}
    meta = stage.pod(name)["metadata"]
    body["status"] = {
        "allocation": {"devices": {"results": [chosen]}},
        "reservedFor": [{"resource": "pods", "name": meta["name"], "uid": meta["uid"]}],
    }
    api.replace(f"{path}/status", body)
    pod_path = f"/api/v1/namespaces/{stage.namespace}/pods/{name}/binding"
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    api.create(pod_path, binding)


def claim_of(stage: Stage, name: str) -> str:
    made = stage.pod(name)["status"].get("resourceClaimStatuses") or ()
    return next((str(one["resourceClaimName"]) for one in made if one.get("resourceClaimName")), "")


def replicas(name: str, container: Container, claim: PodClaim) -> Manifest:
    """A controller that makes a new pod at once, as a Job does not."""
    template = pod(name, container, claims=[claim], labels={"app": name})
    template["spec"]["restartPolicy"] = "Always"
    labels = template["metadata"]["labels"]
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
    }
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name}, "spec": spec}


def pods_of(stage: Stage) -> list[str]:
    """Names of the controller's pods that are not being deleted, the oldest first."""
    pods = stage.cluster.list("Pod", stage.namespace, labelSelector="app=loser")
    alive = [p["metadata"] for p in pods if "deletionTimestamp" not in p["metadata"]]
    return [str(meta["name"]) for meta in sorted(alive, key=lambda meta: str(meta["creationTimestamp"]))]


def successor(stage: Stage, first: str) -> str:
    """The pod that the controller has made in place of the first."""
    return next((name for name in pods_of(stage) if name != first), "")


def alive(stage: Stage, name: str) -> bool:
    """Whether a pod is there, and nobody has deleted it."""
    try:
        return "deletionTimestamp" not in stage.pod(name)["metadata"]
    except ApiError:
        return False


def tainted(stage: Stage, group: Group) -> list[str]:
    """Devices that the group's slices show with a taint."""
    devices = (d for s in stage.slices(group) for d in s["spec"].get("devices") or ())
    return [str(d["name"]) for d in devices if d.get("taints")]


def evictions(stage: Stage) -> list[str]:
    """What the cluster's taint eviction says of this test's pods."""
    found = stage.cluster.list("Event", stage.namespace)
    return [str(e["message"]) for e in found if e["reason"] == "DeviceTaintManagerEviction"]


def conflict_told(stage: Stage) -> str:
    """Wait until the loser is told that it stays where it is."""

    def look() -> str:
        return next((e for e in stage.events("loser") if e.startswith("DeviceConflictStands")), "")

    return str(stage.wait_for(look, NEWS_LIMIT_S, "the event on the loser"))
