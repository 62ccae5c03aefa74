"""Healing on a simulated node: who lost a race is moved by a taint where that harms nobody, and told where it would."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.daemon import run
from bridge.planes import healing
from bridge.platform.budget import Budget
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, DRIVER, NX, NX_DRIVER, NX_RESOURCE, RESOURCE, Node, acc, stage

UNBOUND = {**ACC, "binding": "off"}
"""Where the scheduler waits for binding conditions, races are lost before a pod is bound."""

KEY = f"{DRIVER}/held-by-device-plugin"


def taints(node: Node, device: str, driver: str = DRIVER) -> list[dict[str, Any]]:
    """The taints that stored slices have on a device."""
    return [
        taint
        for piece in node.box.slices(driver)
        for shown in piece["spec"].get("devices", ())
        if shown["name"] == device
        for taint in shown.get("taints", ())
    ]


def events(node: Node, name: str, reason: str = "") -> list[str]:
    """What was said about an object."""
    found = node.box.api.registry.select("events", "default")
    return [
        e["message"] for e in found if e["involvedObject"]["name"] == name and reason in ("", e["reason"])
    ]


async def told(node: Node, name: str, reason: str) -> str:
    """Wait for an event of the daemon's."""
    await node.box.until(lambda: bool(events(node, name, reason)), f"event {reason} on {name}")
    return events(node, name, reason)[0]


async def lose(node: Node, name: str, resource: str = RESOURCE, credits_: int = 1, **pod: Any) -> None:
    """Let a pod take through the device plugin API what the scheduler still believes free, and another claim it on
    that belief."""
    with node.box.scheduler.stale():
        await node.run_pod("winner", limits={resource: credits_})
        await node.holds_are({*node.ledger()})
        node.box.create_pod(make.pod(name, **pod))
        await node.box.observe.wait("EventFailedPrepareDynamicResources", f"default/{name}")


async def stands(node: Node, name: str) -> str:
    """Wait until a conflict is left as it is; the pod is told, goes on waiting, and no taint was ever set."""
    text = await told(node, name, "DeviceConflictStands")
    assert "and the pod is not moved by itself" in text
    assert "To have this one, delete " in text
    pod = node.box.pod(name)
    assert pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]
    assert not node.log.of("healing") and not node.box.observe.of("Evicted")
    return text


