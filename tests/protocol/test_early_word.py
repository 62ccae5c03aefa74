"""Early word on a simulated node: what a claim is seen allocated is reserved before the kubelet asks for it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from typing import Any

import pytest

from bridge.daemon.logs import fields_of
from bridge.ledger.holds import Phase
from bridge.planes import early_word, pursuit
from bridge.sandbox import make
from bridge.sandbox.cluster.resources import PROFILES
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, DRIVER, GROUP, RESOURCE, Node, acc, stage
from tests.protocol.test_daemon_recovery import gated

UNBOUND: dict[str, Any] = ACC | {"binding": "off"}
CLAIM_GETS, CLAIM_WATCHES = ("get", "resourceclaims"), ("watch", "resourceclaims")
PATCHES = ("patch", "resourceclaims/status")


def stuck_pod(node: Node, name: str, claim: str) -> None:
    """A pod of this node whose claim is allocated, but not to it: the kubelet never asks for it."""
    node.box.create_pod(make.pod(name, claims={"dev": claim}, node=node.box.node))


def deallocate(node: Node, claim: str) -> None:
    """Clear a claim's allocation, as its controller does."""
    gone = {"status": {"allocation": None}}
    node.box.api.registry.patch(
        "resourceclaims", claim, gone, namespace="default", kind="merge", subresource="status"
    )


async def claims_watched(node: Node) -> None:
    """Wait until a claim is watched; that is no write, so nothing else would tell."""
    api = node.box.api
    async with asyncio.timeout(20):
        while not api.requests[CLAIM_WATCHES]:
            api.watched.clear()
            await api.watched.wait()


def conditions(node: Node, claim: str) -> dict[str, set[str]]:
    """The true conditions of a claim's devices, by device."""
    found = node.box.get("resourceclaims", claim) or {}
    return {
        entry["device"]: {c["type"] for c in entry["conditions"] if c["status"] == "True"}
        for entry in found.get("status", {}).get("devices") or ()
    }


def carries_conditions(node: Node) -> bool:
    """Whether every published device waits for us."""
    devices = [d for s in node.box.slices(DRIVER) for d in s["spec"].get("devices", ())]
    return bool(devices) and all(d.get("bindingConditions") == [f"{DRIVER}/reserved"] for d in devices)


async def test_h4_what_a_claim_is_allocated_is_kept_for_it_before_the_kubelet_asks() -> None:
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.log.wait("reserved")
        await node.lists({acc(1)}, {acc(0)})
        assert node.phases() == {acc(0): Phase.RESERVED}
        with pytest.raises(EndpointError, match=f"{acc(0)} is reserved for claim default/c through DRA"):
            await node.allocate(acc(0))
        assert node.offered() == [acc(0), acc(1)], "the scheduler knows of it: it stays published"


async def test_h4_what_is_reserved_is_let_go_when_the_claim_is_deallocated_unprepared() -> None:
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.lists({acc(1)}, {acc(0)})
        deallocate(node, "c")
        node.box.delete_pod("p", force=True)
        await node.lists({acc(0), acc(1)}, set())
        await node.holds_are(set())


async def test_h5_a_claim_that_no_pod_names_any_longer_keeps_its_device_and_that_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(early_word, "ORPHAN_S", 0.1)
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.lists({acc(1)}, {acc(0)})
        node.box.delete_pod("p", force=True)
        said = "a claim keeps devices and no pod of this node names it; delete it if it is not needed"
        assert (await node.log.wait(said))["devices"] == [acc(0)]
        assert node.phases() == {acc(0): Phase.RESERVED}
        node.box.api.registry.delete("resourceclaims", "c", "default")
        await node.lists({acc(0), acc(1)}, set())
        assert len(node.log.of(said)) == 1


async def test_h1_a_reservation_that_lost_to_the_device_plugin_plane_is_told_and_prepare_refuses_too() -> (
    None
):
    async with stage(UNBOUND) as node:
        await node.allocate(acc(0))
        claim = node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        told = await node.log.wait("reservation lost")
        assert told["devices"] == [acc(0)] and "through the device plugin API" in told["why"]
        answer = (await node.prepare(claim))[claim["metadata"]["uid"]]
        assert "through the device plugin API" in answer.error


async def test_h8_of_two_claims_on_one_device_the_second_is_not_reserved_until_the_first_lets_go() -> None:
    async with stage(UNBOUND) as node:
        for name in ("first", "second"):
            node.claim_on(name, acc(0))
        stuck_pod(node, "p1", "first")
        await node.log.wait("reserved")
        stuck_pod(node, "p2", "second")
        assert "is reserved for claim default/first" in (await node.log.wait("reservation lost"))["why"]
        assert node.ledger()[acc(0)][1] == "claim default/first"
        since = len(node.log.records)
        deallocate(node, "first")
        assert (await node.log.wait("reserved", since))["holder"] == "claim default/second"
        assert node.ledger()[acc(0)][1] == "claim default/second"


async def test_h8_who_was_refused_is_tried_again_as_soon_as_that_hold_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pursuit, "GRACE_S", 3600.0)  # no watch of its own tells it
    async with stage(UNBOUND) as node:
        for name in ("first", "second"):
            node.claim_on(name, acc(0))
        stuck_pod(node, "p1", "first")
        await node.log.wait("reserved")
        stuck_pod(node, "p2", "second")
        await node.log.wait("reservation lost")
        since = len(node.log.records)
        deallocate(node, "first")
        node.box.delete_pod("p1", force=True)
        assert (await node.log.wait("reserved", since))["holder"] == "claim default/second"


