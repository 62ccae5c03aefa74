"""The daemon says in its NodeBridge how the node stands: on a change only, whatever the API server does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from bridge import __version__
from bridge.daemon import node_bridge
from bridge.ledger.holds import Phase
from bridge.planes.status import Facts, status_of
from bridge.sandbox.cluster.resources import NODE_BRIDGES
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, RESOURCE, Node, acc, stage

Json = dict[str, Any]

APPLY, GET, CREATE = ("patch", "nodebridges/status"), ("get", "nodebridges"), ("create", "nodebridges")
ABSENT = "no NodeBridge is written: the cluster does not have that kind"


class Looks:
    """Every look at how the node stands, whether there was anything to write or not."""

    def __init__(self) -> None:
        self.count = 0
        self._seen = asyncio.Event()

    def __call__(self, facts: Facts, before: Mapping[str, Any], now: float) -> Json:
        self.count += 1
        self._seen.set()
        return status_of(facts, before, now)

    async def more(self, count: int = 2) -> None:
        """Wait until so many more were over; the last of them may not be."""
        until = self.count + count
        async with asyncio.timeout(20):
            while self.count < until:
                self._seen.clear()
                await self._seen.wait()


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Here is no fleet, and nobody pays for requests."""
    made = Looks()
    monkeypatch.setattr(node_bridge, "status_of", made)
    monkeypatch.setattr("bridge.platform.budget.SPREAD_S", 0.0)
    monkeypatch.setattr(node_bridge, "PACE_S", 0.05)
    monkeypatch.setattr("bridge.daemon.counting.PACE_S", 0.05)
    monkeypatch.setattr("bridge.daemon.checks.BEAT_S", 0.05)
    return made


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with stage(ACC, devices=3) as made:
        yield made


def found(node: Node) -> Json:
    return node.box.get("nodebridges", node.box.node) or {}


def status(node: Node) -> Json:
    said: Json = found(node).get("status") or {}
    return said


def condition(node: Node, kind: str) -> Json:
    return next((one for one in status(node).get("conditions", ()) if one["type"] == kind), {})


async def shows(node: Node, **wanted: object) -> None:
    """Wait until the status has these fields."""
    await node.box.until(lambda: status(node).items() >= wanted.items(), f"a NodeBridge with {wanted}")


def planes(device_plugin: int, dra: int) -> Json:
    return {"devicePlugin": device_plugin, "dra": dra}


async def test_it_shows_how_the_node_stands_and_goes_with_it(node: Node) -> None:
    await shows(node, free=planes(3, 3), held=planes(0, 0))
    made = found(node)
    (owner,) = made["metadata"]["ownerReferences"]
    uid = node.box.get("nodes", node.box.node)["metadata"]["uid"]  # type: ignore[index]
    assert owner == {"apiVersion": "v1", "kind": "Node", "name": node.box.node, "uid": uid}
    assert made["spec"] == {}
    assert {key: made["status"][key] for key in ("version", "wanted", "mode", "phase")} == {
        "version": __version__,
        "wanted": "dual",
        "mode": "dual",
        "phase": "Settled",
    }
    assert {one["type"]: one["status"] for one in made["status"]["conditions"]} == {
        "Ready": "True",
        "Switched": "True",
        "EvidenceComplete": "True",
    }
    (group,) = made["status"]["groups"]
    assert (group["name"], group["devices"]) == ("acc", 3)
    await node.allocate(acc(2))
    await shows(node, free=planes(2, 2), held=planes(1, 0))
    await node.prepare(node.claim_on("c", acc(0)))
    await shows(node, free=planes(1, 1), held=planes(1, 1))


async def test_what_changes_nothing_that_is_shown_is_not_written(node: Node, looks: Looks) -> None:
    await shows(node, free=planes(3, 3))
    held = node.claim_on("c", acc(0))
    await node.prepare(held)
    await shows(node, held=planes(0, 1))
    requests = node.box.api.requests
    assert requests[GET] == requests[CREATE] == 1
    written = requests[APPLY]
    await asyncio.gather(looks.more(1), node.unprepare(held))
    assert node.phases() == {acc(0): Phase.RELEASING}
    with pytest.raises(EndpointError):
        await node.allocate(acc(0))
    await node.box.until(lambda: "lastRefusal" in status(node), "the refusal")
    with pytest.raises(EndpointError):
        await node.allocate(acc(0))
    await node.allocate(acc(2))
    await shows(node, held=planes(1, 1))
    assert requests[APPLY] == written + 2, "the refusal, told once, and the pod's device"
    assert requests[GET] == requests[CREATE] == 1