async def test_what_healing_asks_is_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counted(Budget):
        async def take(self) -> None:
            task = asyncio.current_task()
            asked.append(task.get_name() if task is not None else "")
            await super().take()

    monkeypatch.setattr(run, "Budget", Counted)
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_template("t", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", templates={"dev": "t"})
        await node.log.wait("healed")
    assert any(name.startswith("healing of claim default/loser") for name in asked)


async def test_h43_a_claim_that_lost_a_race_is_moved_and_the_taint_is_taken_back() -> None:
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_template("t", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        with node.box.scheduler.stale():
            await node.run_pod("winner", limits={RESOURCE: 1})
            node.box.create_pod(make.pod("loser", templates={"dev": "t"}))
            evicted = await node.box.observe.wait("Evicted", "default/loser")
        assert evicted.facts["device"] == acc(0)
        await node.box.wait_gone("pods", "loser")
        await node.offers()
        assert (await node.log.wait("healed"))["why"] == "the claim has let go of it"
        assert node.container("winner").running and set(node.ledger()) == {acc(0)}
        text = await told(node, "loser", "DeviceConflictHealing")
        assert f"{acc(0)} was allocated to this claim" in text and "through the device plugin API" in text


async def test_h43_the_next_pod_of_a_moved_claim_runs_on_another_device() -> None:
    async with stage(UNBOUND, devices=2) as node:
        node.box.create_template("t", make.request("acc"))
        await node.offers(acc(0), acc(1))
        await node.box.wait_allocatable(RESOURCE, 2)
        await node.box.until(lambda: node.healthy() == {acc(0), acc(1)}, "both devices")
        with node.box.scheduler.stale():
            await node.allocate(acc(0))
            node.box.create_pod(make.pod("loser", templates={"dev": "t"}))
            await node.box.observe.wait("Evicted", "default/loser")
        assert await node.run_pod("next", templates={"dev": "t"}) == ["/dev/crypto/acc1"]


async def test_h43_a_sharer_is_never_evicted() -> None:
    async with stage({**NX, "binding": "off"}, devices=0, start=False) as node:
        node.box.tree.add_nx_gzip(credits_=4)
        node.box.create_class("nx", NX_DRIVER)
        node.box.create_template("t", make.request("nx"))
        await node.start()
        await node.box.wait_allocatable(NX_RESOURCE, 4)
        await node.offers("nx-gzip", driver=NX_DRIVER)
        await node.run_pod("sharer", templates={"dev": "t"})
        await lose(node, "loser", NX_RESOURCE, 3, templates={"dev": "t"})
        text = await stands(node, "loser")
        assert "claim default/sharer-" in text and "a taint would evict that claim's pods" in text
        assert node.container("sharer").running and taints(node, "nx-gzip", NX_DRIVER) == []


async def test_h43_a_pod_with_admin_access_is_never_evicted() -> None:
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_claim("watch", make.request("acc", admin=True))
        node.box.create_claim("c", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await node.run_pod("watcher", claims={"dev": "watch"})
        await lose(node, "loser", claims={"dev": "c"})
        assert "claim default/watch has the device too" in await stands(node, "loser")
        assert node.container("watcher").running


async def test_h43_a_pod_that_knows_only_the_extended_resource_is_told() -> None:
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_class("old", DRIVER, extended="example.com/acc")
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", limits={"example.com/acc": 1})
        assert "the scheduler made the claim for an extended resource" in await stands(node, "loser")


async def test_h24_a_claim_that_tolerates_everything_is_left_after_a_while_and_never_gets_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(healing, "LIMIT_S", 0.5)
    async with stage(UNBOUND, devices=1) as node:
        anything = [{"operator": "Exists"}]
        node.box.create_claim("c", make.request("acc", tolerations=anything))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", claims={"dev": "c"})
        await node.log.wait("healing")
        text = await told(node, "loser", "DeviceConflictStands")
        assert "the claim tolerates it" in text
        await node.offers()
        assert set(node.ledger()) == {acc(0)} and node.nodes_of_any("loser") == []
        assert not node.box.observe.of("Evicted")


async def test_h25_where_the_cluster_has_no_taints_the_pod_is_told_who_has_its_device() -> None:
    async with stage(UNBOUND, devices=1, profile="1.32") as node:
        node.box.create_claim("c", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", claims={"dev": "c"})
        text = await told(node, "loser", "DeviceConflictStands")
        assert "this cluster has no device taints" in text and "To have this one, delete " in text
        await node.offers()
        assert not node.box.observe.of("Evicted") and node.nodes_of_any("loser") == []


async def test_a_taint_that_a_daemon_left_behind_is_taken_back_at_the_next_start() -> None:
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_claim("c", make.request("acc", tolerations=[{"operator": "Exists"}]))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", claims={"dev": "c"})
        await node.box.until(lambda: bool(taints(node, acc(0))), "the taint")
        assert [(t["key"], t["effect"]) for t in taints(node, acc(0))] == [(KEY, "NoExecute")]
        await node.stop()
        assert taints(node, acc(0)), "slices stay"
        node.box.delete_pod("loser", force=True)
        await node.start()
        await node.offers()
        assert set(node.ledger()) == {acc(0)}


async def test_a_conflict_that_stands_is_told_once_however_often_the_kubelet_asks() -> None:
    async with stage(UNBOUND, devices=1) as node:
        await node.allocate(acc(0))
        late = node.claim_on("c", acc(0))
        for _ in range(3):
            await node.prepare(late)
        text = await told(node, "c", "DeviceConflictStands")
        assert "no pod is known that names the claim" in text
        await node.prepare(late)
        assert len(node.log.of("refused")) == 4 and len(node.log.of("conflict stands")) == 1


async def test_refusals_are_told_on_the_claim_its_pods_and_the_node() -> None:
    async with stage(UNBOUND, devices=1, profile="1.32") as node:
        node.box.create_claim("c", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", claims={"dev": "c"})
        for about in ("c", "loser"):
            text = await told(node, about, "DeviceRefused")
            assert (
                f"{acc(0)} is held by" in text and "To have another device, delete this claim's pod" in text
            )
        with pytest.raises(EndpointError):
            await node.allocate(acc(0), acc(0) + "-nothing")
        assert "is no device of group acc" in await told(node, node.box.node, "DeviceRefused")


async def test_without_the_right_to_post_events_everything_else_goes_on() -> None:
    async with stage(UNBOUND, devices=1, start=False) as node:
        node.box.api.forbid("create", "events")
        node.box.create_template("t", make.request("acc"))
        await node.start()
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        with node.box.scheduler.stale():
            await node.run_pod("winner", limits={RESOURCE: 1})
            node.box.create_pod(make.pod("loser", templates={"dev": "t"}))
            await node.box.observe.wait("Evicted", "default/loser")
        await node.log.wait("healed")
        said = node.log.of("an event could not be posted; further ones are only counted")
        assert len(said) == 1