async def test_h26_admin_access_reserves_nothing() -> None:
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0), adminAccess=True)
        node.claim_on("d", acc(1))
        stuck_pod(node, "p", "c")
        stuck_pod(node, "q", "d")
        await node.lists({acc(0)}, {acc(1)})
        await node.holds_are({acc(1)})
        await node.log.wait("reserved")
        assert [fields_of(r)["holder"] for r in node.log.of("reserved")] == ["claim default/d"]


async def test_h33_h34_what_happened_to_reserved_claims_behind_a_gap_is_found_out() -> None:
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.lists({acc(1)}, {acc(0)})
        node.box.api.unavailable()
        with pytest.raises(EndpointError, match="is reserved for claim default/c"):
            await node.allocate(acc(0))
        deallocate(node, "c")
        node.claim_on("d", acc(1))
        stuck_pod(node, "q", "d")
        node.box.delete_pod("p", force=True)
        node.box.api.registry.store.compact()
        node.box.api.unavailable(False)
        await node.lists({acc(0)}, {acc(1)})
        await node.holds_are({acc(1)})


async def test_h34_what_a_watch_tells_of_a_claim_is_read_before_a_reservation_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A watch may lag: what it tells is a reason to ask, and no proof (S4)."""
    monkeypatch.setattr(pursuit, "GRACE_S", 0.0)
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.lists({acc(1)}, {acc(0)})
        await claims_watched(node)
        asked, go = gated(node, "c", monkeypatch)
        deallocate(node, "c")
        async with asyncio.timeout(20):
            await asked.wait()
        assert node.phases() == {acc(0): Phase.RESERVED}
        go.set()
        await node.holds_are(set())


async def test_a_restart_asks_nothing_about_claims_that_are_prepared_already() -> None:
    async with stage(UNBOUND) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        await node.stop()
        before = Counter(node.box.api.requests)
        await node.start()
        node.claim_on("d", acc(1))
        stuck_pod(node, "q", "d")
        await node.lists(set(), {acc(0), acc(1)})
        asked = node.box.api.requests - before
        assert (asked[CLAIM_GETS], asked[CLAIM_WATCHES]) == (1, 0), "one look at the new claim"


async def test_a_reservation_outlives_a_restart_and_ends_with_its_claim() -> None:
    async with stage(UNBOUND) as node:
        node.claim_on("c", acc(0))
        stuck_pod(node, "p", "c")
        await node.lists({acc(1)}, {acc(0)})
        await node.stop()
        node.box.delete_pod("p", force=True)
        deallocate(node, "c")
        await node.start()
        await node.lists({acc(0), acc(1)}, set())
        await node.holds_are(set())


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_without_the_right_to_follow_pods_claims_are_decided_on_at_prepare(verb: str) -> None:
    async with stage(UNBOUND, start=False) as node:
        node.box.api.forbid(verb, "pods")
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        assert (
            "forbidden"
            in (await node.log.wait("no early word of pods, devices are decided on when the kubelet asks"))[
                "error"
            ]
        )
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]


async def test_pods_are_listed_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_word, "PAGE", 2)
    async with stage(UNBOUND, devices=5, start=False) as node:
        for number in range(5):
            node.claim_on(f"c{number}", acc(number))
            stuck_pod(node, f"p{number}", f"c{number}")
        await node.box.observe.wait("KubeletSynced")
        before = node.box.api.requests["list", "pods"]
        await node.start()
        await node.lists(set(), {acc(number) for number in range(5)})
        assert node.box.api.requests["list", "pods"] - before >= 3


async def test_a_few_claims_are_watched_and_the_rest_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pursuit, "WATCHES", 2)
    monkeypatch.setattr(pursuit, "GRACE_S", 0.1)
    async with stage(UNBOUND, devices=4) as node:
        before = Counter(node.box.api.requests)
        for number in range(4):
            node.claim_on(f"c{number}", acc(number))
            stuck_pod(node, f"p{number}", f"c{number}")
        await node.lists(set(), {acc(number) for number in range(4)})
        for number in range(4):
            deallocate(node, f"c{number}")
        await node.lists({acc(number) for number in range(4)}, set())
        await node.holds_are(set())
        assert (node.box.api.requests - before)[CLAIM_WATCHES] <= 4, "each watch, and one more in its place"


# Two-phase binding


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


async def test_q3_while_watches_on_claims_are_forbidden_they_are_asked_for() -> None:
    async with stage(start=False) as node:
        node.box.api.forbid(*CLAIM_WATCHES)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        await node.box.until(lambda: carries_conditions(node), "devices that wait for us")
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert len(node.log.of("no watches on claims, they are asked for instead")) == 1


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


async def test_a_claim_that_stays_allocated_long_after_it_was_unprepared_is_watched_and_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.planes.deallocation._FIRST_S", 2.0)
    monkeypatch.setattr("bridge.planes.pursuit.GRACE_S", 0.0)
    async with stage(UNBOUND) as node:
        claim = node.claim_on("c", acc(0))
        await node.prepare(claim)
        await node.unprepare(claim)
        requests = node.box.api.requests
        await claims_watched(node)
        asked = requests[CLAIM_GETS]
        deallocate(node, "c")
        await node.holds_are(set())
        assert requests[CLAIM_GETS] <= asked + 2, "its end was heard of, and read once or twice for proof"
