"""`bridge plan` and `bridge status` against simulated clusters of three releases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.sandbox.cluster.objects import Object
from tests.protocol.fleet import Fleet, running

ACC = "device-bridge.io/acc"
DRIVER = "acc.device-bridge.io"
NODES = ("node-1", "node-2")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path) as made:
        furnish(made)
        yield made


@pytest.fixture
async def older(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path, "1.34") as made:
        furnish(made)
        yield made


def furnish(fleet: Fleet, carried: str = "") -> None:
    """Two nodes with daemons in pods, and the group's DeviceClass."""
    for name in NODES:
        fleet.node(name)
        daemon(fleet, name)
    fleet.registry.create("deviceclasses", device_class(DRIVER, carried))


def daemon(fleet: Fleet, node: str, ready: bool = True) -> None:
    """A daemon's pod."""
    meta = {"name": f"device-bridge-{node}", "labels": {"app.kubernetes.io/name": "device-bridge"}}
    spec = {"nodeName": node, "serviceAccountName": "device-bridge", "containers": [{"name": "daemon"}]}
    made = fleet.registry.create("pods", {"metadata": meta, "spec": spec}, "device-bridge")
    made["status"] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    fleet.registry.replace("pods", made, "status")


def device_class(name: str, carried: str = "", driver: str = DRIVER) -> Object:
    spec: Object = {"selectors": [{"cel": {"expression": f"device.driver == '{driver}'"}}]}
    return {
        "metadata": {"name": name},
        "spec": {**spec, **({"extendedResourceName": carried} if carried else {})},
    }


def deployment(fleet: Fleet, name: str, pods: int) -> None:
    """A Deployment that asks for a device, and its pods, through a ReplicaSet."""
    spec = {"containers": [{"name": "main", "resources": {"limits": {ACC: "1"}}}]}
    template = {"spec": {"replicas": pods, "template": {"spec": spec}}}
    fleet.registry.create("deployments", {"metadata": {"name": name}, **template})
    owned = [{"kind": "Deployment", "name": name, "uid": "1", "controller": True}]
    fleet.registry.create(
        "replicasets", {"metadata": {"name": f"{name}-1", "ownerReferences": owned}, **template}
    )
    by = [{"kind": "ReplicaSet", "name": f"{name}-1", "uid": "2", "controller": True}]
    for number in range(pods):
        meta = {"name": f"{name}-{number}", "ownerReferences": by}
        fleet.registry.create("pods", {"metadata": meta, "spec": spec})


async def planned(fleet: Fleet, *arguments: str, code: int = 0) -> dict[tuple[str, str], Any]:
    """Findings that are not ok, by check and verdict."""
    done = await fleet.bridge("plan", *arguments, "-o", "json")
    assert done.exit_code == code, done.output
    return {(one["check"], one["verdict"]): one for one in json.loads(done.stdout) if one["verdict"] != "ok"}


async def test_nothing_stands_in_the_way(fleet: Fleet) -> None:
    assert await planned(fleet) == {}
    done = await fleet.bridge("plan", "--to", "dual")
    assert done.exit_code == 0 and done.stdout.splitlines()[0].split() == [
        "VERDICT",
        "CHECK",
        "NODES",
        "FOUND",
        "MEND",
    ]
    assert done.stdout.splitlines()[-1].startswith("2 node(s) to dual: ")
    assert "`bridge mode set dual` can go on" in done.stdout
    assert not [verb for verb, _ in fleet.server.requests if verb in ("patch", "update", "delete")]
    assert fleet.registry.select("resourceslices") == [], "a dry run stores nothing"


async def test_workloads_that_ask_by_name_are_counted_by_owner(fleet: Fleet) -> None:
    deployment(fleet, "web", 3)
    deployment(fleet, "spare", 0)
    found = (await planned(fleet, code=1))["group acc", "blocks"]
    assert (
        "2 workload(s) with 3 pod(s): Deployment default/spare (no pods now), Deployment default/web (3 pods)"
        in found["found"]
    )
    assert "on nodes in dra their new pods stay pending" in found["found"]
    assert "extended-resource-names" in found["mend"] and "bridge convert" in found["mend"]
    assert await planned(fleet, "--to", "dual") == {}
    stored = fleet.registry.get("deviceclasses", DRIVER)
    stored["spec"]["extendedResourceName"] = ACC
    fleet.registry.replace("deviceclasses", stored)
    assert await planned(fleet) == {}


