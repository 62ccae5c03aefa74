"""The whole daemon in hazards that no other file is about (`tests/README.md` has the table of them all)."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.ledger.holds import Plane
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, RESOURCE, acc, stage

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA
PAIR: dict[str, Any] = {
    "name": "acc",
    "kind": "device-node",
    "options": {"devices": [{"name": "pair", "nodes": [{"path": "/dev/a0"}, {"path": "/dev/b0"}]}]},
}
"""A device of two nodes: without one of them it is there, and broken."""


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


async def test_h9_a_claim_freed_by_a_forced_deletion_keeps_its_device_while_the_container_runs() -> None:
    """The controller deallocates it at once, and the scheduler gives its device to the next."""
    async with stage(ACC | {"binding": "off"}, devices=1) as node:
        for name in ("old", "new"):
            node.box.create_claim(name, make.request("acc"))
        await node.run_pod("old", claims={"dev": "old"}, stop_seconds=3600)
        container = node.container("old")
        node.box.delete_pod("old", force=True)
        await node.box.observe.wait("ClaimDeallocated", "default/old")
        node.box.create_pod(make.pod("new", claims={"dev": "new"}))
        said = await node.box.observe.wait("EventFailedPrepareDynamicResources", "default/new")
        assert f"{acc(0)} is held by claim default/old through DRA" in str(said.facts["message"])
        with pytest.raises(EndpointError, match="held by claim default/old"):
            await node.allocate(acc(0))
        assert container.running and node.nodes_of_any("new") == []
        node.box.runtime.crash(container)
        await node.box.wait_phase("new", "Running")
        assert node.ledger() == {acc(0): (DRA, "claim default/new")}


async def test_h17_a_successor_takes_over_what_its_predecessor_handed_out() -> None:
    async with stage(devices=4) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"})
        await node.run_pod("dp", limits={RESOURCE: 1})
        held, offered = node.ledger(), [acc(0), acc(1), acc(2)]
        await node.offers(*offered)
        await node.stop()
        assert node.offered() == offered, "slices outlive the change"
        await node.start()
        await node.offers(*offered)
        await node.lists({acc(1), acc(2), acc(3)}, {acc(0)})
        assert node.ledger().keys() == held.keys()
        node.box.create_claim("next", make.request("acc"))
        assert await node.run_pod("dra-2", claims={"dev": "next"}) == ["/dev/crypto/acc1"]
        assert await node.run_pod("dp-2", limits={RESOURCE: 1}) == ["/dev/crypto/acc2"]


async def test_h22_a_held_device_that_breaks_is_told_as_broken_and_stays_held() -> None:
    async with stage(PAIR, devices=0, start=False) as node:
        node.box.tree.add("/dev/a0", "/dev/b0")
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        await node.run_pod("p", limits={RESOURCE: 1})
        await node.lists({"pair"}, set())
        since = len(node.box.observe)
        node.box.tree.remove("/dev/b0")
        await node.lists(set(), {"pair"})
        seen = await node.box.observe.wait("HealthListed", since=since)
        assert seen.facts["unhealthy"] == ["pair"]
        await node.offers()
        assert node.ledger()["pair"][0] is DP, "a fault frees nothing"
        claim = node.claim_on("c", "pair")
        assert (await node.prepare(claim))[uid(claim)].error
        node.box.tree.add("/dev/b0")
        await node.lists({"pair"}, set())
        assert node.offered() == [] and node.ledger()["pair"][0] is DP


async def test_h27_a_monitor_is_given_what_is_offered_and_the_health_stream_has_the_rest() -> None:
    """What the device plugin holds is withdrawn, so no claim can name it, with admin access or without."""
    async with stage(devices=3) as node:
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.offers(acc(0), acc(1))
        node.box.create_claim("watch", make.request("acc", all_devices=True, admin=True))
        nodes = await node.run_pod("monitor", claims={"dev": "watch"})
        assert nodes == ["/dev/crypto/acc0", "/dev/crypto/acc1"]
        assert [node.health(acc(number)) for number in range(3)] == ["Healthy"] * 3


async def test_h32_a_pod_past_the_scheduler_takes_the_ordinary_path() -> None:
    """With a preset `nodeName` nobody has counted for it: the kubelet admits it only for what the list shows."""
    async with stage(devices=2) as node:
        held = node.claim_on("c", acc(0))
        assert not (await node.prepare(held))[uid(held)].error
        await node.lists({acc(1)}, {acc(0)})
        assert await node.run_pod("first", limits={RESOURCE: 1}, node=node.box.node) == ["/dev/crypto/acc1"]
        node.box.create_pod(make.pod("second", limits={RESOURCE: 1}, node=node.box.node))
        pod = await node.box.wait_phase("second", "Failed")
        assert pod["status"]["reason"] in ("UnexpectedAdmissionError", f"OutOf{RESOURCE}")
        assert {share: plane for share, (plane, _) in node.ledger().items()} == {acc(0): DRA, acc(1): DP}


async def test_h33_without_the_api_server_the_device_plugin_goes_on_and_claims_wait() -> None:
    async with stage(devices=3) as node:
        held, new = node.claim_on("held", acc(0)), node.claim_on("new", acc(1))
        answer = (await node.prepare(held))[uid(held)]
        node.box.api.unavailable()
        await node.allocate(acc(2))
        with pytest.raises(EndpointError, match="held by claim default/held"):
            await node.allocate(acc(0))
        assert (await node.prepare(held))[uid(held)] == answer, "known without asking"
        assert "default/new" in (await node.prepare(new))[uid(new)].error
        node.box.api.unavailable(False)
        assert not (await node.prepare(new))[uid(new)].error
        assert set(node.ledger()) == {acc(0), acc(1), acc(2)}


async def test_h36_all_means_all_that_are_offered() -> None:
    """`allocationMode: All` takes what the slices show: fewer than the node has while the device plugin holds some."""
    async with stage(devices=3) as node:
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.offers(acc(0), acc(1))
        node.box.create_claim("all", make.request("acc", all_devices=True))
        assert await node.run_pod("p", claims={"dev": "all"}) == ["/dev/crypto/acc0", "/dev/crypto/acc1"]
        assert {share: plane for share, (plane, _) in node.ledger().items()} == {
            acc(0): DRA,
            acc(1): DRA,
            acc(2): DP,
        }


async def test_h39_while_no_daemon_is_there_nothing_is_freed_and_its_return_ends_what_waits() -> None:
    async with stage() as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        await node.offers(acc(0), acc(1))
        await node.stop()
        assert node.offered() == [acc(0), acc(1)] and set(node.ledger()) == {acc(0)}
        node.box.delete_pod("p")
        await node.box.observe.wait("UnprepareFailed")
        assert node.box.get("pods", "p") is not None, "the kubelet lets it go only with the driver"
        await node.start()
        await node.box.wait_gone("pods", "p")
        await node.holds_are(set())
