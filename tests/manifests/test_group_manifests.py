"""`bridge config manifests` says of any groups what `kustomize/base` says of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from bridge.cli import app
from bridge.config import load
from tests.cluster import Cluster
from tests.manifests.builds import KUSTOMIZE, REPOSITORY, Object, read

BASE = KUSTOMIZE / "base"
CONFIGS = sorted(
    p for p in (REPOSITORY / "samples").rglob("*.yaml") if "\nkind: BridgeConfig\n" in p.read_text()
)
MIXED = REPOSITORY / "samples" / "config" / "mixed.yaml"


def run(config: Path, *arguments: str) -> Result:
    shown = CliRunner().invoke(app, ["config", "manifests", "-f", str(config), *arguments])
    assert shown.exit_code == 0, shown.output
    return shown


def printed(config: Path, *arguments: str) -> list[Object]:
    return list(yaml.safe_load_all(run(config, *arguments).stdout))


def test_of_the_base_it_is_what_the_base_has() -> None:
    assert printed(BASE / "config.yaml") == [
        *read(BASE / "device-classes.yaml"),
        *read(BASE / "driver-rbac.yaml"),
    ]


def test_older_clusters_have_what_the_component_makes(tmp_path: Path) -> None:
    (wanted,) = read(BASE / "device-classes.yaml")
    made, *rights = printed(BASE / "config.yaml", "--api-version", "v1beta1")
    assert made == {**wanted, "apiVersion": "resource.k8s.io/v1beta1"}
    assert rights == read(BASE / "driver-rbac.yaml")


def test_a_group_that_keeps_its_name_has_a_class_that_carries_it(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    text = (BASE / "config.yaml").read_text()
    config.write_text(text.replace("  kind: device-node", "  kind: device-node\n  keepResourceName: true"))
    (patch,) = read(KUSTOMIZE / "components" / "extended-resource-names" / "acc.yaml")
    shown = run(config)
    made = next(yaml.safe_load_all(shown.stdout))
    assert made["metadata"]["name"] == patch["metadata"]["name"]
    assert made["spec"].pop("extendedResourceName") == patch["spec"]["extendedResourceName"]
    assert made == read(BASE / "device-classes.yaml")[0] and not shown.stderr
    for version in ("v1beta1", "v1beta2"):
        older = run(config, "--api-version", version)
        assert "extendedResourceName" not in older.stdout
        assert "cannot carry device-bridge.io/acc" in older.stderr


def test_the_account_is_in_the_namespace_that_is_given() -> None:
    *_, binding = printed(BASE / "config.yaml", "--namespace", "devices")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "device-bridge", "namespace": "devices"}
    ]


def test_it_is_the_same_text_each_time_and_the_same_objects_as_a_list() -> None:
    assert run(MIXED).stdout == run(MIXED).stdout
    listed = json.loads(run(MIXED, "-o", "json").stdout)
    assert (listed["kind"], listed["items"]) == ("List", printed(MIXED))


def test_a_configuration_that_is_wrong_has_no_manifests(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("kind: BridgeConfig\n")
    shown = CliRunner().invoke(app, ["config", "manifests", "-f", str(config)])
    assert shown.exit_code == 2 and shown.stdout == "" and "groups" in shown.stderr


@pytest.mark.e2e
@pytest.mark.ci
@pytest.mark.oldest
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_api_server_would_take_it(config: Path, cluster: Cluster) -> None:
    served = cluster.release.resource_api
    done = apply(cluster, run(config, "--api-version", served).stdout)
    assert done.returncode == 0, done.stderr
    groups = load(config).groups
    assert done.stdout.count("deviceclass.resource.k8s.io/") == len(groups)
    assert len(done.stdout.splitlines()) == len(groups) + 2


def apply(cluster: Cluster, text: str) -> subprocess.CompletedProcess[str]:
    """As its own example does, but for nothing."""
    command = [
        "kubectl",
        "--kubeconfig",
        str(cluster.admin_kubeconfig),
        "apply",
        "--dry-run=server",
        "-f",
        "-",
    ]
    return cluster.exec(command, input=text, check=False)
