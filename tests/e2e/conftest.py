"""A real node for the whole session, and a stage on it for each test.

`K8S` names the Kubernetes release. The daemon has the shipped rights and a token bound to its node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.e2e.daemon import REPOSITORY
from tests.e2e.stage import Stage

SYNC = "10s"
"""A kubelet tries a Prepare that was refused again at its next periodic sync: 60 to 90 s later by default."""

RBAC = REPOSITORY / "kustomize" / "base" / "rbac.yaml"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The node, with the daemon's account and rights in it."""
    with Cluster(kubelet_config={"syncFrequency": SYNC}) as running:
        running.apply(RBAC)
        yield running


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    """The daemon's identity."""
    return cluster.kubeconfig_for_service_account("device-bridge", "device-bridge")


@pytest.fixture
def stage(cluster: Cluster, kubeconfig: Path, tmp_path: Path) -> Iterator[Stage]:
    """A stage; in the end nothing of it is left, and the daemon has not failed on the way."""
    made = Stage(cluster, kubeconfig, tmp_path)
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.fixture
def since(cluster: Cluster) -> Callable[[tuple[int, int], str], None]:
    """Skip the test on releases older than a version, which cannot do what it shows."""

    def check(version: tuple[int, int], what: str) -> None:
        if cluster.release.major_minor < version:
            pytest.skip(f"Kubernetes {cluster.version}: {what}")

    return check
