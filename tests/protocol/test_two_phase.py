"""Two-phase binding on a simulated node: a DRA pod is bound only after its device is reserved (Q3)."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import Any

import pytest

from bridge.ledger.holds import Phase
from bridge.planes import binding, pursuit
from bridge.sandbox import make
from bridge.sandbox.cluster.resources import PROFILES
from tests.protocol.claims import (
    CLAIM_GETS,
    CLAIM_WATCHES,
    PATCHES,
    carries_conditions,
    claim_asked_for,
    conditions,
    deallocate,
    stuck_pod,
)
from tests.protocol.stage import ACC, DRIVER, GROUP, RESOURCE, acc, stage


async def test_q3_a_pod_is_bound_only_after_its_device_is_reserved() -> None:
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.create_claim("c", make.request("acc"))
        before = Counter(node.box.api.requests)
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        order = [record.getMessage() for record in node.log.records if record.name == "bridge.hand-out"]
        assert order == ["reserved", "binding condition", "handed out"]
        bound = node.box.observe.of("Bound", "default/p")[0].at
        assert bound >= node.box.observe.of("BindingConditionsPending", "default/p")[0].at
        assert conditions(node, "c") == {acc(0): {f"{DRIVER}/reserved"}}
        asked = node.box.api.requests - before
        assert (asked[CLAIM_WATCHES], asked[PATCHES]) == (1, 1)
        assert asked[CLAIM_GETS] <= 2, "Prepare's own, and at most one look at a bound pod's claim"


async def test_q3_reserved_is_said_after_the_kubelet_was_sent_the_news() -> None:
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        await node.box.until(lambda: acc(0) in node.healthy(), "a kubelet that reads the list")
        shown: list[set[str]] = []
        node.box.api.registry.store.listen(
            lambda change: shown.append(node.unhealthy()) if conditions(node, "c") else None
        )
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        assert shown and shown[0] == {acc(0)}


async def test_h2_a_claim_on_a_device_that_the_other_plane_has_is_sent_to_another_unbound() -> None:
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        offered: list[list[str]] = []

        def look(change: object) -> None:
            if any(f"{DRIVER}/held-elsewhere" in said for said in conditions(node, "c").values()):
                offered.append(node.offered())

        node.box.api.registry.store.listen(look)
        node.box.create_claim("c", make.request("acc"))
        with node.box.scheduler.stale():
            await node.allocate(acc(0))
            node.box.create_pod(make.pod("p", claims={"dev": "c"}))
            await node.log.wait("binding condition")
        await node.box.wait_phase("p", "Running")
        assert node.nodes("p") == ["/dev/crypto/acc1"]
        assert offered and offered[0] == [acc(1)], "withdrawn first, then the scheduler is told"
        bound = node.box.observe.of("Bound", "default/p")
        assert len(bound) == 1 and not node.box.observe.of("EventFailedPrepareDynamicResources")


async def test_h2_held_elsewhere_waits_for_the_slices_to_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(devices=3) as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        go, replace = asyncio.Event(), node.box.api._replace

        async def slow(request: Any, target: Any) -> Any:
            if target.resource.plural == "resourceslices":
                await go.wait()
            return await replace(request, target)

        monkeypatch.setattr(node.box.api, "_replace", slow)
        node.box.create_claim("c", make.request("acc"))
        with node.box.scheduler.stale():
            await node.allocate(acc(0))
            node.box.create_pod(make.pod("p", claims={"dev": "c"}))
            await node.log.wait("reservation lost")
            for number in range(3):  # as much again as it takes to say it
                other = node.claim_on(f"c{number}", acc(2))
                await node.prepare(other)
                await node.unprepare(other)
                deallocate(node, f"c{number}")
                await node.holds_are({acc(0)})
            assert conditions(node, "c") == {}, "the slices show the device still"
            go.set()
            await node.log.wait("binding condition")
        await node.box.wait_phase("p", "Running")
        assert node.nodes("p") == ["/dev/crypto/acc1"]


async def test_h2_with_no_other_device_the_pod_waits_unbound() -> None:
    async with stage(devices=1) as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.create_claim("c", make.request("acc"))
        with node.box.scheduler.stale():
            await node.allocate(acc(0))
            node.box.create_pod(make.pod("p", claims={"dev": "c"}))
            await node.box.observe.wait("BindingFailed", "default/p")
        await node.box.observe.wait("Unschedulable", "default/p")
        assert not node.box.observe.of("Bound", "default/p")
        assert node.phases() == {acc(0): Phase.GRANTED}


async def test_h6_a_claim_that_is_made_anew_while_its_pod_waits_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pursuit, "SILENT_S", 0.01)
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        with node.box.scheduler.paused():
            node.box.create_pod(make.pod("p", claims={"dev": "c"}))
            nominated = {"status": {"nominatedNodeName": node.box.node}}
            node.box.api.registry.patch(
                "pods", "p", nominated, namespace="default", kind="merge", subresource="status"
            )
            await claim_asked_for(node)
            node.box.create_claim("c", make.request("acc"))
        await node.box.wait_phase("p", "Running")


async def test_q3_what_was_not_answered_before_a_restart_is_answered_after_it() -> None:
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.api.forbid(*PATCHES)
        node.box.create_claim("c", make.request("acc"))
        node.box.create_pod(make.pod("p", claims={"dev": "c"}))
        await node.log.wait("no two-phase binding: a DRA pod that loses a race waits on this node")
        await node.box.until(lambda: not carries_conditions(node), "devices that wait for nobody")
        assert node.phases() == {acc(0): Phase.RESERVED}
        await node.stop()
        node.box.api.allow(*PATCHES)
        await node.start()
        await node.box.wait_phase("p", "Running")
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us again")


async def test_q3_while_watches_on_claims_are_forbidden_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pursuit, "AGAIN_S", 0.01)
    monkeypatch.setattr(pursuit, "AGAIN_LONGEST_S", 0.01)
    async with stage(start=False) as node:
        node.box.api.forbid(*CLAIM_WATCHES)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert len(node.log.of("no watches on claims, they are asked for instead")) == 1
        node.box.api.allow(*CLAIM_WATCHES)
        node.box.create_claim("d", make.request("acc"))
        assert await node.run_pod("q", claims={"dev": "d"}) == ["/dev/crypto/acc1"]
        await node.log.wait("claims are watched again")


@pytest.mark.parametrize(("verb", "what"), [PATCHES, ("associated-node:patch", "resourceclaims/driver")])
async def test_q3_without_the_rights_no_device_waits_for_us_and_the_missing_rule_is_named(
    verb: str, what: str
) -> None:
    async with stage(start=False) as node:
        node.box.api.forbid(verb, what)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        said = await node.log.wait("no two-phase binding: a DRA pod that loses a race waits on this node")
        assert f'RBAC lacks verb "{verb}" on "{what}" of API group "resource.k8s.io"' in said["why"]
        await node.offers(acc(0), acc(1))
        assert not carries_conditions(node)
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]


async def test_q3_a_right_that_is_taken_and_given_ends_and_begins_binding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binding, "AGAIN_S", 0.01)
    monkeypatch.setattr(binding, "LONGEST_S", 0.1)
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.api.forbid(*PATCHES)
        node.box.create_claim("c", make.request("acc"))
        node.box.create_pod(make.pod("p", claims={"dev": "c"}))
        await node.box.until(lambda: not carries_conditions(node), "devices that wait for nobody")
        node.box.api.allow(*PATCHES)
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us again")
        await node.box.wait_phase("p", "Running")
        assert conditions(node, "c") == {acc(0): {f"{DRIVER}/reserved"}}


async def test_h25_a_cluster_that_does_not_keep_the_conditions_is_noticed_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = PROFILES["1.37"]
    lacking = dataclasses.replace(known, features=known.features - {"DRADeviceBindingConditions"})
    monkeypatch.setitem(PROFILES, "1.37", lacking)
    async with stage() as node:
        said = await node.log.wait("no two-phase binding: a DRA pod that loses a race waits on this node")
        assert "gate DRADeviceBindingConditions" in said["why"]
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert not carries_conditions(node) and conditions(node, "c") == {}


async def test_h25_an_old_release_is_not_asked_to_keep_them() -> None:
    async with stage(profile="1.32") as node:
        said = await node.log.wait("no two-phase binding: a DRA pod that loses a race waits on this node")
        assert "Kubernetes 1.32 has no binding conditions" in said["why"]
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]


@pytest.mark.parametrize(
    ("group", "waits"),
    [
        ({"mode": "dra"}, False),
        ({"mode": "dra", "binding": "on"}, True),
        ({"sharing": "partition", "partition": {"devicePlugin": 1}}, False),
        ({"binding": "off"}, False),
        ({}, True),
    ],
)
async def test_auto_binds_in_two_phases_only_where_both_planes_race(
    group: dict[str, Any], waits: bool
) -> None:
    async with stage(ACC | group, devices=3) as node:
        await node.box.until(lambda: bool(node.offered()), "devices")
        assert carries_conditions(node) is waits
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert bool(conditions(node, "c")) is waits


async def test_h26_admin_access_is_told_that_it_may_go_on_whoever_has_the_device() -> None:
    async with stage() as node:
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        await node.allocate(acc(0))
        await node.offers(acc(1))
        node.claim_on(
            "c",
            acc(0),
            adminAccess=True,
            bindingConditions=[f"{DRIVER}/reserved"],
            bindingFailureConditions=[f"{DRIVER}/held-elsewhere"],
        )
        stuck_pod(node, "p", "c")
        await node.box.until(lambda: bool(conditions(node, "c")), "an answer")
        assert conditions(node, "c") == {acc(0): {f"{DRIVER}/reserved"}}


async def test_h31_pods_of_extended_resources_are_reserved_for_too() -> None:
    async with stage(ACC | {"mode": "dra", "binding": "on"}) as node:
        node.box.create_class("again", DRIVER, extended=RESOURCE)
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        assert await node.run_pod("p", limits={RESOURCE: 1}) == ["/dev/crypto/acc0"]
        assert (await node.log.wait("reserved"))["group"] == GROUP
