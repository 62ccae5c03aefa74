"""Claims that the kubelet never unprepares, in the whole daemon: freed once they are gone and proven unused."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.daemon import orphans, sources
from bridge.ledger.holds import Phase
from bridge.sandbox import make
from tests.protocol.claims import deallocate
from tests.protocol.stage import NX, Clock, acc, stage
from tests.protocol.test_daemon_features import nx
from tests.protocol.test_daemon_healing import told
from tests.protocol.test_daemon_recovery import tuned_pod

FREED = "unprepared a claim that is gone: the kubelet will not"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The daemon's clock of evidence; it looks for orphans without pausing."""
    moved = Clock()
    monkeypatch.setattr(sources, "time", moved)
    monkeypatch.setattr(orphans, "LOOK_S", 0.005)
    return moved


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


async def test_h21_a_claim_that_is_gone_and_never_unprepared_is_freed_with_proof(clock: Clock) -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error
        await clock.go(sources.STABLE_S + 1)
        await clock.go(3600)
        assert node.phases() == {acc(0): Phase.PREPARED}, "the claim is still there"
        asked = node.box.api.requests["get", "resourceclaims"]
        await clock.looked(20)
        assert node.box.api.requests["get", "resourceclaims"] == asked, "and not asked for at each look"
        node.box.api.registry.delete("resourceclaims", "c", "default")
        clock.skip(2 * 3600)
        assert (await node.log.wait(FREED))["claim"] == "default/c"
        text = await told(node, node.box.node, "DeviceClaimOrphaned")
        assert text.startswith(f"{acc(0)} of group acc is freed: claim default/c is gone")
        await node.holds_are(set())
        await node.allocate(acc(0))


async def test_a_claim_that_lives_on_unallocated_and_is_never_unprepared_is_told_with_what_to_do(
    clock: Clock,
) -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error
        deallocate(node, "c")
        await clock.go(sources.STABLE_S + 1)
        for _ in range(4):
            await clock.go(1800)
        said = await node.log.wait("kept without an allocation")
        assert said["claim"] == "claim default/c" and said["devices"] == [acc(0)]
        text = await told(node, "c", "DeviceKept")
        assert f"`bridge release acc/{acc(0)} --yes-i-know`" in text
        assert await told(node, node.box.node, "DeviceKept") == text
        assert node.phases() == {acc(0): Phase.PREPARED}
        assert len(node.log.of("kept without an allocation")) == 1


async def test_h21_another_claim_under_the_name_frees_the_one_that_is_gone(clock: Clock) -> None:
    async with stage() as node:
        old = node.claim_on("c", acc(0))
        await node.prepare(old)
        node.box.api.registry.delete("resourceclaims", "c", "default")
        new = node.claim_on("c", acc(0))
        assert (await node.prepare(new))[uid(new)].error
        await clock.looked()
        clock.skip(sources.STABLE_S + 1)
        await node.log.wait(FREED)
        await node.holds_are(set())
        assert not (await node.prepare(new))[uid(new)].error


async def test_h21_while_the_runtime_runs_a_pod_that_nobody_knows_nothing_is_freed(clock: Clock) -> None:
    """The kubelet lost its state, the pod was deleted by force: its container has the device all the same (H9)."""
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        claim = await tuned_pod(node, stop_seconds=3600)
        (share,) = node.ledger()
        container = node.container("p")
        await node.box.kubelet.kill()
        node.box.delete_pod("p", force=True)
        registry = node.box.api.registry
        registry.patch(
            "resourceclaims", "tuned", {"metadata": {"finalizers": None}}, namespace="default", kind="merge"
        )
        registry.delete("resourceclaims", "tuned", "default")
        node.box.kubelet.dra.cache.claims.clear()
        await node.box.kubelet.start()
        await clock.looked()
        clock.skip(sources.STABLE_S + 1)
        await clock.looked(20)
        assert node.phases() == {share: Phase.PREPARED}
        assert node.log.of(FREED) == []
        assert any(uid(claim) in file.name for file in node.box.paths.cdi_dynamic.iterdir())
        assert container.running
        node.box.runtime.crash(container)
        await node.log.wait(FREED)
        await node.holds_are(set())
        assert not any(uid(claim) in file.name for file in node.box.paths.cdi_dynamic.iterdir())


async def test_h21_an_unprepare_that_comes_after_all_is_answered(clock: Clock) -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        await node.prepare(claim)
        node.box.api.registry.delete("resourceclaims", "c", "default")
        await clock.looked()
        clock.skip(sources.STABLE_S + 1)
        await node.holds_are(set())
        assert not (await node.unprepare(claim))[uid(claim)].error
        assert node.holds() == []


async def test_h21_a_claim_that_a_pod_names_is_not_asked_for_though_no_list_has_it(clock: Clock) -> None:
    """Kubelets before 1.34 list no claims: a node at rest must ask nothing even so."""
    async with stage() as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        node.box.kubelet.dra.cache.claims.clear()
        await clock.looked()
        clock.skip(sources.STABLE_S + 1)
        await clock.looked()
        asked = node.box.api.requests["get", "resourceclaims"]
        await clock.go(7200)
        await clock.looked(20)
        assert node.box.api.requests["get", "resourceclaims"] == asked
        assert node.phases() == {acc(0): Phase.PREPARED}
