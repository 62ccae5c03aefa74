"""The fleet's commands against a real API server: a rolling switch, a plan, and a daemon asked through its pod.

The nodes of the switch are Node objects without a machine behind them, whose daemons the test plays: what is shown is
what the command line and the API server make of each other. The daemon that is asked is a real one, in its DaemonSet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import Cluster
from tests.e2e.daemon import REPOSITORY
from tests.manifests.builds import KUSTOMIZE
from tests.manifests.test_daemonset import install

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODE = "device-bridge.io/mode"
PREVIOUS = "device-bridge.io/previous-mode"
NODES = ("fleet-1", "fleet-2", "fleet-10")
POOL = ("--selector", "pool=fleet")
BRIDGES = "/apis/device-bridge.io/v1alpha1/nodebridges"


class Daemons:
    """Does what the labels of the nodes say; `refuse` names nodes that will not go to `dra`."""

    def __init__(self, cluster: Cluster) -> None:
        self.api = cluster.api
        self.refuse: set[str] = set()
        self.order: list[tuple[str, str | None]] = []
        self._modes: dict[str, str | None] = {}
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Daemons:
        for name in NODES:
            meta = {"name": name, "labels": {"pool": "fleet"}}
            self.api.create("/api/v1/nodes", {"kind": "Node", "apiVersion": "v1", "metadata": meta})
            kind = {"kind": "NodeBridge", "apiVersion": "device-bridge.io/v1alpha1"}
            self.api.create(BRIDGES, {**kind, "metadata": {"name": name}})
            self.tell(name, "dual", "dual", "Settled")
            self._modes[name] = None
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        for name in NODES:
            self.api.delete(f"{BRIDGES}/{name}")
            self.api.delete(f"/api/v1/nodes/{name}")
        self._thread.join(60)
        assert not self._thread.is_alive()

    def tell(self, node: str, wanted: str, mode: str, phase: str) -> None:
        """What a daemon says of itself."""
        told = {"wanted": wanted, "mode": mode, "phase": phase}
        why = {"reason": "NameNotCarried", "message": "no class"} if phase == "Refused" else {}
        now = "2026-11-21T10:00:00Z"
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Serves",
            "message": "",
            "lastTransitionTime": now,
        }
        counts = {"devicePlugin": 2, "dra": 2}
        none = {"devicePlugin": 0, "dra": 0}
        group = {"name": "acc", "resourceName": "device-bridge.io/acc", "driverName": "acc.device-bridge.io"}
        status = {
            **told,
            "free": counts,
            "held": none,
            "groups": [{**group, **told, **why}],
            "conditions": [condition],
        }
        self.api.patch(f"{BRIDGES}/{node}/status", {"status": status})

    def _follow(self) -> None:
        """Until the nodes are deleted."""
        left, listing = set(NODES), self.api.get("/api/v1/nodes", labelSelector="pool=fleet")
        version = listing["metadata"]["resourceVersion"]
        query = {"resourceVersion": version, "labelSelector": "pool=fleet"}
        for event in self.api.watch("/api/v1/nodes", timeout=500, **query):
            name = event["object"]["metadata"]["name"]
            if event["type"] == "DELETED":
                left.discard(name)
                if not left:
                    return
                continue
            mode = event["object"]["metadata"].get("labels", {}).get(MODE)
            if mode != self._modes[name]:
                before, self._modes[name] = self._modes[name] or "dual", mode
                self.order.append((name, mode))
                self._switch(name, before, mode or "dual")

    def _switch(self, name: str, before: str, mode: str) -> None:
        if mode == "dra" and name in self.refuse:
            self.tell(name, mode, before, "Refused")
            return
        self.tell(name, mode, before, "Closing")
        self.tell(name, mode, mode, "Settled")


def bridge(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the cluster's administrator."""
    command: list[str | Path] = [sys.executable, "-m", "bridge", *arguments]
    return cluster.exec([*command, "--kubeconfig", cluster.admin_kubeconfig], cwd=REPOSITORY, check=False)


