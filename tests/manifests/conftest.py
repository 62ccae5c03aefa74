"""A real node for the tests that need one; `K8S` names the Kubernetes release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster

SYNC = "10s"
"""A kubelet looks again at a pod that waits for something at its next periodic sync, after 60 to 90 s by default."""

CRDS = Path(__file__).parent / "crds"


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """The node, with the foreign kinds that manifests may use."""
    with Cluster(kubelet_config={"syncFrequency": SYNC}) as running:
        for path in sorted(CRDS.glob("*.yaml")):
            running.apply(path)
        running.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield running
