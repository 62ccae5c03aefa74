"""What can be read of a kubelet's grants: podresources and the device checkpoint, and what they leave out (A.8)."""

from __future__ import annotations

import base64
import json

import pytest

from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.node import Node, entries_of, ids_of
from tests.protocol.suite.plan import Box, Pod, device_container

FOUR = ("a0", "a1", "a2", "a3")


@pytest.mark.ci
async def test_podresources_lists_app_containers_and_sidecars_each_device_by_itself(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device(*FOUR)
    plugin.numa = {"a0": 0, "a1": 0, "a2": 0, "a3": 0}
    await plugin.start()
    init = (Box("first", {node.resource: 1}, run=0), Box("beside", {node.resource: 1}, sidecar=True))
    await node.create(Pod("p", (Box(limits={node.resource: 2}), Box("bare")), init=init))
    await node.running("p")
    listed = await node.pod_resources()
    assert set(listed) == {("p", "beside"), ("p", "main"), ("p", "bare")}
    _, beside, main = plugin.allocated()
    assert ids_of(listed["p", "beside"], node.resource) == set(beside)
    assert ids_of(listed["p", "main"], node.resource) == set(main)
    assert not listed["p", "bare"].devices
    for device in listed["p", "main"].devices:
        assert len(device.device_ids) == 1
        assert [numa.ID for numa in device.topology.nodes] == [0]


async def test_h11_podresources_hides_a_running_init_container_and_the_checkpoint_shows_it(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    uid = await node.create(Pod("p", init=(Box("first", {node.resource: 1}),)))
    await node.got("p", "first")
    assert set(await node.pod_resources()) == {("p", "main")}
    assert not (await node.pod_resources())["p", "main"].devices
    assert set(entries_of(node.checkpoint(), [uid])) == {(uid, "first", node.resource)}


async def test_podresources_lets_go_of_an_ended_pod_before_the_checkpoint_does(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    uid = await node.create(Pod("p", (Box(limits={node.resource: 1}, run=0),)))
    await node.phase("p", "Succeeded")

    async def let_go() -> bool:
        boxes = await node.pod_resources()
        return not any(ids_of(box, node.resource) for box in boxes.values())

    await node.until(let_go, "podresources to forget the pod")
    assert entries_of(node.checkpoint(), [uid]), "not written when ended pods are collected"
    plugin.send()

    async def written() -> bool:
        return not entries_of(node.checkpoint(), [uid])

    await node.until(written, "the next list to write the checkpoint")


async def test_h9_a_force_deleted_pod_is_missing_while_its_container_runs(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    await node.create(Pod("p", (Box(limits={node.resource: 1}, stop=4),), grace=8))
    container = await node.container_id("p")
    assert ("p", "main") in await node.pod_resources()
    await node.delete("p", force=True)

    async def missing() -> bool:
        return not await node.pod_resources()

    await node.until(missing, "podresources to miss the pod")
    assert await node.alive(container)
    await node.create(device_container("q", {node.resource: 1}))
    await node.running("q")
    assert plugin.allocated() == [["a0"], ["a0"]], "given again while the first container stops"


async def test_the_checkpoint_has_numa_nodes_the_answer_and_the_healthy_devices(
    node: Node, plugins: Plugins
) -> None:
    plugin = plugins.device("a0", "a1")
    other = plugins.device("b0", who="more", resource=node.other_resource)
    plugin.numa = {"a0": 0, "a1": 0}
    await plugin.start()
    await other.start()
    uid = await node.create(device_container("p", {node.resource: 1, node.other_resource: 1}))
    await node.running("p")
    whole = node.checkpoint()
    assert set(whole) == {"Data", "Checksum"}
    assert set(whole["Data"]) == {"PodDeviceEntries", "RegisteredDevices"}
    assert sorted(whole["Data"]["RegisteredDevices"][node.resource]) == ["a0", "a1"]
    entries = entries_of(whole, [uid])
    entry = entries[uid, "main", node.resource]
    assert set(entry) == {"PodUID", "ContainerName", "ResourceName", "DeviceIDs", "AllocResp"}
    (granted,) = plugin.allocated()
    assert entry["DeviceIDs"] == {"0": granted}
    assert entries[uid, "main", node.other_resource]["DeviceIDs"] == {"-1": ["b0"]}
    answer = dp.ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"]))
    assert answer == plugin.answer(granted)


async def test_the_checkpoint_is_written_at_each_list(node: Node, plugins: Plugins) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.start()
    plugin.devices = {"a0": "Unhealthy", "a2": "Healthy"}
    plugin.send()

    async def written() -> bool:
        registered: list[str] = node.checkpoint()["Data"]["RegisteredDevices"][node.resource]
        return registered == ["a2"]

    await node.until(written, "the checkpoint to have the list")
    plugin.end_streams()
    await node.offers(node.resource, 0, capacity=2)
    assert json.dumps(node.checkpoint()["Data"]["RegisteredDevices"][node.resource]) == '["a2"]', (
        "the end of a stream is not written"
    )