def told(cluster: Cluster, *arguments: str) -> Any:
    """What a command that succeeds says to programs."""
    done = bridge(cluster, *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def crd(cluster: Cluster) -> None:
    cluster.apply(KUSTOMIZE / "base" / "node-bridge-crd.yaml")
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


@pytest.fixture
def daemons(cluster: Cluster, crd: None) -> Iterator[Daemons]:
    with Daemons(cluster) as made:
        yield made


def labels(cluster: Cluster, node: str) -> dict[str, str]:
    found: dict[str, str] = cluster.get("Node", node)["metadata"].get("labels") or {}
    return found


def notes(cluster: Cluster, node: str) -> dict[str, str]:
    found: dict[str, str] = cluster.get("Node", node)["metadata"].get("annotations") or {}
    return {name: value for name, value in found.items() if name.startswith("device-bridge.io/")}


def test_a_fleet_is_switched_stops_goes_on_and_goes_back(cluster: Cluster, daemons: Daemons) -> None:
    daemons.refuse = {"fleet-2"}
    stopped = bridge(cluster, "mode", "set", "dra", *POOL, "-o", "json")
    assert stopped.returncode == 1, stopped.stderr
    results = {row["node"]: row["result"] for row in json.loads(stopped.stdout)}
    assert results == {"fleet-1": "switched", "fleet-2": "failed", "fleet-10": "not begun"}
    assert "group acc refuses dra: NameNotCarried: no class" in stopped.stderr
    daemons.refuse = set()
    daemons.tell("fleet-2", "dra", "dra", "Settled")
    rows = told(cluster, "mode", "set", "dra", *POOL, "--batch", "50%")
    assert [row["result"] for row in rows] == ["already there", "already there", "switched"]
    assert daemons.order == [(name, "dra") for name in NODES]
    assert json.loads(notes(cluster, "fleet-1")[PREVIOUS])["was"] == "dual"
    assert {row["mode"] for row in told(cluster, "status", *POOL)} == {"dra"}

    daemons.order.clear()
    done = bridge(cluster, "mode", "set", "--undo", *POOL)
    assert done.returncode == 0, done.stderr
    assert daemons.order == [(name, None) for name in reversed(NODES)]
    for name in NODES:
        assert MODE not in labels(cluster, name) and notes(cluster, name) == {}


def test_a_group_of_a_node_is_switched_by_a_label_of_its_own(cluster: Cluster, daemons: Daemons) -> None:
    done = bridge(cluster, "mode", "set", "dra", "--node", "fleet-1", "--group", "acc", "--timeout", "2s")
    assert done.returncode == 1 and "its daemon has still to take up the label" in done.stderr
    assert labels(cluster, "fleet-1")[f"{MODE}.acc"] == "dra"
    again = bridge(cluster, "mode", "set", "--undo", "--node", "fleet-1", "--group", "acc")
    assert again.returncode == 0, again.stderr
    assert f"{MODE}.acc" not in labels(cluster, "fleet-1") and notes(cluster, "fleet-1") == {}


def test_errors_are_lines(cluster: Cluster, crd: None, tmp_path: Path) -> None:
    account = cluster.kubeconfig_for_service_account("default", "default")
    command: list[str | Path] = [sys.executable, "-m", "bridge", "status", "--kubeconfig"]
    denied = cluster.exec([*command, account], cwd=REPOSITORY, check=False)
    assert denied.returncode == 1 and "not allowed: nodes is forbidden" in denied.stderr
    nobody = tmp_path / "nobody"
    stranger = yaml.safe_load(account.read_text())
    stranger["users"][0]["user"] = {"token": "nobody"}
    nobody.write_text(yaml.safe_dump(stranger))
    unknown = cluster.exec([*command, nobody], cwd=REPOSITORY, check=False)
    assert unknown.returncode == 1 and "does not know you" in unknown.stderr
    wrong = bridge(cluster, "status", "--selector", "a b")
    assert wrong.returncode == 2 and "is no label selector" in wrong.stderr
    for done in (denied, unknown, wrong):
        assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(cluster: Cluster, crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The base as a DaemonSet, with one device."""
    cluster.mknod("/dev/crypto/acc0", "c", 4, 60, mode=0o666)
    install(cluster, tmp_path_factory.mktemp("base"))
    yield
    cluster.delete("DaemonSet", "device-bridge", "device-bridge")
    cluster.rm("/dev/crypto/acc0")


def test_a_daemon_is_asked_from_anywhere_as_on_its_node(cluster: Cluster, installed: None) -> None:
    node = cluster.node_name
    (device,) = told(cluster, "devices", "--node", node)
    assert (device["device"], device["state"]) == ("crypto-acc0", "free")
    assert told(cluster, "holds", "--node", node) == []
    said = bridge(cluster, "explain", "crypto-acc0", "--node", node)
    assert said.returncode == 0 and "device-plugin: offered" in said.stdout, said.stderr
    missing = bridge(cluster, "explain", "crypto-acc9", "--node", node)
    assert (
        missing.returncode == 1
        and f"node {node}: " in missing.stderr
        and "`bridge devices`" in missing.stderr
    )
    whole = told(cluster, "status", node)
    assert whole["holds"] == [] and whole["node"] == node


def test_a_real_daemon_is_switched_and_back(cluster: Cluster, installed: None) -> None:
    node = ("--node", cluster.node_name)
    cluster.wait_for(lambda: _ready(cluster, cluster.node_name), 30, "the daemon to say that it is Ready")
    (row,) = told(cluster, "mode", "set", "dra", *node)
    assert (row["was"], row["mode"], row["result"]) == ("dual", "dra", "switched")
    assert (
        cluster.get("Node", cluster.node_name)["status"]["allocatable"].get("device-bridge.io/acc", "0")
        == "0"
    )
    (row,) = told(cluster, "mode", "set", "--undo", *node)
    assert (row["mode"], row["result"]) == ("dual", "switched")
    cluster.wait_for(
        lambda: (
            cluster.get("Node", cluster.node_name)["status"]["allocatable"]["device-bridge.io/acc"] == "1"
        ),
        15,
        "the device plugin to offer its device again",
    )
    assert notes(cluster, cluster.node_name) == {}


def test_a_plan_sees_what_the_api_server_keeps_and_who_asks_for_devices(
    cluster: Cluster, installed: None
) -> None:
    from tests.e2e.objects import Container, pod

    node = cluster.node_name
    cluster.wait_for(lambda: _ready(cluster, node), 30, "the daemon to say that it is Ready")
    cluster.apply(pod("asks", Container("sleep 600", resources={"device-bridge.io/acc": 1})))
    hard = {"hard": {"requests.device-bridge.io/acc": "4"}}
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team", "namespace": "default"},
        "spec": hard,
    }
    cluster.apply(quota)
    try:
        done = bridge(cluster, "plan", "--to", "dra", "--node", node, "-o", "json")
        found = {(one["check"], one["verdict"]): one for one in json.loads(done.stdout)}
        dual = json.loads(bridge(cluster, "plan", "--to", "dual", "--node", node, "-o", "json").stdout)
    finally:
        cluster.delete("Pod", "asks", grace_seconds=0)
        cluster.delete("ResourceQuota", "team")
    assert done.returncode == 1, done.stdout
    assert "Pod default/asks" in found["group acc", "blocks"]["found"]
    assert "default/team" in found["quotas", "warning"]["found"]
    assert ("rights", "ok") in found and ("daemon", "ok") in found
    newest = cluster.release.major_minor >= (1, 36)
    kept = {
        one["check"]: one["verdict"]
        for one in dual
        if one["check"] in ("binding conditions", "device taints")
    }
    assert set(kept.values()) == {"ok" if newest else "warning"}, kept
    assert ("this API server drops" in found["group acc", "blocks"]["found"]) is not newest


def _ready(cluster: Cluster, node: str) -> bool:
    (row,) = [one for one in told(cluster, "status") if one["node"] == node] or [{"ready": ""}]
    return bool(row["ready"] == "yes")
