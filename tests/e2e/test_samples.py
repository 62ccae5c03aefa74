"""The samples on a real node: drivers of one library alone serve pods, and every manifest comes to run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import PROBE
from tests.e2e.daemon import REPOSITORY
from tests.e2e.objects import Container, Manifest, PodClaim, Request, pod
from tests.e2e.scenes import SAMPLES, SCENES, Scene, containers, objects, pod_spec
from tests.e2e.stage import NEWS_LIMIT_S, POD_LIMIT_S, Group, Stage
from tests.e2e.test_contention import NX_GZIP, sysfs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

LONGEST = 60
CREDITS = 20
CI = {"power-device-plugin"}
"""Scenes that every continuous integration run takes."""

CONFIGURATIONS = [
    path for path in sorted(SAMPLES.rglob("*.yaml")) if "kind: BridgeConfig" in path.read_text()
]


def scenes() -> Iterator[Any]:
    """All of them, some marked."""
    for scene in SCENES:
        yield pytest.param(scene, id=str(scene), marks=[pytest.mark.ci] if scene.folder in CI else [])


@pytest.mark.parametrize("scene", list(scenes()))
def test_every_file_of_a_folder_comes_to_run(
    stage: Stage, scene: Scene, tmp_path: Path, since: Callable[[tuple[int, int], str], None]
) -> None:
    since((1, 36), "amounts of credits are claimed, and classes carry names of resources")
    for path in scene.devices:
        stage.plug(path)
    config = (
        yaml.safe_load((SAMPLES / scene.config).read_text()) if scene.config else {"groups": scene.groups}
    )
    stage.start(*config["groups"], sys_root=sysfs(tmp_path / "sys", CREDITS))
    for one in () if scene.classes else config["groups"]:
        stage.make_class(Group(one["name"]), Group(one["name"]).driver)
    for path in scene.classes:
        for one in objects(path):
            apply = stage.take_class if one["kind"] == "DeviceClass" else stage.cluster.apply
            apply(one)
    for entry in scene.groups:
        group = Group(str(entry["name"]))
        stage.make_class(group, group.driver)
    planes: set[str] = set()
    for path in scene.workloads:
        planes |= tried(stage, path)
    assert planes == {"device-plugin", "dra"}


@pytest.mark.ci
@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: str(path.relative_to(SAMPLES)))
def test_a_daemon_runs_with_the_configuration(stage: Stage, path: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    stage.plug(NX_GZIP)
    daemon = stage.start(
        *config["groups"], mode=config.get("mode", "dual"), sys_root=sysfs(tmp_path / "sys", CREDITS)
    )
    assert daemon.running


def tried(stage: Stage, path: Path) -> set[str]:
    """Apply a file, wait until everything in it runs, and delete it; return the planes that gave devices to it."""
    made = [adapted(stage, one) for one in objects(path)]
    for one in made:
        stage.apply(one)
    for one in made:
        if one["kind"] in _RUNS:
            stage.wait_for(
                lambda one=one: runs(stage, one), POD_LIMIT_S, f"{one['kind']} of {path.name} to run"
            )
    planes: set[str] = stage.wait_for(lambda: held(stage), POD_LIMIT_S, f"{path.name} to hold devices")
    for one in made:
        stage.cluster.delete(one["kind"], one["metadata"]["name"], stage.namespace, wait=None)
    stage.delete_all("Pod")  # a Job that is deleted leaves its own
    stage.wait_for(lambda: stage.gone("ResourceClaim"), POD_LIMIT_S, f"claims of {path.name} to be gone")
    return planes


def held(stage: Stage) -> set[str]:
    """The planes on which this test's pods hold devices; who holds one by name is known a little later."""
    rows = stage.daemon.devices()
    return {str(row["plane"]) for row in rows if f"{stage.namespace}/" in str(row.get("holder"))}


