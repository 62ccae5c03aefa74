"""Both planes of the whole daemon on a simulated node: who gets what, who is refused, and what is shown meanwhile."""

from __future__ import annotations

import pytest

from bridge.ledger.holds import Plane
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, GROUP, RESOURCE, acc, stage

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


async def test_planes_take_from_opposite_ends() -> None:
    """Q2: the scheduler takes the first device of the slice, the kubelet the last that we prefer."""
    async with stage(devices=4) as node:
        await node.offers(*map(acc, range(4)))
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("tomorrow", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        nodes = await node.run_pod("yesterday", limits={RESOURCE: 2})
        assert nodes == ["/dev/crypto/acc2", "/dev/crypto/acc3"]
        await node.offers(acc(0), acc(1))
        await node.lists({acc(1), acc(2), acc(3)}, {acc(0)})


async def test_s2_what_a_claim_holds_is_refused_to_the_device_plugin() -> None:
    async with stage() as node:
        held = node.claim_on("c", acc(0))
        answer = (await node.prepare(held))[held["metadata"]["uid"]]
        assert not answer.error and answer.devices[0].device_name == acc(0)
        with pytest.raises(EndpointError, match=r"held by claim default/c through DRA since .* deallocated"):
            await node.allocate(acc(0))
        assert node.ledger() == {acc(0): (DRA, "claim default/c")}
        await node.allocate(acc(1))
        assert set(node.ledger()) == {acc(0), acc(1)}


async def test_s3_what_the_device_plugin_holds_is_refused_to_a_claim() -> None:
    async with stage() as node:
        await node.allocate(acc(0))
        late = node.claim_on("c", acc(0))
        answer = (await node.prepare(late))[late["metadata"]["uid"]]
        assert "is held by a pod not yet identified through the device plugin API" in answer.error
        assert not answer.devices and node.ledger()[acc(0)][0] is DP


async def test_s3_h2_a_claim_that_lost_the_race_is_told_by_whom_and_served_when_that_pod_ends() -> None:
    async with stage(ACC | {"binding": "off"}, devices=1) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        with node.box.scheduler.stale():
            await node.run_pod("winner", limits={RESOURCE: 1})
            await node.offers()
            node.box.create_pod(make.pod("loser", claims={"dev": "c"}))
            told = await node.box.observe.wait("EventFailedPrepareDynamicResources", "default/loser")
        assert f"{acc(0)} is held by" in str(told.facts["message"])
        assert "through the device plugin API" in str(told.facts["message"])
        node.box.delete_pod("winner")
        await node.box.wait_gone("pods", "winner")
        # Nobody can prove yet that the device is let go (the kubelet is young): the claim goes on waiting.
        assert node.ledger()[acc(0)][0] is DP
        assert node.nodes_of_any("loser") == []


async def test_s2_h3_a_pod_that_lost_the_race_fails_with_the_holders_name() -> None:
    async with stage(devices=1) as node:
        held = node.claim_on("c", acc(0))
        manager = node.box.kubelet.devices
        assert not (await node.prepare(held))[held["metadata"]["uid"]].error
        await node.lists(set(), {acc(0)})
        # The kubelet picks what it believes healthy: put back the belief it had a moment ago (H3).
        manager.healthy[RESOURCE], manager.unhealthy[RESOURCE] = {acc(0)}, set()
        manager.changed.set()
        node.box.create_pod(make.pod("loser", limits={RESOURCE: 1}))
        pod = await node.box.wait_phase("loser", "Failed")
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        assert "is held by claim default/c through DRA" in pod["status"]["message"]
        assert node.ledger() == {acc(0): (DRA, "claim default/c")}


async def test_h8_two_claims_never_have_one_device() -> None:
    async with stage() as node:
        first, second = node.claim_on("first", acc(0)), node.claim_on("second", acc(0))
        answers = await node.prepare(first, second)
        errors = [answers[claim["metadata"]["uid"]].error for claim in (first, second)]
        assert sorted(bool(error) for error in errors) == [False, True]
        assert "is held by claim default/" in "".join(errors)


async def test_h28_allocate_gives_all_devices_or_none() -> None:
    async with stage(devices=4) as node:
        held = node.claim_on("c", acc(2))
        await node.prepare(held)
        with pytest.raises(EndpointError, match=f"{acc(2)} is held by claim default/c"):
            await node.allocate(acc(1), acc(2), acc(3))
        assert set(node.ledger()) == {acc(2)}
        await node.offers(*map(acc, range(4)))


async def test_h28_a_claim_gets_all_devices_or_none() -> None:
    async with stage(devices=4) as node:
        await node.allocate(acc(2))
        wants = node.claim_on("c", acc(1), acc(2), acc(3))
        answer = (await node.prepare(wants))[wants["metadata"]["uid"]]
        assert f"{acc(2)} is held by" in answer.error and not answer.devices
        assert set(node.ledger()) == {acc(2)}
        await node.lists({acc(0), acc(1), acc(2), acc(3)}, set())


async def test_h28_one_claim_of_a_call_fails_and_the_others_do_not() -> None:
    async with stage(devices=3) as node:
        await node.allocate(acc(1))
        claims = [node.claim_on(f"c{number}", acc(number)) for number in range(3)]
        answers = await node.prepare(*claims)
        errors = [bool(answers[claim["metadata"]["uid"]].error) for claim in claims]
        assert errors == [False, True, False]
        assert {share: plane for share, (plane, _) in node.ledger().items()} == {
            acc(0): DRA,
            acc(1): DP,
            acc(2): DRA,
        }


async def test_h23_arbitration_never_looks_like_a_fault() -> None:
    """A device that the other plane holds is unhealthy in ListAndWatch only where it is not held; the health
    stream of DRA never says anything but what the hardware does."""
    async with stage(devices=3) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("by-claim", claims={"dev": "c"})
        await node.run_pod("by-resource", limits={RESOURCE: 1})
        await node.lists({acc(1), acc(2)}, {acc(0)})
        assert acc(2) in node.healthy(), "held by the device plugin itself: stays healthy"
        # One more device makes the stream send a list that is younger than both holds.
        since = len(node.box.observe)
        node.box.tree.add("/dev/crypto/acc3")
        await node.box.observe.wait("HealthListed", since=since)
        listed = node.box.observe.of("HealthListed")
        assert listed[-1].facts["devices"] == 4 and all(seen.facts["unhealthy"] == [] for seen in listed)
        assert [node.health(acc(number)) for number in range(3)] == ["Healthy"] * 3
        for pod in ("by-claim", "by-resource"):
            (status,) = node.box.pod(pod)["status"]["containerStatuses"]
            (told,) = status["allocatedResourcesStatus"]
            assert [one["health"] for one in told["resources"]] == ["Healthy"]


async def test_h38_a_held_device_that_is_unplugged_stays_listed_and_held_by_the_device_plugin() -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        node.box.tree.remove("/dev/crypto/acc1")
        await node.lists({acc(0)}, {acc(1)})
        assert node.ledger()[acc(1)][0] is DP
        late = node.claim_on("c", acc(1))
        answer = (await node.prepare(late))[late["metadata"]["uid"]]
        assert f"{acc(1)} is unplugged" in answer.error
        await node.offers(acc(0))
        node.box.tree.add("/dev/crypto/acc1")
        await node.lists({acc(0), acc(1)}, set())
        await node.offers(acc(0))


async def test_h38_a_held_device_that_is_unplugged_stays_held_by_its_claim_and_can_be_unprepared() -> None:
    async with stage() as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        since = len(node.box.observe)
        node.box.tree.remove("/dev/crypto/acc0")
        seen = await node.box.observe.wait("HealthListed", since=since)
        assert seen.facts["unhealthy"] == [acc(0)] and node.health(acc(1)) == "Healthy"
        await node.offers(acc(1))
        await node.lists({acc(1)}, {acc(0)})
        assert node.ledger() == {acc(0): (DRA, "claim default/c")}
        (status,) = node.box.pod("p")["status"]["containerStatuses"]
        (told,) = status["allocatedResourcesStatus"][0]["resources"]
        assert told["health"] == "Unhealthy" and told["message"] == "unplugged"
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await node.holds_are(set())
        await node.lists({acc(1)}, set())
        assert node.offered() == [acc(1)]


async def test_hot_plug_is_offered_on_both_planes() -> None:
    async with stage(devices=1) as node:
        await node.offers(acc(0))
        node.box.tree.add("/dev/crypto/acc7")
        await node.offers(acc(0), acc(7))
        await node.lists({acc(0), acc(7)}, set())


async def test_mode_device_plugin_serves_no_dra() -> None:
    async with stage(mode="device-plugin") as node:
        assert await node.run_pod("p", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]
        assert node.box.slices() == [] and not node.box.observe.of("DriverRegistered")
        assert {what for _, what in node.box.api.requests} <= {"nodes"}, (
            "this mode needs nothing but its label"
        )


async def test_mode_dra_serves_no_device_plugin() -> None:
    async with stage(mode="dra") as node:
        node.box.create_claim("c", make.request("acc"))
        assert await node.run_pod("p", claims={"dev": "c"}) == ["/dev/crypto/acc0"]
        assert not node.box.observe.of("PluginRegistered") and node.box.allocatable(RESOURCE) is None
        await node.offers(acc(0), acc(1))


async def test_h31_mode_dra_serves_old_pods_through_the_class() -> None:
    """The destination of a migration: `extendedResourceName` of the class stands for the old resource."""
    async with stage(mode="dra") as node:
        node.box.create_class("old", "acc.device-bridge.io", extended="example.com/acc")
        assert await node.run_pod("p", limits={"example.com/acc": 1}) == ["/dev/crypto/acc0"]


async def test_h37_a_partition_is_a_fixed_split_without_refusals() -> None:
    group = {
        "name": GROUP,
        "kind": "device-node",
        "sharing": "partition",
        "partition": {"devicePlugin": "50%"},
        "options": {"include": ["/dev/crypto/acc*"]},
    }
    async with stage(group, devices=4) as node:
        await node.offers(acc(0), acc(1))
        await node.lists({acc(2), acc(3)}, set())
        node.box.create_template("t", make.request("acc"))
        for number in range(2):
            await node.run_pod(f"claim-{number}", templates={"dev": "t"})
            await node.run_pod(f"resource-{number}", limits={RESOURCE: 1})
        assert {share: plane for share, (plane, _) in node.ledger().items()} == {
            acc(0): DRA,
            acc(1): DRA,
            acc(2): DP,
            acc(3): DP,
        }
        # Neither plane's view moves with the other's holds: nothing was withdrawn, nobody was refused.
        assert (node.healthy(), node.unhealthy()) == ({acc(2), acc(3)}, set())
        assert node.offered() == [acc(0), acc(1)]
        assert not node.box.observe.of("AllocateRefused")
        assert not node.box.observe.of("EventFailedPrepareDynamicResources")
        with pytest.raises(EndpointError, match="gives this device to DRA"):
            await node.allocate(acc(0))


async def test_h29_two_groups_of_one_silicon_have_one_account() -> None:
    """The same nodes under two names, one group for each plane: still never twice."""
    groups = [
        {"name": "acc", "kind": "device-node", "mode": "dra", "options": {"include": ["/dev/crypto/acc*"]}},
        {
            "name": "old",
            "kind": "device-node",
            "mode": "device-plugin",
            "options": {"include": ["/dev/crypto/acc*"]},
        },
    ]
    resource = "device-bridge.io/old"
    async with stage(*groups, devices=2) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        await node.lists({acc(1)}, {acc(0)}, resource)
        with pytest.raises(EndpointError, match="held by claim default/c"):
            await node.allocate(acc(0), resource=resource)
        await node.run_pod("q", limits={resource: 1})
        await node.offers(acc(0))


@pytest.mark.parametrize("registration", ["watcher", "legacy"])
async def test_both_routes_of_registration_serve_pods(registration: str) -> None:
    group = {
        "name": GROUP,
        "kind": "device-node",
        "registration": registration,
        "options": {"include": ["/dev/crypto/acc*"]},
    }
    async with stage(group) as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        since = len(node.box.observe)
        await node.box.kubelet.restart()
        await node.box.observe.wait("PluginRegistered", RESOURCE, since=since)
        await node.lists({acc(0), acc(1)}, set())
        await node.run_pod("q", limits={RESOURCE: 1})
