"""A switch that is turned round or killed at any of its steps, and a kubelet that restarts in the middle of one."""

from __future__ import annotations

import asyncio
from unittest import mock

import pytest

from bridge.config import Mode
from bridge.daemon import admitting
from bridge.ledger.holds import Plane
from bridge.ledger.switches import Gate
from bridge.planes.deallocation import Deallocations
from bridge.planes.modes import Due
from bridge.sandbox import make
from tests.protocol.modes import Modes, migrating
from tests.protocol.stage import RESOURCE, acc

STEPS = [
    ("device-plugin", "dual", Due.STORE),
    ("device-plugin", "dra", Due.UNLIST),
    ("device-plugin", "dra", Due.ALLOCATABLE),
    ("device-plugin", "dra", Due.STORE),
    ("dual", "device-plugin", Due.WITHDRAW),
    ("dual", "dra", Due.UNLIST),
    ("dual", "dra", Due.ALLOCATABLE),
    ("dra", "dual", Due.LIST),
    ("dra", "device-plugin", Due.LIST),
    ("dra", "device-plugin", Due.WITHDRAW),
]
"""(from, to, the step that is not confirmed yet); all steps that there are (tests/unit/test_mode_steps.py)."""


async def half_way(it: Modes, mode: str, to: str, due: Due) -> None:
    """Begin a switch, and stop where that is done and not confirmed."""
    it.want(mode)
    await it.arrives(mode)
    it.hold(due)
    it.want(to)
    async with asyncio.timeout(20):
        await it.stopped[due].wait()
    assert it.now().phase in ("Opening", "Closing", "Waiting")


def plane_of(mode: str) -> Plane:
    return Plane.DRA if mode == "dra" else Plane.DEVICE_PLUGIN


@pytest.mark.parametrize(("mode", "to", "due"), STEPS)
async def test_a_switch_is_turned_round_at_each_step_and_pods_are_served(
    mode: str, to: str, due: Due
) -> None:
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        with it.untouched("p"):
            await half_way(it, mode, to, due)
            it.want(mode)
            await it.until(lambda: it.switch().target is Mode(mode), "the turn")
            it.let_go()
            await it.arrives(mode)
            assert await it.served("back") is plane_of(mode)


@pytest.mark.parametrize(("mode", "to", "due"), STEPS)
async def test_a_switch_goes_on_where_a_daemon_died(mode: str, to: str, due: Due) -> None:
    """Here it ends without a word to anybody; tests/crash kills it before and after each record of a step."""
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        with it.untouched("p"):
            await half_way(it, mode, to, due)
            before = it.switch()
            await it.node.stop()
            assert it.switch() == before
            it.let_go()
            await it.start()
            await it.arrives(to)
            if (
                plane_of(to) is Plane.DEVICE_PLUGIN
            ):  # in dual, DRA serves the name while the Node counts none of it
                await it.box.wait_allocatable(RESOURCE, 3)
            assert await it.served("on") is plane_of(to)


async def test_turned_to_and_fro_a_group_arrives_where_it_was_wanted_last() -> None:
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        with it.untouched("p"):
            for mode in ("dra", "device-plugin", "dual", "dra", "dual", "device-plugin", "dra"):
                it.want(mode)
                await it.until(lambda mode=mode: it.switch().target is Mode(mode), "the turn")  # type: ignore[misc]
            await it.arrives("dra")
            assert await it.served("q") is Plane.DRA


async def test_on_the_way_back_pods_fit_beside_those_that_dra_serves_under_the_name() -> None:
    """The scheduler counts them against the device plugin's count, so that is as much higher."""
    async with migrating("dra") as it:
        for name in ("a", "b"):
            assert await it.served(name) is Plane.DRA
        it.want("device-plugin")
        await it.arrives("device-plugin")
        await it.box.wait_allocatable(RESOURCE, 3)
        assert await it.served("c") is Plane.DEVICE_PLUGIN, "the one device that is free"
        it.box.create_pod(make.pod("d", limits={RESOURCE: 1}))
        await it.box.observe.wait("Unschedulable", "default/d")
        await it.end("a-0")
        await it.box.wait_phase("d", "Running")
        assert it.node.ledger()[acc(2)][0] is Plane.DEVICE_PLUGIN
        assert not it.box.observe.of("AllocateRefused")