async def test_a_start_that_changes_nothing_writes_nothing(node: Node, looks: Looks) -> None:
    await shows(node, free=planes(3, 3))
    stored = found(node)
    await node.stop()
    written = node.box.api.requests[APPLY]
    await node.start()
    await looks.more(1)
    await node.allocate(acc(2))
    await shows(node, held=planes(1, 0))
    assert node.box.api.requests[CREATE] == 1
    assert node.box.api.requests[APPLY] == written + 1
    was = {one["type"]: one["lastTransitionTime"] for one in stored["status"]["conditions"]}
    now = {one["type"]: one["lastTransitionTime"] for one in status(node)["conditions"]}
    assert was == now, "times of conditions outlast the daemon"
    assert status(node)["groups"][0]["since"] == stored["status"]["groups"][0]["since"]


async def test_the_last_refusal_is_shown_and_outlasts_the_daemon(node: Node) -> None:
    held = node.claim_on("c", acc(0))
    await node.prepare(held)
    with pytest.raises(EndpointError):
        await node.allocate(acc(0))
    await node.box.until(lambda: "lastRefusal" in status(node), "the refusal")
    refusal = status(node)["lastRefusal"]
    assert (refusal["plane"], refusal["reason"]) == ("device-plugin", "held")
    assert f"{acc(0)} is held by claim default/c through DRA since" in refusal["message"]
    await node.stop()
    await node.start()
    await node.allocate(acc(1))
    await shows(node, held=planes(1, 1))
    assert status(node)["lastRefusal"] == refusal


async def test_without_the_kind_the_daemon_works_and_says_so_once() -> None:
    async with stage(ACC, start=False) as node:
        node.box.api.registry.withdraw(NODE_BRIDGES)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        said = await node.log.wait(ABSENT)
        assert said["mend"] == "apply kustomize/base/node-bridge-crd.yaml"
        await node.run_pod("p", limits={RESOURCE: 1})
        assert len(node.log.of(ABSENT)) == 1


async def test_a_kind_that_is_installed_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_bridge, "WITHOUT_S", 0.05)
    async with stage(ACC, start=False) as node:
        node.box.api.registry.withdraw(NODE_BRIDGES)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        await node.log.wait(ABSENT)
        node.box.api.registry.serve(NODE_BRIDGES)
        await shows(node, free=planes(2, 2))
        assert len(node.log.of(ABSENT)) == 1


async def test_a_missing_right_is_named_once(monkeypatch: pytest.MonkeyPatch, looks: Looks) -> None:
    monkeypatch.setattr(node_bridge, "WITHOUT_S", 0.05)
    async with stage(ACC, start=False) as node:
        node.box.api.forbid(*APPLY)
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        said = await node.log.wait("the NodeBridge cannot be written")
        rule = 'verb "patch" on resource "nodebridges/status" of API group "device-bridge.io"'
        assert rule in said["error"]
        await looks.more(3)
        assert len(node.log.of("the NodeBridge cannot be written")) == 1
        node.box.api.allow(*APPLY)
        await shows(node, free=planes(2, 2))
        await node.log.wait("the NodeBridge is written again")


async def test_somebody_elses_words_are_overwritten_and_named(node: Node) -> None:
    await shows(node, free=planes(3, 3))
    node.box.api.registry.patch(
        "nodebridges",
        node.box.node,
        {"status": {"held": planes(7, 7), "mode": "dra"}},
        kind="merge",
        subresource="status",
        manager="kubectl-edit",
    )
    await node.allocate(acc(2))
    await shows(node, held=planes(1, 0), mode="dual")
    said = await node.log.wait("somebody else has written to the NodeBridge, and is overwritten")
    assert said["manager"] == "kubectl-edit"


async def test_what_changed_while_the_api_server_was_away_is_caught_up(node: Node) -> None:
    await shows(node, free=planes(3, 3))
    node.box.api.unavailable()
    await node.allocate(acc(2))
    await node.log.wait("the NodeBridge cannot be written now")
    await node.allocate(acc(1))
    node.box.api.unavailable(False)
    await shows(node, free=planes(1, 1), held=planes(2, 0))
    assert len(node.log.of("the NodeBridge cannot be written now")) == 1
    await node.log.wait("the NodeBridge is written again")


async def test_an_object_that_was_deleted_is_made_again_at_the_next_change(node: Node) -> None:
    await shows(node, free=planes(3, 3))
    node.box.api.registry.delete("nodebridges", node.box.node)
    await node.allocate(acc(2))
    await shows(node, held=planes(1, 0))
    assert found(node)["metadata"]["ownerReferences"]


async def test_a_node_that_cannot_serve_is_not_ready_and_says_why(node: Node) -> None:
    await shows(node, free=planes(3, 3))
    ready = condition(node, "Ready")
    assert ready["status"] == "True"
    await node.box.kubelet.kill()
    await node.box.until(lambda: condition(node, "Ready")["status"] == "False", "not ready")
    assert condition(node, "Ready")["reason"] == "NotServing"
    assert "group acc" in condition(node, "Ready")["message"]
