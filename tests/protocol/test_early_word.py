"""Early word on a simulated node: what a claim is seen allocated is reserved before the kubelet asks for it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from bridge.daemon.logs import fields_of
from bridge.ledger.holds import Phase
from bridge.planes import early_word, pursuit
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.claims import CLAIM_GETS, CLAIM_WATCHES, UNBOUND, claims_watched, deallocate, stuck_pod
from tests.protocol.stage import acc, stage
from tests.protocol.test_daemon_healing import told as told_of
from tests.protocol.test_daemon_recovery import gated


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
        text = await told_of(node, "c", "DeviceClaimUnused")
        assert text.startswith(f"{acc(0)} of group acc stays with this claim") and "delete the claim" in text
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
async def test_without_the_right_to_follow_pods_claims_are_decided_on_at_prepare_until_it_is_given(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_word, "AGAIN_S", 0.01)
    monkeypatch.setattr(early_word, "LONGEST_S", 0.05)
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
        said = node.log.of("no early word of pods, devices are decided on when the kubelet asks")
        assert len(said) == 1, "own pods alone are followed, and their lack is told once"
        node.box.api.allow(verb, "pods")
        await node.log.wait("early word of pods is back")
        node.claim_on("d", acc(1))
        stuck_pod(node, "q", "d")
        assert (await node.log.wait("reserved"))["holder"] == "claim default/d"


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
