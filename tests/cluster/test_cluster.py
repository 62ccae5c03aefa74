"""The test bed itself: what every other end-to-end test takes for granted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import PROBE, ApiError, Cluster, cgroups, consoles, loops, workdirs
from tests.cluster.processes import children, is_alive, start_time
from tests.cluster.traces import traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # a cold build takes minutes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


@pytest.mark.ci
def test_a_pod_reaches_the_api_server_by_its_service_address(cluster: Cluster) -> None:
    assert "reached" in finished(cluster, "reach", "nc -w 5 10.96.0.1 443 </dev/null && echo reached")


@pytest.mark.ci
def test_a_container_cannot_open_a_device_that_it_was_not_given(cluster: Cluster) -> None:
    script = f"/probe mknod /dev/made c {consoles.MAJOR} {consoles.FIRST}; /probe try /dev/made rw"
    assert finished(cluster, "refused", script).split() == ["ok", "EPERM"]


def test_the_kernel_judges_double_use(cluster: Cluster) -> None:
    cluster.add_judged_device("/dev/bridge-test/judged")
    holding(cluster, "first")
    cluster.wait_for(lambda: journal(cluster), 20, "the first pod to open its device")
    holding(cluster, "second")
    cluster.wait_for(lambda: len(journal(cluster)) == 2, 20, "the second pod to try")
    cluster.delete("Pod", "first")
    assert journal(cluster) == [("open", "first"), ("busy", "second"), ("close", "first")]


def test_the_daemons_token_names_its_node_and_grants_nothing_by_itself(cluster: Cluster) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "daemon"}}
    cluster.apply(account)
    api = cluster.api_as(cluster.service_account_token("default", "daemon"))
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    user = api.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)["status"]["userInfo"]
    assert user["extra"]["authentication.kubernetes.io/node-name"] == [cluster.node_name]
    with pytest.raises(ApiError, match="Forbidden"):
        api.items("/api/v1/pods")


def test_the_served_versions_of_dra_are_those_of_the_release(cluster: Cluster) -> None:
    assert cluster.list("ResourceSlice") == []


def test_a_container_outlives_a_kubelet_that_is_killed(cluster: Cluster) -> None:
    run(cluster, "survivor", "exec sleep 1000")
    cluster.wait_for(lambda: container(cluster, "survivor")["ready"], 20, "the pod to be ready")
    before = container(cluster, "survivor")["containerID"]
    cluster.kill_kubelet()
    cluster.start_kubelet()
    time.sleep(2)
    assert container(cluster, "survivor")["containerID"] == before


def test_the_api_server_comes_back_with_what_it_stored(cluster: Cluster) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}})
    cluster.stop_apiserver()
    with pytest.raises(ConnectionRefusedError):
        cluster.get("ConfigMap", "kept")
    cluster.start_apiserver()
    assert cluster.get("ConfigMap", "kept")


def test_a_second_cluster_fits_beside_it_and_leaves_nothing(cluster: Cluster) -> None:
    before = traces()
    with Cluster(cluster.version) as second:
        run(second, "pod", "true")
        minor = second.add_judged_device("/dev/bridge-test/judged")
        assert second.exec(["dd", "if=/dev/bridge-test/judged", "count=0"]).returncode == 0
        assert Path(f"/dev/loop{minor}").exists()
        second.mknod("/dev/bridge-test/console", "c", consoles.MAJOR, consoles.LAST)
        second.exec([sys.executable, "-c", "open('/dev/bridge-test/console', 'rb', 0)"])
        assert Path(f"/dev/vcs{consoles.LAST}").exists()
        assert [node["metadata"]["name"] for node in cluster.list("Node")] == [cluster.node_name]
    assert traces() == before
    assert not Path(f"/dev/loop{minor}").exists()


def test_a_killed_holder_takes_its_cluster_with_it() -> None:
    before = traces()
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "up"], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout is not None
    assert b"ready" in holder.stdout.readline()
    inside = [(pid, start_time(pid)) for pid in descendants(holder.pid)]
    assert len(inside) > 6
    holder.kill()
    holder.communicate()
    deadline = time.monotonic() + 20
    while any(is_alive(*one) for one in inside) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(*one) for one in inside)
    for sweep in (workdirs.sweep, cgroups.sweep, loops.sweep):
        sweep()
    assert traces() == before


def run(cluster: Cluster, name: str, script: str, **spec: Any) -> None:
    container = {"name": "main", "image": PROBE, "command": ["sh", "-c", script], **spec.pop("container", {})}
    body = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container], **spec}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body})


def finished(cluster: Cluster, name: str, script: str) -> str:
    run(cluster, name, script)
    over = ("Succeeded", "Failed")
    cluster.wait_for(lambda: cluster.get("Pod", name)["status"]["phase"] in over, 30, f"pod {name} to end")
    return cluster.pod_logs(name)


def holding(cluster: Cluster, name: str) -> None:
    hold = f"exec /probe hold --glob '/dev/bridge-test/judged' --excl --journal /journal/all --id {name}"
    paths = {"journal": "/run/journal", "dev": "/dev/bridge-test"}
    run(
        cluster,
        name,
        hold,
        volumes=[
            {"name": key, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
            for key, path in paths.items()
        ],
        container={
            "securityContext": {"privileged": True},
            "volumeMounts": [
                {"name": "journal", "mountPath": "/journal"},
                {"name": "dev", "mountPath": paths["dev"]},
            ],
        },
    )


def journal(cluster: Cluster) -> list[tuple[str, str]]:
    lines = cluster.node.outside("/run/journal/all").read_text().splitlines()
    return [(words[2], words[3]) for words in map(str.split, lines)]


def container(cluster: Cluster, name: str) -> dict[str, Any]:
    status: dict[str, Any] = cluster.get("Pod", name)["status"]["containerStatuses"][0]
    return status


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [one for child in below for one in descendants(child)]
