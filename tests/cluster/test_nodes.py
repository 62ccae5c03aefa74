"""More than one node: each on its own in everything but the cluster that they are nodes of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import PROBE, Cluster, Member
from tests.cluster.traces import traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

DEVICE = "/dev/crypto/judged"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = traces()
    with Cluster(nodes=2) as running:
        yield running
    assert traces() == before


@pytest.mark.ci
def test_pods_of_both_nodes_reach_each_other_and_the_api_server(cluster: Cluster) -> None:
    names = [serving(cluster, node) for node in cluster.nodes]
    addresses = [cluster.get("Pod", name)["status"]["podIP"] for name in names]
    assert [address.split(".")[2] for address in addresses] == ["0", "1"]
    for name in names:
        for address in addresses:
            said = cluster.kubectl("exec", name, "--", "wget", "-q", "-O", "-", f"http://{address}/")
            assert said.split()[1] == "/dev/null"
        reach = "nc -w 5 10.96.0.1 443 </dev/null && echo reached"
        assert cluster.kubectl("exec", name, "--", "sh", "-c", reach) == "reached\n"


def test_each_node_has_its_own_devices_and_the_kernel_judges_over_both(cluster: Cluster) -> None:
    first, second = cluster.nodes
    minor = cluster.add_judged_device(DEVICE, node=second)
    assert not first.outside(DEVICE).exists()
    first.add_judged_device(DEVICE, minor)
    with first.outside(DEVICE).open("rb"):
        pass
    hold = [
        "python3",
        "-c",
        f"import os; os.open({DEVICE!r}, os.O_RDWR | os.O_EXCL); print('open', flush=True); input()",
    ]
    holder = second.popen(hold, stdin=-1, stdout=-1)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    refused = first.exec([*hold[:2], hold[2].replace("; input()", "")], check=False)
    assert "Device or resource busy" in refused.stderr
    holder.stop()


def test_a_kubelet_is_restarted_alone(cluster: Cluster) -> None:
    first, second = cluster.nodes
    before = first.component("kubelet").inner_pid
    stopped = second.component("kubelet").inner_pid
    second.restart_kubelet()
    assert first.component("kubelet").inner_pid == before
    assert second.component("kubelet").inner_pid != stopped
    assert [node.logs("kubelet").count('"Kubelet version"') for node in cluster.nodes] == [1, 2]


def test_three_nodes_leave_nothing(cluster: Cluster) -> None:
    before = traces()
    with Cluster(cluster.version, nodes=3) as other:
        named = [f"{node.place.index}: {serving(other, node)}" for node in other.nodes]
        assert named == ["0: at-node0", "1: at-node1", "2: at-node2"]
        minor = other.add_judged_device(DEVICE, node=other.nodes[2])
        assert other.nodes[2].exec(["dd", f"if={DEVICE}", "count=0"]).returncode == 0
        assert Path(f"/dev/loop{minor}").exists()
    assert traces() == before
    assert not Path(f"/dev/loop{minor}").exists()


def serving(cluster: Cluster, node: Member) -> str:
    """A pod on a node that answers HTTP; its name, once it is ready."""
    name = f"at-{node.name}"
    container = {
        "name": "main",
        "image": PROBE,
        "command": ["/probe", "hold", "/dev/null", "--serve", "80"],
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
    }
    body = {"nodeName": node.name, "terminationGracePeriodSeconds": 0, "containers": [container]}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body})
    cluster.wait_for(lambda: cluster.get("Pod", name)["status"]["containerStatuses"][0]["ready"], 30, name)
    return name
