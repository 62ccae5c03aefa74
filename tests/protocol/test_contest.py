"""A device that DRA still holds and the scheduler takes for free: one claim is refused for it, and no second."""

from __future__ import annotations

import pytest

from bridge.ledger.holds import Phase
from bridge.sandbox import make
from bridge.sandbox.kubelet.runtime import Container
from tests.protocol.claims import UNBOUND, carries_conditions, conditions, deallocate, stuck_pod
from tests.protocol.stage import DRIVER, Node, acc, stage


async def outlived(node: Node) -> Container:
    """A container that goes on although its pod was deleted by force and its claim is deallocated (H9)."""
    node.box.create_claim("old", make.request("acc"))
    await node.run_pod("old", claims={"dev": "old"}, stop_seconds=3600)
    container = node.container("old")
    node.box.delete_pod("old", force=True)
    await node.box.until(lambda: not node.allocated("old"), "a claim that is deallocated")
    assert node.phases() == {acc(0): Phase.PREPARED} and acc(0) in node.offered()
    return container


async def test_h9_a_claim_is_refused_once_for_a_device_that_is_still_prepared_and_gets_another_unbound() -> (
    None
):
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        container = await outlived(node)
        offered: list[list[str]] = []

        def look(change: object) -> None:
            if any(f"{DRIVER}/held-elsewhere" in said for said in conditions(node, "new").values()):
                offered.append(node.offered())

        node.box.api.registry.store.listen(look)
        node.box.create_claim("new", make.request("acc"))
        assert await node.run_pod("new", claims={"dev": "new"}) == ["/dev/crypto/acc1"]
        assert offered and offered[0] == [acc(1)], "withdrawn first, then the scheduler is told"
        assert len(node.box.observe.of("BindingFailed", "default/new")) == 1
        assert len(node.log.of("reservation lost")) == 1
        node.box.runtime.crash(container)
        await node.offers(acc(0), acc(1))
        await node.holds_are({acc(1)})


async def test_h9_what_prepare_refused_for_another_claim_is_offered_to_no_third() -> None:
    async with stage(UNBOUND, devices=3) as node:
        container = await outlived(node)
        claim = node.claim_on("new", acc(0))
        uid = claim["metadata"]["uid"]
        assert "is held by claim default/old" in (await node.prepare(claim))[uid].error
        await node.offers(acc(1), acc(2))
        node.box.create_claim("third", make.request("acc"))
        assert await node.run_pod("third", claims={"dev": "third"}) == ["/dev/crypto/acc1"]
        node.box.runtime.crash(container)
        await node.offers(acc(0), acc(1), acc(2))
        assert not (await node.prepare(claim))[uid].error


async def test_h26_admin_access_on_a_device_that_is_held_withdraws_nothing() -> None:
    async with stage(UNBOUND) as node:
        await outlived(node)
        claim = node.claim_on("admin", acc(0), adminAccess=True)
        stuck_pod(node, "admin", "admin")
        assert not (await node.prepare(claim))[claim["metadata"]["uid"]].error
        other = node.claim_on("other", acc(1))  # as much again as it takes to withdraw something
        stuck_pod(node, "other", "other")
        await node.log.wait("reserved")
        await node.prepare(other)
        assert node.offered() == [acc(0), acc(1)]


@pytest.mark.parametrize("binding", ["on", "off"])
async def test_h13_a_claim_that_was_allocated_anew_is_not_answered_what_it_had(binding: str) -> None:
    async with stage(UNBOUND | {"binding": binding}) as node:
        await node.offers(acc(0), acc(1))
        claim = node.claim_on("c", acc(0))
        uid = claim["metadata"]["uid"]
        first = (await node.prepare(claim))[uid]
        deallocate(node, "c")
        result = {"request": "req", "driver": DRIVER, "pool": node.box.node, "device": acc(1)}
        status = {"status": {"allocation": {"devices": {"results": [result], "config": []}}}}
        node.box.api.registry.patch(
            "resourceclaims", "c", status, namespace="default", kind="merge", subresource="status"
        )
        since = len(node.log.records)
        stuck_pod(node, "p", "c")
        assert (await node.log.wait("reserved", since))["devices"] == [acc(1)]
        second = (await node.prepare(claim))[uid]
        assert [d.device_name for d in first.devices] == [acc(0)]
        assert [d.device_name for d in second.devices] == [acc(1)]
        await node.unprepare(claim)
        deallocate(node, "c")
        await node.holds_are(set())
