"""The base as it is, in the image as it is built, on a real node: its privileges are enough, and so are its rights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.consoles import FIRST, MAJOR
from tests.e2e.objects import Container, Dra, PodClaim, Request, pod
from tests.image import built
from tests.manifests.builds import KUSTOMIZE, MERGED, OLDER_API, Build

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.oldest, pytest.mark.timeout(1800)]

IN_IT = ["exec", "-n", "device-bridge", "daemonset/device-bridge", "-c", "daemon", "--"]
DEVICES = [f"/dev/crypto/acc{i}" for i in range(2)]


@pytest.fixture(scope="module")
def installed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The base, and two devices that no container may open by itself."""
    for i, path in enumerate(DEVICES):
        cluster.mknod(path, "c", MAJOR, FIRST + i, mode=0o666)
    install(cluster, tmp_path_factory.mktemp("base"))
    yield
    cluster.delete("DaemonSet", "device-bridge", "device-bridge")


def install(cluster: Cluster, folder: Path, *components: str, more: str = "") -> None:
    """Apply a build, and wait until its daemon is ready."""
    cluster.import_image(built.archive())
    older = (OLDER_API,) if cluster.release.resource_api == "v1beta1" else ()
    objects = Build("base", (*older, *components), more).objects(folder)
    cluster.apply(objects)
    cluster.wait_for(lambda: _ready(cluster), 120, "the daemon to be ready")


def _ready(cluster: Cluster) -> bool:
    found = cluster.get("DaemonSet", "device-bridge", "device-bridge")
    seen = found["status"].get("observedGeneration") == found["metadata"]["generation"]
    updated = found["status"].get("updatedNumberScheduled") == 1
    return bool(seen and updated and found["status"].get("numberAvailable") == 1)


def finished(cluster: Cluster, name: str) -> str:
    """What a pod wrote, once it has ended well; it is deleted."""
    cluster.wait_for(
        lambda: cluster.get("Pod", name)["status"]["phase"] == "Succeeded", 90, f"pod {name} to end"
    )
    text = cluster.pod_logs(name)
    cluster.delete("Pod", name)
    return text


def opened(path: str = "/dev/crypto/acc*") -> str:
    """Open the device that is there."""
    return f"/probe try {path} rw"


def test_everything_is_there_that_doctor_looks_at(cluster: Cluster, installed: None) -> None:
    found = json.loads(cluster.kubectl(*IN_IT, "bridge", "doctor", "-o", "json", check=False))
    assert not [one for one in found if not one["ok"]]
    assert {"API rights", "CDI folder", "evidence: runtime"} <= {one["check"] for one in found}


def test_it_cannot_open_a_device_nor_write_where_it_should_not(cluster: Cluster, installed: None) -> None:
    tried = f"(: <>{DEVICES[0]}); touch /dev/made /made /run/containerd/made; true"
    said = cluster.exec(
        ["kubectl", "--kubeconfig", cluster.admin_kubeconfig, *IN_IT, "sh", "-c", tried], check=False
    )
    assert "Operation not permitted" in said.stderr
    assert said.stderr.count("Read-only file system") == 3
    assert not cluster.node.outside("/dev/termination-log").exists()


def test_a_pod_gets_a_device_by_the_name_of_the_resource(cluster: Cluster, installed: None) -> None:
    cluster.apply(pod("old", Container(opened(), resources={"device-bridge.io/acc": 1})))
    assert finished(cluster, "old") == "ok\n"


def test_a_pod_gets_a_device_by_a_claim(cluster: Cluster, installed: None) -> None:
    dra = Dra(cluster.release.resource_api)
    cluster.apply(dra.template("one", Request("device", "acc.device-bridge.io")))
    cluster.apply(
        pod("new", Container(opened(), claims=("device",)), claims=[PodClaim("device", template="one")])
    )
    assert finished(cluster, "new") == "ok\n"