async def test_the_next_pod_is_admitted_before_it_is_known_that_a_claim_of_the_name_has_gone() -> None:
    """The kubelet fails for good a pod that it has nothing healthy for: a device stays that from Unprepare until it is
    free, and the hand-out waits."""
    asked = asyncio.Event()
    look = Deallocations.check_now

    async def late(self: Deallocations, uid: str) -> None:
        await asked.wait()
        await look(self, uid)

    async with migrating("dra") as it:
        for name in ("a", "b", "c"):
            assert await it.served(name) is Plane.DRA
        it.want("device-plugin")
        await it.arrives("device-plugin")
        await it.box.wait_allocatable(RESOURCE, 3)
        it.box.create_pod(make.pod("d", limits={RESOURCE: 1}))
        await it.box.observe.wait("Unschedulable", "default/d")
        it.box.observe.listen(lambda seen: asked.set() if seen.what == "AllocateAsked" else None)
        since = len(it.box.observe)
        with mock.patch.object(Deallocations, "check_now", late):
            await it.end("a-0")
            await it.box.until(lambda: it.ran("d"), "d ran")
        lists = it.box.observe.of("DevicesListed", RESOURCE, since)
        assert [seen.facts["unhealthy"] for seen in lists if seen.facts["unhealthy"]] == []
        assert it.box.pod("d")["status"]["phase"] == "Running", it.box.pod("d")["status"]


async def test_h13_a_kubelet_that_restarts_takes_up_holders_that_are_down_and_hidden() -> None:
    """The price of a name on both planes, softened: such a pod would not be admitted with an unhealthy device."""
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 1}, restart="Always")
        await it.found("p")
        it.want("dra")
        await it.arrives("dra")
        await it.box.wait_allocatable(RESOURCE, 0)
        await it.node.lists(set(), {acc(2)})
        since = len(it.box.observe)
        it.box.api.faults.unavailable = True  # so long the kubelet has no pods to admit
        await it.box.reboot()
        # This one is back within milliseconds, and its first list may be the last one's; a real one takes a second.
        await it.node.lists({acc(2)}, set())
        it.box.api.faults.unavailable = False
        await it.box.observe.wait("PodAdmitted", "default/p", since=since)
        await it.node.lists(set(), {acc(2)})
        await it.box.wait_allocatable(RESOURCE, 0)
        assert await it.served("q") is Plane.DRA


async def test_h13_it_is_shown_healthy_no_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitting, "LONGEST_S", 0.5)
    monkeypatch.setattr(admitting, "LOOK_S", 0.05)
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        it.want("dra")
        await it.arrives("dra")
        await it.node.lists(set(), {acc(2)})
        await it.node.stop()
        await it.box.cri.stop()  # nobody can tell whether it runs
        since = len(it.box.observe)
        await it.start()
        first = await it.box.observe.wait("DevicesListed", RESOURCE, since=since)
        assert first.facts["healthy"] == 1
        await it.node.lists(set(), {acc(2)})
        assert it.switch().device_plugin is Gate.CLOSED


async def test_h15_a_daemon_that_comes_back_waits_for_no_holder_that_has_ended() -> None:
    """What is shown healthy the scheduler counts, and sends pods here by the plane that is closed."""
    async with migrating("dual") as it:
        await it.node.run_pod("ends", limits={RESOURCE: 1})
        await it.node.run_pod("runs", limits={RESOURCE: 1})
        await it.found("ends", "runs")
        it.want("dra")
        await it.arrives("dra")
        await it.node.stop()
        await it.end("ends")
        since = len(it.box.observe)
        await it.start()
        first = await it.box.observe.wait("DevicesListed", RESOURCE, since=since)
        assert first.facts["healthy"] == 0
        assert len(it.node.holds()) == 2, "its end is not proven yet"
        assert await it.served("q") is Plane.DRA