async def test_an_older_cluster_cannot_carry_the_name_and_says_so(older: Fleet) -> None:
    deployment(older, "web", 1)
    found = await planned(older, code=1)
    assert "this API server drops extendedResourceName" in found["group acc", "blocks"]["found"]
    assert "extended-resource-names" not in found["group acc", "blocks"]["mend"]
    dual = await planned(older, "--to", "dual")
    assert {check for check, _ in dual} == {"binding conditions", "device taints"}


async def test_an_older_kubelet_may_not_meet_the_name_on_both_planes(fleet: Fleet) -> None:
    deployment(fleet, "web", 1)
    stored = fleet.registry.get("deviceclasses", DRIVER)
    stored["spec"]["extendedResourceName"] = ACC
    fleet.registry.replace("deviceclasses", stored)
    node = fleet.registry.get("nodes", "node-2")
    node["status"]["nodeInfo"]["kubeletVersion"] = "v1.35.2"
    fleet.registry.replace("nodes", node, "status")
    found = await planned(fleet, code=1)
    assert found["group acc", "blocks"]["nodes"] == ["node-2"]
    assert "v1.35.2 asks the device plugin too" in found["group acc", "blocks"]["found"]


async def test_names_that_clash(fleet: Fleet) -> None:
    fleet.registry.create("deviceclasses", device_class("other", ACC, "gpu.example.com"))
    found = await planned(fleet, code=1)
    assert "is the extendedResourceName of other" in found["group acc", "blocks"]["found"]
    fleet.registry.delete("deviceclasses", "other")
    spec = {
        "driver": DRIVER,
        "nodeName": "node-9",
        "pool": {"name": "node-9", "generation": 1, "resourceSliceCount": 1},
    }
    fleet.registry.create("resourceslices", {"metadata": {"name": "theirs"}, "spec": spec})
    found = await planned(fleet, code=1)
    assert "that no daemon of ours publishes: theirs" in found["group acc", "blocks"]["found"]


async def test_another_device_plugin_and_another_driver(fleet: Fleet) -> None:
    fleet.registry.create("nodes", {"metadata": {"name": "old"}})
    old = fleet.registry.get("nodes", "old")
    old["status"] = {"capacity": {ACC: "4"}}
    fleet.registry.replace("nodes", old, "status")
    spec = {"driver": "gpu.example.com", "nodeName": "node-1"}
    pool = {"name": "node-1", "generation": 1, "resourceSliceCount": 1}
    fleet.registry.create("resourceslices", {"metadata": {"name": "g"}, "spec": {**spec, "pool": pool}})
    found = await planned(fleet)
    assert found["group acc", "warning"]["nodes"] == ["old"]
    assert "another device plugin offers 4 of device-bridge.io/acc" in found["group acc", "warning"]["found"]
    everything = json.loads((await fleet.bridge("plan", "-o", "json")).stdout)
    assert [one["nodes"] for one in everything if one["check"] == "drivers"] == [["node-1"]]


async def test_quotas_on_the_old_name(fleet: Fleet) -> None:
    hard = {"spec": {"hard": {f"requests.{ACC}": "4"}}}
    fleet.registry.create("resourcequotas", {"metadata": {"name": "team"}, **hard})
    found = (await planned(fleet))["quotas", "warning"]
    assert "ResourceQuota default/team" in found["found"]
    assert found["mend"] == f"limit {DRIVER}.deviceclass.resource.k8s.io/devices beside it"


async def test_daemons_that_are_missing_or_not_ready(fleet: Fleet) -> None:
    fleet.node("node-3", ready=False)
    daemon(fleet, "node-3", ready=False)
    fleet.node("node-4")
    found = await fleet.bridge("plan", "-o", "json")
    assert found.exit_code == 1
    blocks = {one["nodes"][0]: one["found"] for one in json.loads(found.stdout) if one["verdict"] == "blocks"}
    assert blocks == {
        "node-3": "not Ready: NotServed: group acc is not registered",
        "node-4": "no daemon runs there",
    }


async def test_rights_of_the_daemons_account(fleet: Fleet) -> None:
    fleet.server.forbid("create", "resourceslices")
    found = await planned(fleet, code=1)
    assert "the daemon may not create resourceslices of resource.k8s.io" in found["rights", "blocks"]["found"]
    fleet.server.allow("create", "resourceslices")
    fleet.server.forbid("create", "subjectaccessreviews")
    found = await planned(fleet)
    assert "could not be asked: subjectaccessreviews is forbidden" in found["rights", "warning"]["found"]


