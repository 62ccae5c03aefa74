"""A Deployment that `bridge convert` made of one for the device plugin runs on the DRA plane, and goes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bridge.cli import app
from tests.e2e.objects import Container, pod
from tests.e2e.stage import POD_LIMIT_S, Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LABELS = {"app": "web"}


def test_a_converted_deployment_runs_on_the_dra_plane_and_back(stage: Stage, tmp_path: Path) -> None:
    group = stage.group()
    paths = [group.path(index) for index in range(4)]
    for path in paths:
        stage.plug(path)
    stage.start(group.config())
    stage.offered(group, 4)
    stage.make_class(group, group.driver)
    file, config = tmp_path / "web.yaml", tmp_path / "bridge.yaml"
    original = manifest(stage, group)
    file.write_text(original)

    convert("--write", "-f", file, "--config", config, "--api-version", stage.dra.version)
    with applied(stage, file) as name:
        claims = stage.cluster.list("ResourceClaim", stage.namespace)
        (results,) = [claim["status"]["allocation"]["devices"]["results"] for claim in claims]
        assert len(results) == 2 and {result["driver"] for result in results} == {group.driver}
        tested, served = (set(stage.output(name, container).split()) for container in ("test", "server"))
        assert len(tested) == 1 and len(served) == 2 and tested < served < set(paths)

    convert("--write", "-f", file, "--config", config, "--to", "device-plugin")
    assert file.read_text() == original
    with applied(stage, file):
        assert not stage.cluster.list("ResourceClaim", stage.namespace)


def manifest(stage: Stage, group: Group) -> str:
    """An init container that uses one of the two devices of the server."""
    look = "ls -d /dev/crypto/*"
    body = pod(
        "web",
        Container(f"{look}; sleep 3600", "server", {group.resource: 2}),
        init=[Container(look, "test", {group.resource: 1})],
    )
    spec = json.loads(json.dumps(body["spec"])) | {
        "restartPolicy": "Always"
    }  # limits and requests are one object
    del spec["resourceClaims"]
    for container in (*spec["initContainers"], *spec["containers"]):
        del container["resources"]["claims"]
        for amounts in container["resources"].values():
            amounts[group.resource] = int(amounts[group.resource])  # a plain number comes back as one
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": stage.namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": spec},
        },
    }
    return "# a service\n" + yaml.safe_dump(deployment, sort_keys=False)


def convert(*arguments: object) -> None:
    """Run the command on the daemon's own configuration; all of it must be converted."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output


@contextmanager
def applied(stage: Stage, file: Path) -> Iterator[str]:
    """The file in the cluster and its pod ready, by name; in the end everything the Deployment made is gone."""

    def found() -> list[str]:
        return [one["metadata"]["name"] for one in stage.cluster.list("Pod", stage.namespace)]

    stage.apply(*yaml.safe_load_all(file.read_text()))
    try:
        stage.wait_for(found, POD_LIMIT_S, "the Deployment to make its pod")
        (name,) = found()
        stage.running(name)
        yield name
    finally:
        stage.cluster.delete("Deployment", "web", stage.namespace, wait=None)
        for kind in ("Deployment", "ReplicaSet", "Pod", "ResourceClaim"):
            stage.wait_for(partial(stage.gone, kind), POD_LIMIT_S, f"every {kind} to be gone")
