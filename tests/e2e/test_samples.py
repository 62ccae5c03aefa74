"""The sample drivers, each written with one library alone, serve pods on a real node."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.daemon import REPOSITORY
from tests.e2e.objects import Container, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(120)]

SAMPLES = REPOSITORY / "samples"
LONGEST = 60


@pytest.mark.parametrize("name", ["deviceplugin_driver.py", "dra_driver.py"])
def test_a_sample_is_short(name: str) -> None:
    assert len((SAMPLES / name).read_text().splitlines()) < LONGEST


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