def test_the_node_says_how_it_stands(cluster: Cluster, installed: None) -> None:
    holding = Container(f"{opened()}; sleep 600", resources={"device-bridge.io/acc": 1})
    cluster.apply(pod("counted", holding))

    def row() -> list[str]:
        return cluster.kubectl("get", "nb", "--no-headers").split()

    wanted = [cluster.node_name, "dual", "dual", "Settled", "1", "1", "1", "0", "True"]
    cluster.wait_for(lambda: row()[:-1] == wanted, 60, f"its NodeBridge to show {wanted}")
    header = cluster.kubectl("get", "nodebridges", "-o", "wide").splitlines()[0]
    columns = "NAME WANTED MODE PHASE FREE-DP FREE-DRA HELD-DP HELD-DRA READY AGE LAST-REFUSAL"
    assert header.split() == columns.split()
    told = cluster.kubectl("describe", "nodebridge", cluster.node_name)
    for text in ("Every group is served on the planes that are open.", "device-bridge.io/acc"):
        assert text in told
    node = cluster.get("Node", cluster.node_name)["metadata"]["uid"]
    path = cluster.api.path("device-bridge.io/v1alpha1", "NodeBridge", name=cluster.node_name)
    made = cluster.api.get(path)["metadata"]
    assert [owner["uid"] for owner in made["ownerReferences"]] == [node]
    written = {(one["manager"], one["operation"], one.get("subresource")) for one in made["managedFields"]}
    assert ("device-bridge", "Apply", "status") in written
    cluster.delete("Pod", "counted", grace_seconds=1)


def test_an_update_replaces_the_daemon_and_touches_no_pod(cluster: Cluster, installed: None) -> None:
    holding = Container(f"{opened()}; sleep 600", resources={"device-bridge.io/acc": 1})
    cluster.apply(pod("holding", holding))
    cluster.wait_for(lambda: cluster.pod_logs("holding") == "ok\n", 60, "the pod to have its device")
    before = _daemons(cluster)
    cluster.kubectl("rollout", "restart", "daemonset/device-bridge", "-n", "device-bridge")
    cluster.wait_for(lambda: _ready(cluster) and not before & _daemons(cluster), 120, "the new daemon")
    holds = json.loads(cluster.kubectl(*IN_IT, "bridge", "holds", "-o", "json"))
    assert ["holding" in json.dumps(hold) for hold in holds] == [True]
    status = cluster.get("Pod", "holding")["status"]
    assert status["phase"] == "Running"
    assert status["containerStatuses"][0]["restartCount"] == 0
    cluster.delete("Pod", "holding", grace_seconds=0)


def _daemons(cluster: Cluster) -> set[str]:
    return {one["metadata"]["uid"] for one in cluster.list("Pod", "device-bridge")}


def test_a_cluster_without_hardware_gets_devices_to_try(
    cluster: Cluster, installed: None, tmp_path: Path
) -> None:
    # The base's own has the other devices of this node besides.
    config = (KUSTOMIZE / "base" / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace('"/dev/crypto/acc*", ', ""))
    install(cluster, tmp_path, "sandboxed-devices", more=MERGED)
    cluster.wait_for(
        lambda: (
            cluster.get("Node", cluster.node_name)["status"]["allocatable"]["device-bridge.io/acc"] == "4"
        ),
        30,
        "four devices to be offered",
    )
    cluster.apply(
        pod("tries", Container("ls /dev/device-bridge-sandbox", resources={"device-bridge.io/acc": 2}))
    )
    assert len(finished(cluster, "tries").split()) == 2


def test_it_had_nothing_to_complain_of(cluster: Cluster, installed: None) -> None:
    log = cluster.kubectl("logs", "-n", "device-bridge", "daemonset/device-bridge")
    records = [json.loads(line) for line in log.splitlines()]
    assert not [one for one in records if one["level"] in ("error", "critical")]