def adapted(stage: Stage, one: Manifest) -> Manifest:
    """An object as it can be tried: an image that is there, which does nothing and ends at once, and now."""
    if one["kind"] == "CronJob":
        one = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": one["metadata"],
            **one["spec"]["jobTemplate"],
        }
    one["metadata"]["namespace"] = stage.namespace
    for container in containers(one):
        container["image"] = PROBE
        container.setdefault("command", ["sleep", "1" if is_init(one, container) else "3600"])
        container.pop("readinessProbe", None)  # of the program that is not there
    if (spec := pod_spec(one)) is not None:
        spec["terminationGracePeriodSeconds"] = 1
    return one


_RUNS: Mapping[str, Callable[[Manifest], bool]] = {
    "Pod": lambda one: one["status"]["phase"] == "Running",
    "Job": lambda one: one["status"].get("ready") == 1,
    "Deployment": lambda one: one["status"].get("availableReplicas") == one["spec"]["replicas"],
    "StatefulSet": lambda one: one["status"].get("availableReplicas") == one["spec"]["replicas"],
}


def runs(stage: Stage, one: Manifest) -> bool:
    """Whether all the pods of an object run."""
    found = stage.cluster.get(
        one["kind"], one["metadata"]["name"], stage.namespace, api_version=one["apiVersion"]
    )
    return "status" in found and _RUNS[one["kind"]](found)


def is_init(one: Manifest, container: Manifest) -> bool:
    """Whether the others wait for it to end."""
    inits = (pod_spec(one) or {}).get("initContainers", ())
    return container in inits and container.get("restartPolicy") != "Always"


@pytest.mark.ci
@pytest.mark.parametrize("name", ["deviceplugin_driver.py", "dra_driver.py"])
def test_a_sample_is_short(name: str) -> None:
    assert len((SAMPLES / name).read_text().splitlines()) < LONGEST


@pytest.mark.ci
def test_the_device_plugin_sample_serves_a_pod(stage: Stage) -> None:
    group = stage.group("sample")
    stage.plug(group.path(0))
    resource = f"example.com/{group.name}"
    with sample(stage, "deviceplugin_driver.py", ["--resource-name", resource, "--glob", group.pattern]):
        stage.wait_for(
            lambda: stage.cluster.get("Node", "node0")["status"]["allocatable"].get(resource) == "1",
            NEWS_LIMIT_S,
            "the device to be allocatable",
        )
        stage.apply(pod("user", Container(f"/probe try {group.path(0)} rw", resources={resource: 1})))
        assert stage.finished("user") == "ok\n"
        stage.delete("user")


@pytest.mark.ci
def test_the_dra_sample_serves_a_pod(stage: Stage, kubeconfig: Path) -> None:
    group = stage.group("sample")
    stage.plug(group.path(0))
    arguments = ["--driver-name", group.driver, "--glob", group.pattern, "--kubeconfig", str(kubeconfig)]
    with sample(stage, "dra_driver.py", [*arguments, "--node-name", stage.cluster.node_name]):
        stage.make_class(group)
        stage.wait_for(lambda: len(stage.published(group)) == 1, NEWS_LIMIT_S, "the device to be published")
        stage.apply(
            stage.dra.template("one", Request("device", group.name)),
            pod(
                "user",
                Container(f"/probe try {group.path(0)} rw", claims=("device",)),
                claims=[PodClaim("device", template="one")],
            ),
        )
        assert stage.finished("user") == "ok\n"
        stage.delete("user")


@contextmanager
def sample(stage: Stage, name: str, arguments: Sequence[str]) -> Iterator[None]:
    """Run a sample inside the node; it must end in order."""
    log = f"{name}-{stage.number}"
    process = stage.cluster.popen([sys.executable, SAMPLES / name, *arguments], name=log, cwd=REPOSITORY)
    try:
        yield
        assert process.poll() is None, stage.cluster.logs(log)
    except AssertionError as error:
        error.add_note(stage.cluster.logs(log))
        raise
    finally:
        status = process.stop()
    assert status == 0, stage.cluster.logs(log)
