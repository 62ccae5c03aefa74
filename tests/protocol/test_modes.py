"""Modes are switched while the daemon runs: by the Node's label, group by group, and nobody who holds a device notices.

A pod of the same name is served before, during and after, on the plane that the mode says.
"""

from __future__ import annotations

import asyncio

import pytest

from bridge.config import Mode
from bridge.daemon.lost_claims import LostClaims
from bridge.daemon.own_node import OwnNode
from bridge.daemon.rivals import Rivals
from bridge.ledger.holds import Plane
from bridge.ledger.switches import Gate
from bridge.planes.modes import ACCEPT_STRANDED, WAIT_FOR_HOLDERS, Due
from bridge.sandbox import make
from dra_v1.resource_api import ResourceApi
from tests.protocol.modes import SAME_NAME, migrating, modes
from tests.protocol.stage import ACC, DRIVER, NX, NX_RESOURCE, RESOURCE, Clock, acc

DP, DUAL, DRA = Mode.DEVICE_PLUGIN, Mode.DUAL, Mode.DRA
ALL = {acc(0), acc(1), acc(2)}


async def test_h31_a_name_goes_to_dra_and_back_and_its_pods_are_served_all_the_time() -> None:
    async with migrating() as it:
        assert await it.served("before") is Plane.DEVICE_PLUGIN
        await it.found("before-0")
        with it.untouched("before-0"):
            it.want("dra")
            await it.served("during")
            await it.arrives("dra")
            assert await it.served("after") is Plane.DRA
            await it.box.wait_allocatable(RESOURCE, 0)
            await it.end(it.pod_of("during"))
            it.want("device-plugin")
            await it.arrives("device-plugin")
            assert await it.served("back") is Plane.DEVICE_PLUGIN
        assert set(it.node.ledger()) == ALL


async def test_the_way_through_dual_is_told_in_the_log_and_on_the_node_and_kept_over_a_restart() -> None:
    async with migrating() as it:
        it.want("dual")
        await it.arrives("dual")
        await it.node.offers(*sorted(ALL))
        await it.node.lists(ALL, set())
        it.want("dra")
        await it.arrives("dra")
        await it.node.offers(*sorted(ALL))
        assert [vars(record)["to"] for record in it.node.log.of("mode switching")] == ["dual", "dra"]
        assert (
            await it.told("ModeSwitched", "mode dual now")
            == "group acc is in mode dual now; it was in device-plugin"
        )
        # Nothing is left to the device plugin: the kubelet is not left with a name that DRA serves.
        await it.box.observe.wait("PluginDisconnected", RESOURCE)
        await it.node.stop()
        said = len(it.node.log.records)
        it.box.api.faults.unavailable = True
        await it.start()
        assert it.now().mode is DRA, "what the ledger says goes on while the Node cannot be read"
        it.box.api.faults.unavailable = False
        await it.arrives("dra")
        assert not it.node.log.of("mode switching", said)


async def test_a_label_of_a_group_goes_before_that_of_the_node_and_the_node_before_the_file() -> None:
    async with modes(ACC, NX, start=False) as it:
        it.box.tree.add_nx_gzip(4)
        it.want("device-plugin")
        it.want("dra", "nx")
        await it.start()
        await it.arrives("device-plugin")
        await it.arrives("dra", "nx")
        assert it.box.slices(DRIVER) == [], "a first start begins where the Node says"
        assert not it.node.healthy(NX_RESOURCE)
        it.want(None)
        await it.arrives("dual")
        await it.arrives("dra", "nx")
        it.want(None, "nx")
        await it.arrives("dual", "nx")
        assert it.node.healthy(NX_RESOURCE)


async def test_a_group_with_a_name_of_its_own_leaves_its_holders_healthy_and_waits_for_none() -> None:
    async with modes(devices=3) as it:
        await it.node.run_pod("p", limits={RESOURCE: 1})
        with it.untouched("p"):
            it.want("dra")
            await it.arrives("dra")
            await it.node.lists({acc(2)}, set())
            await it.node.offers(acc(0), acc(1))
            it.box.create_claim("c", make.request("acc"))
            await it.node.run_pod("d", claims={"dev": "c"})


async def test_on_a_name_that_dra_takes_over_holders_are_shown_unhealthy_and_go_on() -> None:
    async with migrating("dual") as it:
        await it.node.run_pod("p", limits={RESOURCE: 2})
        await it.found("p")
        with it.untouched("p"):
            it.want("dra")
            await it.arrives("dra")
            await it.node.lists(set(), {acc(1), acc(2)})
            (told,) = it.box.pod("p")["status"]["containerStatuses"][0]["allocatedResourcesStatus"]
            assert {one["health"] for one in told["resources"]} == {"Unhealthy"}
            assert await it.served("q") is Plane.DRA


