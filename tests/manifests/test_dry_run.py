"""A real API server would take every build: fields, values and expressions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.versions import DEFAULT, release
from tests.manifests.builds import KUSTOMIZE, Build, every

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.oldest, pytest.mark.timeout(1800)]

SERVED = release(os.environ.get("K8S") or DEFAULT).resource_api


@pytest.fixture(scope="module", autouse=True)
def namespace(cluster: Cluster) -> None:
    """A dry run makes nothing, so what the others are in has to be there."""
    cluster.apply(KUSTOMIZE / "base" / "rbac.yaml")


@pytest.mark.parametrize("one", [one for one in every() if one.resource_api == SERVED], ids=str)
def test_a_build_would_be_taken(one: Build, cluster: Cluster, tmp_path: Path) -> None:
    text = one.text(tmp_path)
    done = dry_run(cluster, text)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == text.count("\nkind: ")


def test_what_is_misspelt_would_not_be_taken(cluster: Cluster, tmp_path: Path) -> None:
    text = Build("base").text(tmp_path).replace("allowPrivilegeEscalation", "allowPrivilegesEscalation")
    done = dry_run(cluster, text)
    assert done.returncode != 0
    assert "allowPrivilegesEscalation" in done.stderr


def dry_run(cluster: Cluster, text: str) -> subprocess.CompletedProcess[str]:
    """Ask the API server for what it would make of it."""
    command: list[str | Path] = [
        "kubectl",
        "--kubeconfig",
        cluster.admin_kubeconfig,
        "apply",
        "--server-side",
    ]
    return cluster.exec(
        [*command, "--force-conflicts", "--dry-run=server", "-f", "-"], input=text, check=False
    )
