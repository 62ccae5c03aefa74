"""Healing on a simulated node: who lost a race is moved by a taint where that harms nobody, and told where it would."""

from __future__ import annotations

from typing import Any

from bridge.sandbox import make
from tests.protocol.stage import DRIVER, RESOURCE, Node, acc, stage

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


async def lose(node: Node, name: str, **pod: Any) -> None:
    """Let a pod take the only device that the scheduler still believes free through DRA, and another make a claim of
    it on that belief."""
    await node.offers(acc(0))
    await node.box.wait_allocatable(RESOURCE, 1)
    with node.box.scheduler.stale():
        await node.run_pod("winner", limits={RESOURCE: 1})
        await node.offers()
        node.box.create_pod(make.pod(name, **pod))
        await node.box.observe.wait("EventFailedPrepareDynamicResources", f"default/{name}")


async def test_h43_a_claim_that_lost_a_race_is_moved_and_the_taint_is_taken_back() -> None:
    async with stage(devices=1) as node:
        node.box.create_template("t", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        since = len(node.box.observe)
        with node.box.scheduler.stale():
            await node.run_pod("winner", limits={RESOURCE: 1})
            await node.offers()
            node.box.create_pod(make.pod("loser", templates={"dev": "t"}))
            evicted = await node.box.observe.wait("Evicted", "default/loser", since=since)
        assert evicted.facts["device"] == acc(0)
        await node.box.wait_gone("pods", "loser")
        await node.offers()
        why = (await node.log.wait("healed"))["why"]
        assert why == "the claim has let go of it"
        assert node.container("winner").running and set(node.ledger()) == {acc(0)}
        (claim,) = [
            e
            for e in node.box.api.registry.select("events", "default")
            if e["reason"] == "DeviceConflictHealing" and e["involvedObject"]["kind"] == "ResourceClaim"
        ]
        assert (
            "pod default/winner has it already through the device plugin API" in claim["message"]
            or "not yet identified" in claim["message"]
        )
        assert await told(node, "loser", "DeviceConflictHealing")
