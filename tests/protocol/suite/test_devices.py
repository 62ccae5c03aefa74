"""What a kubelet makes of a device plugin's lists, and how pods get devices (A.3, A.4, A.6)."""

from __future__ import annotations

import pytest

from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import Box, Pod, device_container

FOUR = ("a0", "a1", "a2", "a3")


async def test_each_list_is_complete_and_replaces_the_last(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device("a0", "a1", "a2")
    await plugin.start()
    plugin.devices = {"a1": "Healthy", "b0": "Healthy"}
    plugin.send()
    await node.offers(node.resource, 2)
    assert await node.healthy(node.resource) == {"a1", "b0"}


@pytest.mark.ci
async def test_unhealthy_devices_leave_allocatable_and_stay_in_capacity(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device("a0", "a1", "a2")
    await plugin.start()
    plugin.devices |= {"a0": "Unhealthy", "a1": "whatever"}
    plugin.send()
    await node.offers(node.resource, 1, capacity=3)
    assert await node.healthy(node.resource) == {"a2"}
    plugin.devices["a0"] = "Healthy"
    plugin.send()
    await node.offers(node.resource, 2, capacity=3)


async def test_the_end_of_the_stream_makes_everything_unhealthy_and_nobody_dials_again(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.start()
    plugin.end_streams()
    await node.offers(node.resource, 0, capacity=2)
    assert await node.healthy(node.resource) == set()
    before = len(journal)
    await plugin.register()
    await node.offers(node.resource, 2)
    assert journal.rpcs(since=before) == ["GetDevicePluginOptions", "ListAndWatch"]


@pytest.mark.ci
async def test_each_container_and_resource_has_one_allocate_with_one_request(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device(*FOUR)
    other = plugins.device("b0", "b1", who="more", resource=node.other_resource)
    other.answer = lambda ids: dp.ContainerAllocateResponse(
        envs={"SUITE_OTHER": ",".join(ids)},
        devices=[
            dp.DeviceSpec(host_path="/dev/null", container_path=f"/dev/suite-{i}", permissions="rw")
            for i in ids
        ],
    )
    await plugin.start()
    await other.start()
    before = len(journal)
    boxes = (Box("one", {node.resource: 1}), Box("two", {node.resource: 2, node.other_resource: 1}))
    await node.create(Pod("p", boxes))
    await node.running("p")
    assert journal.rpcs(since=before) == ["Allocate"] * 3
    assert [len(ids) for ids in plugin.allocated()] == [1, 2]
    assert not set(plugin.allocated()[0]) & set(plugin.allocated()[1])
    ((extra,),) = other.allocated()
    assert (await node.got("p", "one")).env == {"SUITE_IDS": plugin.allocated()[0][0]}
    two = await node.got("p", "two")
    assert two.env == {"SUITE_IDS": ",".join(plugin.allocated()[1]), "SUITE_OTHER": extra}
    assert two.nodes == {f"/dev/suite-{extra}"}


async def test_an_error_of_allocate_fails_the_pod_and_frees_its_devices(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    plugin.refuse = "the device is elsewhere"
    await node.create(device_container("p", {node.resource: 1}))
    status = (await node.phase("p", "Failed"))["status"]
    text = "rpc error: code = FailedPrecondition desc = the device is elsewhere"
    assert status["reason"] == "UnexpectedAdmissionError"
    assert status["message"] == f"Pod was rejected: Allocate failed due to {text}, which is unexpected"
    assert await node.events("p", "UnexpectedAdmissionError") == [
        f"Allocate failed due to {text}, which is unexpected"
    ]
    plugin.refuse = ""
    await node.create(device_container("q", {node.resource: 1}))
    await node.running("q")
    assert plugin.allocated() == [["a0"], ["a0"]]


async def test_grants_of_other_containers_are_not_taken_back_by_a_call(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    other = plugins.device("b0", who="more", resource=node.other_resource)
    await plugin.start()
    await other.start()
    other.refuse = "no"
    boxes = (Box("one", {node.resource: 1}), Box("two", {node.other_resource: 1}))
    before = len(journal)
    await node.create(Pod("p", boxes))
    await node.phase("p", "Failed")
    assert journal.rpcs(since=before) == ["Allocate", "Allocate"]
    await node.create(device_container("q", {node.resource: 1}))
    await node.running("q")
    assert plugin.allocated() == [["a0"], ["a0"]]


async def test_devices_of_ordinary_init_containers_are_given_again_those_of_sidecars_not(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device(*FOUR)
    await plugin.start()
    init = (
        Box("first", {node.resource: 2}, run=0),
        Box("beside", {node.resource: 1}, sidecar=True),
        Box("second", {node.resource: 1}, run=0),
    )
    await node.create(Pod("p", (Box(limits={node.resource: 2}),), init=init))
    await node.running("p")
    first, beside, second, main = (set(ids) for ids in plugin.allocated())
    assert len(first) == 2 and len(beside) == 1 and len(second) == 1 and len(main) == 2
    assert beside <= first, "a sidecar takes what the init container before it leaves"
    assert not beside & main and not beside & second
    assert len(first | second | main) <= 4


async def test_a_container_that_starts_again_has_the_cached_answer(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.start()
    before = len(journal)
    box = Box(limits={node.resource: 1}, run=1, exit_code=1)
    await node.create(Pod("p", (box,), restart="OnFailure"))

    async def again() -> bool:
        pod = await node.pod("p") or {}
        return any(s["restartCount"] > 0 for s in pod["status"].get("containerStatuses", []))

    await node.until(again, "a second start")
    assert journal.rpcs(since=before) == ["Allocate"]
    assert (await node.got("p")).env["SUITE_IDS"] == plugin.allocated()[0][0]


async def test_pre_start_is_called_at_every_start_with_the_devices(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0", "a1")
    plugin.options.pre_start_required = True
    await plugin.start()
    before = len(journal)
    box = Box(limits={node.resource: 1}, run=1, exit_code=1)
    await node.create(Pod("p", (box,), restart="OnFailure"))
    await journal.wait("PreStartContainer", count=2)
    assert journal.rpcs(since=before)[:3] == ["Allocate", "PreStartContainer", "PreStartContainer"]
    assert plugin.pre_started()[:2] == plugin.allocated() * 2


async def test_an_error_of_pre_start_keeps_the_container_waiting_and_is_tried_again(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    plugin.options.pre_start_required = True
    plugin.refuse_start = "not yet"
    await plugin.start()
    await node.create(device_container("p", {node.resource: 1}))
    waiting: dict[str, str] = {}

    async def told() -> bool:
        nonlocal waiting
        pod = await node.pod("p") or {}
        states = [s["state"] for s in pod["status"].get("containerStatuses", [])]
        waiting = states[0].get("waiting", {}) if states else {}
        return "message" in waiting

    await node.until(told, "the container to wait")
    assert waiting["reason"] == "CreateContainerConfigError"
    assert waiting["message"] == (
        "device plugin PreStartContainer rpc failed with err: rpc error: code = Internal desc = not yet"
    )
    assert (await node.pod("p") or {})["status"]["phase"] == "Pending"
    plugin.refuse_start = ""
    await node.running("p")
    assert len(plugin.allocated()) == 1


async def test_what_is_preferred_is_asked_with_all_that_is_free(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device(*FOUR)
    plugin.options.get_preferred_allocation_available = True
    plugin.prefer = lambda asked: sorted(asked.available_deviceIDs)[-asked.allocation_size :]
    await plugin.start()
    await node.create(device_container("p", {node.resource: 2}))
    await node.running("p")
    await node.create(device_container("q", {node.resource: 2}))
    await node.running("q")
    first, second = plugin.preferences()
    assert (sorted(first.available_deviceIDs), list(first.must_include_deviceIDs)) == (list(FOUR), [])
    assert first.allocation_size == 2
    assert sorted(second.available_deviceIDs) == ["a0", "a1"], "asked even where there is no choice"
    assert plugin.allocated() == [["a2", "a3"], ["a0", "a1"]]


async def test_what_is_preferred_is_advice_and_is_filled_up(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device(*FOUR)
    plugin.options.get_preferred_allocation_available = True
    plugin.prefer = lambda asked: ["a3", "unknown"]
    await plugin.start()
    await node.create(device_container("p", {node.resource: 2}))
    await node.running("p")
    ((one, two),) = plugin.allocated()
    assert "a3" in (one, two) and {one, two} <= set(FOUR)


async def test_reused_devices_must_be_among_the_preferred(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device(*FOUR)
    plugin.options.get_preferred_allocation_available = True
    plugin.prefer = lambda asked: sorted(asked.available_deviceIDs)[: asked.allocation_size]
    await plugin.start()
    init = (Box("first", {node.resource: 1}, run=0),)
    await node.create(Pod("p", (Box(limits={node.resource: 2}),), init=init))
    await node.running("p")
    _, second = plugin.preferences()
    assert list(second.must_include_deviceIDs) == plugin.allocated()[0]
    assert sorted(second.available_deviceIDs) == list(FOUR)
    assert second.allocation_size == 2


async def test_one_pod_too_many_fails_without_a_call(node: Node, plugins: Plugins, journal: Journal) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.start()
    await node.create(device_container("p", {node.resource: 1}))
    await node.running("p")
    before = len(journal)
    await node.create(device_container("q", {node.resource: 2}, bound=True))
    status = (await node.phase("q", "Failed"))["status"]
    assert status["reason"] == "UnexpectedAdmissionError"
    assert status["message"] == (
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for "
        f"{node.resource}. Requested: 2, Available: 1, which is unexpected"
    )
    assert journal.rpcs(since=before) == []


async def test_h12_a_pod_that_does_not_fit_is_allocated_for_before_it_fails(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    before = len(journal)
    await node.create(Pod("p", (Box(limits={node.resource: 1}, cpu=1000),), bound=True))
    status = (await node.phase("p", "Failed"))["status"]
    assert status["reason"] == "OutOfcpu"
    assert status["message"].startswith(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000,"
    )
    await node.create(device_container("q", {node.resource: 1}))
    await node.running("q")
    assert journal.rpcs(since=before) == ["Allocate", "Allocate"]
    assert plugin.allocated() == [["a0"], ["a0"]]


async def test_devices_of_an_ended_pod_are_given_again_without_a_call_in_between(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    before = len(journal)
    await node.create(Pod("p", (Box(limits={node.resource: 1}, run=0),)))
    await node.phase("p", "Succeeded")
    await node.create(device_container("q", {node.resource: 1}))
    await node.running("q")
    assert journal.rpcs(since=before) == ["Allocate", "Allocate"]
    assert plugin.allocated() == [["a0"], ["a0"]]