async def test_what_may_not_be_looked_at_is_a_warning(fleet: Fleet) -> None:
    for plural in ("deviceclasses", "resourcequotas", "replicasets"):
        fleet.server.forbid("list", plural)
    found = await planned(fleet)
    assert {check for check, _ in found} == {"group acc", "quotas"}
    assert found["quotas", "warning"]["found"].startswith(
        "ResourceQuotas could not be listed: resourcequotas is forb"
    )


async def test_a_cluster_without_dra_or_without_the_kind(tmp_path: Path) -> None:
    async with running(tmp_path, "1.31", crd=False) as fleet:
        fleet.registry.create("nodes", {"metadata": {"name": "node-1"}})
        daemon(fleet, "node-1")
        found = await planned(fleet, code=1)
        assert "there is no DRA" in found["API server", "blocks"]["found"]
        assert "does not know NodeBridge" in found["groups", "blocks"]["found"]


async def test_the_way_back_needs_nothing_of_dra(tmp_path: Path, fleet: Fleet) -> None:
    found = await planned(fleet, "--to", "device-plugin")
    assert [*found] == [("claims", "warning")]
    assert "who makes them was not looked for" in found["claims", "warning"]["found"]
    done = await fleet.bridge("plan", "--to", "device-plugin")
    assert done.exit_code == 0 and "`bridge mode set device-plugin` can go on" in done.stdout


async def test_what_could_not_be_told_exits_with_2(fleet: Fleet) -> None:
    done = await fleet.bridge("plan", "--node", "nowhere")
    assert done.exit_code == 2 and "there is no node nowhere" in done.stderr
    await fleet.server.stop()
    done = await fleet.bridge("plan")
    assert done.exit_code == 2 and "cannot reach the API server" in done.stderr


async def test_status_shows_the_fleet_at_a_glance(fleet: Fleet) -> None:
    told = fleet.said("node-2")
    refusal = {
        "time": "2026-11-21T10:00:00Z",
        "plane": "dra",
        "reason": "held",
        "message": "acc0 is held by pod x",
    }
    fleet.tell("node-2", {**told, "lastRefusal": refusal})
    fleet.node("node-10", ready=False)
    done = await fleet.bridge("status")
    assert done.exit_code == 0, done.output
    header, *lines = done.stdout.splitlines()
    assert header.split() == [
        "NODE",
        "WANTED",
        "MODE",
        "PHASE",
        "FREE-DP",
        "FREE-DRA",
        "HELD-DP",
        "HELD-DRA",
        "READY",
        "LAST",
        "REFUSAL",
    ]
    assert [line.split()[0] for line in lines[:3]] == ["node-1", "node-2", "node-10"]
    assert lines[0].split()[1:9] == ["dual", "dual", "Settled", "3", "3", "0", "0", "yes"]
    assert lines[1].endswith("2026-11-21T10:00:00Z dra acc0 is held by pod x")
    assert "no daemon" in lines[2], "its NodeBridge is the last word of a daemon that no longer runs"
    assert lines[-1] == "3 node(s): 3 in dual; 1 not ready"
    rows = await fleet.json("status")
    assert rows[0]["groups"][0]["resource"] == ACC


async def test_status_of_one_node(fleet: Fleet) -> None:
    done = await fleet.bridge("status", "node-1")
    assert done.exit_code == 0, done.output
    assert "GROUP  RESOURCE" in done.stdout and "CONDITION" in done.stdout
    assert "the daemon was not asked for its holds: cannot run bridge in pod device-bridge/" in done.stderr
    for wrong, said in (("nowhere", "there is no node nowhere"), ("node-9", "has no NodeBridge")):
        if wrong == "node-9":
            fleet.registry.create("nodes", {"metadata": {"name": wrong}})
        missing = await fleet.bridge("status", wrong)
        assert missing.exit_code in (1, 2) and said in missing.stderr


async def test_holds_of_a_node_without_a_daemon(fleet: Fleet) -> None:
    fleet.node("node-5")
    done = await fleet.bridge("holds", "--node", "node-5")
    assert done.exit_code == 1 and "no daemon runs on node node-5" in done.stderr
    done = await fleet.bridge("devices", "--node", "nowhere")
    assert done.exit_code == 2 and "there is no node nowhere" in done.stderr
