"""What claims and classes may ask for: shares, admin access, configuration; on clusters that have more or less."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bridge.ledger.holds import Plane
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import NX, NX_DRIVER, NX_RESOURCE, RESOURCE, Node, acc, stage

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA
NX_NODE = "/dev/crypto/nx-gzip"


def nx_config(interval: str) -> dict[str, Any]:
    """An `NxConfig` as the existing driver for Power writes it."""
    return {
        "apiVersion": "device.power.ibm.com/v1alpha1",
        "kind": "NxConfig",
        "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}},
    }


async def nx(node: Node, credits_: int) -> None:
    """Give the node an accelerator with so many credits, and start the daemon."""
    node.box.tree.add_nx_gzip(credits_)
    node.box.create_class("nx", NX_DRIVER)
    await node.box.observe.wait("KubeletSynced")
    await node.start()


def credits_offered(node: Node) -> list[str]:
    """The consumable amounts in the slices."""
    devices = [d for s in node.box.slices(NX_DRIVER) for d in s["spec"].get("devices", ())]
    return [device["capacity"]["credits"]["value"] for device in devices]


def ids(*numbers: int) -> set[str]:
    return {f"nx-gzip--{number}" for number in numbers}


async def test_h30_nx_gzip_is_shared_by_both_planes_with_consumable_capacity() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        await node.lists(ids(0, 1, 2, 3), set(), NX_RESOURCE)
        await node.box.until(lambda: credits_offered(node) == ["4"], "four credits")
        assert await node.run_pod("dp", limits={NX_RESOURCE: 1}) == [NX_NODE]
        await node.box.until(lambda: credits_offered(node) == ["3"], "three credits")
        node.box.create_claim("two", make.request("nx", capacity={"credits": "2"}))
        assert await node.run_pod("dra", claims={"dev": "two"}) == [NX_NODE]
        (result,) = node.allocated("two")
        assert result["consumedCapacity"] == {"credits": "2"} and result["shareID"] in node.ledger()
        # Of 4 credits 1 is the device plugin's and 2 are the claim's: one more fits, wherever it is taken.
        await node.lists(ids(2, 3), ids(0, 1), NX_RESOURCE)
        assert credits_offered(node) == ["3"], "what DRA itself has out stays in its own capacity"
        assert await node.run_pod("last", limits={NX_RESOURCE: 1}) == [NX_NODE]
        await node.box.until(lambda: credits_offered(node) == ["2"], "two credits")
        node.box.create_claim("more", make.request("nx"))
        node.box.create_pod(make.pod("waits", claims={"dev": "more"}))
        await node.box.observe.wait("Unschedulable", "default/waits")
        with pytest.raises(EndpointError, match="is held by"):
            await node.allocate("nx-gzip--0", resource=NX_RESOURCE)
        node.box.delete_pod("dra")
        await node.box.wait_gone("pods", "dra")
        node.box.api.registry.delete("resourceclaims", "two", "default")
        await node.box.wait_phase("waits", "Running")


async def test_the_last_free_credit_is_published_and_can_be_claimed() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 2)
        assert await node.run_pod("dp", limits={NX_RESOURCE: 1}) == [NX_NODE]
        await node.box.until(
            lambda: credits_offered(node) == ["1"], "one credit: the API takes no step in it"
        )
        node.box.create_claim("last", make.request("nx"))
        assert await node.run_pod("dra", claims={"dev": "last"}) == [NX_NODE]


async def test_nx_gzip_is_shared_by_both_planes_by_named_shares_where_capacity_cannot_be_consumed() -> None:
    async with stage(NX, profile="1.34", start=False) as node:
        await nx(node, 3)
        names = ["nx-gzip--0", "nx-gzip--1", "nx-gzip--2"]
        await node.offers(*names, driver=NX_DRIVER)
        assert len(node.log.of("this cluster has no consumable capacity: each share is a device")) == 1
        await node.run_pod("dp", limits={NX_RESOURCE: 1})
        await node.offers(*names[:2], driver=NX_DRIVER)
        node.box.create_template("t", make.request("nx"))
        assert await node.run_pod("a", templates={"dev": "t"}) == [NX_NODE]
        assert await node.run_pod("b", templates={"dev": "t"}) == [NX_NODE]
        assert {share: plane for share, (plane, _) in node.ledger().items()} == {
            "nx-gzip--0": DRA,
            "nx-gzip--1": DRA,
            "nx-gzip--2": DP,
        }
        await node.lists(ids(2), ids(0, 1), NX_RESOURCE)
        node.box.create_pod(make.pod("waits", templates={"dev": "t"}))
        await node.box.observe.wait("Unschedulable", "default/waits", within=20)


async def test_h30_more_shares_than_there_are_are_refused() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 2)
        share = {"shareID": "0a4c3a7e-1111-4222-8333-444455556666", "consumedCapacity": {"credits": "3"}}
        greedy = node.claim_on("greedy", "nx-gzip", driver=NX_DRIVER, **share)
        answer = (await node.prepare(greedy, driver=NX_DRIVER))[greedy["metadata"]["uid"]]
        assert "nx-gzip has 2 credits, 3 were asked for" in answer.error and node.holds() == []


async def test_h26_admin_access_is_given_on_held_devices_and_holds_nothing() -> None:
    async with stage() as node:
        await node.run_pod("user", limits={RESOURCE: 1})
        held = node.claim_on("tenant", acc(0))
        await node.prepare(held)
        await node.offers(acc(0))
        before = node.ledger()
        watch = node.claim_on("watch", acc(0), acc(1), adminAccess=True)
        answer = (await node.prepare(watch))[watch["metadata"]["uid"]]
        assert not answer.error
        assert [list(device.cdi_device_ids) for device in answer.devices] == [
            [f"device-bridge.io/acc={acc(0)}--admin"],
            [f"device-bridge.io/acc={acc(1)}--admin"],
        ]
        assert node.ledger() == before, "admin access never holds"
        spec = json.loads((node.box.paths.cdi_static / "device-bridge.io-acc.json").read_text())
        edits = {device["name"]: device["containerEdits"]["deviceNodes"] for device in spec["devices"]}
        assert [entry["permissions"] for entry in edits[f"{acc(0)}--admin"]] == ["r"], "to look, not to touch"
        assert [entry.get("permissions", "rwm") for entry in edits[acc(0)]] == ["rw"]
        await node.unprepare(watch)
        assert node.ledger() == before
        await node.unprepare(held)


async def test_a_configuration_reaches_the_container_class_before_claim() -> None:
    async with stage(NX, start=False) as node:
        node.box.create_class("tuned", NX_DRIVER, parameters=nx_config("Short"))
        await nx(node, 4)
        plain = make.claim("plain", make.claim_spec(make.request("tuned")))
        node.box.create("resourceclaims", plain)
        spec = make.claim_spec(make.request("tuned"), driver=NX_DRIVER, parameters=nx_config("Long"))
        node.box.create("resourceclaims", make.claim("own", spec))
        node.box.create_claim("bare", make.request("nx"))
        for name in ("plain", "own", "bare"):
            await node.run_pod(f"p-{name}", claims={"dev": name})
        env = {name: node.container(f"p-{name}").got.env for name in ("plain", "own", "bare")}
        assert env["plain"]["NX_DEVICE_TIMESLICE_INTERVAL"] == "Short", "the class speaks"
        assert env["own"]["NX_DEVICE_TIMESLICE_INTERVAL"] == "Long", "the claim has the last word"
        assert env["own"]["NX_DEVICE"] == "nx-gzip"
        assert env["own"]["NX_DEVICE_SHARING_STRATEGY"] == "TimeSlicing"
        assert "NX_DEVICE" not in env["bare"] and env["bare"]["NX_DEVICE_CLAIM"] == "added"
        uid = node.box.get("resourceclaims", "bare")["metadata"]["uid"]  # type: ignore[index]
        files = [path.name for path in node.box.paths.cdi_dynamic.iterdir()]
        assert len(files) == 2 and not any(uid in name for name in files), (
            "no file where nothing asks for one"
        )


async def test_other_drivers_of_the_same_claim_are_left_alone() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        ours = node.claim_on("mixed", "nx-gzip--0", driver=NX_DRIVER)
        mixed = copy.deepcopy(ours)
        results = mixed["status"]["allocation"]["devices"]["results"]
        results.append({"request": "req", "driver": "gpu.example.com", "pool": "p", "device": "gpu-0"})
        mixed["status"]["allocation"]["devices"]["config"] = [
            {
                "source": "FromClaim",
                "requests": [],
                "opaque": {"driver": "gpu.example.com", "parameters": {"kind": "GpuConfig", "cards": "all"}},
            }
        ]
        mixed = node.box.api.registry.replace("resourceclaims", mixed, "status")
        answer = (await node.prepare(mixed, driver=NX_DRIVER))[mixed["metadata"]["uid"]]
        assert not answer.error
        assert [device.device_name for device in answer.devices] == ["nx-gzip--0"]
        assert list(answer.devices[0].cdi_device_ids) == ["device-bridge.io/nx=nx-gzip"]


async def test_an_owner_inside_the_container_goes_by_cdi_on_both_planes() -> None:
    group = {
        "name": "acc",
        "kind": "device-node",
        "options": {"include": ["/dev/crypto/acc*"], "owner": {"uid": 1000, "gid": 1000, "mode": "0660"}},
    }
    async with stage(group) as node:
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("dra", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert await node.run_pod("dp", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]
        for pod in ("dra", "dp"):
            (got,) = node.container(pod).got.nodes
            assert (got.uid, got.gid, got.mode) == (1000, 1000, 0o660)


async def test_one_pod_may_use_both_planes() -> None:
    async with stage(devices=3) as node:
        node.box.create_claim("c", make.request("acc"))
        nodes = await node.run_pod("both", limits={RESOURCE: 1}, claims={"dev": "c"})
        assert nodes == ["/dev/crypto/acc0", "/dev/crypto/acc2"]


async def test_the_oldest_cluster_with_dra_is_served_through_v1beta1() -> None:
    async with stage(profile="1.32") as node:
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("dra", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert await node.run_pod("dp", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]
        assert node.box.observe.of("DriverRegistered")[0].facts["service"] == "v1beta1.DRAPlugin"
        await node.offers(acc(0))