async def test_holders_are_waited_for_where_that_is_asked_and_it_is_said_for_whom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("bridge.daemon.sources.time", clock)
    async with migrating("dual") as it:
        it.annotate(**{WAIT_FOR_HOLDERS: "true"})
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        it.want("dra")
        await it.gates(Gate.WAITING, Gate.OPEN)
        await it.node.lists({acc(2)}, {acc(0), acc(1)})
        await it.until(lambda: it.now().reason == "WaitingForHolders", "the reason")
        assert it.now().message.startswith("waits for the end of pod default/p, for annotation")
        await it.end("p")
        clock.skip(60)
        await it.arrives("dra")


async def test_who_no_longer_wants_to_wait_for_holders_need_not() -> None:
    async with migrating("dual") as it:
        it.annotate(**{WAIT_FOR_HOLDERS: "true"})
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        it.want("dra")
        await it.gates(Gate.WAITING, Gate.OPEN)
        with it.untouched("p"):
            it.annotate(**{WAIT_FOR_HOLDERS: None})
            await it.arrives("dra")


async def test_claims_keep_what_they_have_when_dra_closes() -> None:
    async with modes(devices=3) as it:
        it.box.create_claim("c", make.request("acc"))
        await it.node.run_pod("p", claims={"dev": "c"})
        with it.untouched("p"):
            it.want("device-plugin")
            await it.arrives("device-plugin")
            await it.node.offers(acc(0))
            await it.node.lists({acc(1), acc(2)}, {acc(0)})
        await it.end("p")
        await it.node.offers()
        await it.node.lists(ALL, set())


async def test_who_waits_for_a_binding_condition_is_answered_though_the_mode_ends_conditions() -> None:
    """It was allocated under conditions; without the answer its scheduler would wait for ten minutes."""
    async with modes() as it:
        await it.node.log.wait("two-phase binding")
        it.box.scheduler.binding_poll = 1.0
        it.box.create_claim("c", make.request("acc"))
        it.box.create_pod(make.pod("p", claims={"dev": "c"}))
        await it.box.observe.wait("BindingConditionsPending", "default/p")
        it.want("dra")
        await it.arrives("dra")
        await it.box.wait_phase("p", "Running")
        shown = [d for s in it.box.slices(DRIVER) for d in s["spec"].get("devices", ())]
        assert shown and not any("bindingConditions" in device for device in shown)


async def test_a_label_that_is_no_mode_changes_nothing_and_is_told() -> None:
    async with modes() as it:
        it.want("DRA")
        said = await it.told("ModeRefused")
        assert "label device-bridge.io/mode is 'DRA', which is no mode" in said
        assert "modes: device-plugin, dual, dra" in said
        assert (it.switch().target, it.now().phase, it.now().reason) == (DUAL, "Refused", "UnknownMode")
        it.want("dra")
        await it.arrives("dra")


@pytest.mark.parametrize(
    ("profile", "carried", "why"),
    [
        ("1.37", None, "there is no DeviceClass acc.device-bridge.io: pods that ask for"),
        ("1.37", "", "DeviceClass acc.device-bridge.io carries no extendedResourceName"),
        ("1.37", "other.io/acc", "carries other.io/acc as extendedResourceName and not device-bridge.io/acc"),
        ("1.34", RESOURCE, "Kubernetes 1.34 drops that field unless the gate DRAExtendedResource is on"),
        ("1.32", RESOURCE, "Kubernetes 1.32 has no such field"),
    ],
)
async def test_dra_is_refused_to_a_name_that_no_class_carries_and_what_to_do_is_said(
    profile: str, carried: str | None, why: str
) -> None:
    async with modes(SAME_NAME, profile=profile, carried=carried) as it:
        it.want("dra")
        said = await it.told("ModeRefused")
        assert said.startswith("group acc stays in mode dual and does not go to dra: ")
        assert why in said
        assert "pods that ask for device-bridge.io/acc would stay pending on this node" in said
        assert "annotate the Node with device-bridge.io/accept-stranded-pods=acc" in said
        assert (it.now().phase, it.now().reason, it.now().wanted) == ("Refused", "NameNotCarried", DRA)
        assert it.switch().target is DUAL
        await it.node.lists({acc(0), acc(1)}, set())
        it.annotate(**{ACCEPT_STRANDED: "acc"})
        await it.arrives("dra")


async def test_a_refused_switch_is_made_when_its_class_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.daemon.switch.AGAIN_S", 0.05)
    async with modes(SAME_NAME) as it:
        it.want("dra")
        await it.told("ModeRefused")
        it.box.create_class(DRIVER, DRIVER, extended=RESOURCE)
        await it.arrives("dra")
        assert len(it.node.log.of("mode refused")) == 1


async def test_without_the_right_to_read_the_class_the_refusal_names_it() -> None:
    async with migrating("dual") as it:
        it.box.api.faults.forbidden.add(("get", "deviceclasses"))
        it.want("dra")
        said = await it.told("ModeRefused")
        assert 'grant this ServiceAccount the verb "get" on resource "deviceclasses"' in said
        it.box.api.faults.forbidden.clear()
        it.annotate(**{WAIT_FOR_HOLDERS: "true"})  # any news of the Node
        await it.arrives("dra")


async def test_where_there_is_no_dra_nothing_is_closed_for_it() -> None:
    async with modes(profile="1.31", mode="device-plugin") as it:
        for mode in ("dual", "dra"):
            it.want(mode)
            await it.told("ModeRefused", f"{mode} needs dynamic resource allocation")
        assert it.switch().target is DP
        await it.node.lists({acc(0), acc(1)}, set())


async def test_without_the_right_to_read_the_node_the_file_says_the_mode() -> None:
    async with modes(mode="device-plugin", start=False) as it:
        for verb in ("get", "list", "watch"):
            it.box.api.faults.forbidden.add((verb, "nodes"))
        it.want("dra")
        await it.start()
        await it.until(lambda: it.now().reason == "NodeUnreadable", "that it cannot be read")
        assert 'grant this ServiceAccount the verb "list" on resource "nodes"' in it.now().message
        assert it.switch().target is DP
        await it.node.lists({acc(0), acc(1)}, set())


async def test_a_switch_that_waits_for_long_is_told_with_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.daemon.switch.WAITING_S", 0.1)
    async with migrating("dual") as it:
        it.annotate(**{WAIT_FOR_HOLDERS: "true"})
        await it.node.run_pod("p", limits={RESOURCE: 1})
        await it.found("p")
        it.want("dra")
        said = await it.told("ModeWaiting", "pod default/p")
        assert said.startswith("group acc is on its way to mode dra and waits: waits for the end of pod")
        it.want("dual")
        await it.arrives("dual")


async def test_at_rest_a_group_that_is_switched_costs_one_watch_and_nothing_else() -> None:
    async with migrating("dual") as it:
        it.want("dra")
        await it.arrives("dra")
        await it.box.observe.wait("PluginDisconnected", RESOURCE)
        nodes = {key: n for key, n in it.box.api.requests.items() if key[1] in ("nodes", "deviceclasses")}
        assert 2 <= nodes.pop(("get", "nodes")) <= 3, (
            "the mode to begin in, and its UID for slices and NodeBridge"
        )
        assert nodes == {
            ("list", "nodes"): 1,
            ("watch", "nodes"): 1,
            ("get", "deviceclasses"): 1,
        }


async def test_a_new_ledger_reads_claims_where_only_the_label_says_that_dra_is_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The label is read after the kubelet's evidence is there: claims are not taken for read without it."""
    looked, read = asyncio.Event(), asyncio.Event()
    look, first, take_up = Rivals.look, OwnNode.first, LostClaims._take_up

    async def look_(self: Rivals) -> None:
        await look(self)
        looked.set()

    async def first_(self: OwnNode, within_s: float = 5.0) -> None:
        await looked.wait()
        await first(self, within_s)

    async def take_up_(self: LostClaims, resources: ResourceApi) -> bool:
        read.set()
        return await take_up(self, resources)

    monkeypatch.setattr(Rivals, "look", look_)
    monkeypatch.setattr(OwnNode, "first", first_)
    monkeypatch.setattr(LostClaims, "_take_up", take_up_)
    async with modes(mode="device-plugin", start=False) as it:
        it.want("dra")
        await it.start()
        assert it.switch().target is DRA and read.is_set()


async def test_with_a_name_of_its_own_dra_is_open_before_the_device_plugin_closes() -> None:
    async with modes(mode="device-plugin") as it:
        it.hold(Due.STORE)
        it.want("dra")
        async with asyncio.timeout(20):
            await it.stopped[Due.STORE].wait()
        await it.node.offers(acc(0), acc(1))
        await it.node.lists({acc(0), acc(1)}, set())
        assert (it.switch().device_plugin, it.switch().dra) == (Gate.OPEN, Gate.OPENING)
        it.let_go()
        await it.arrives("dra")
