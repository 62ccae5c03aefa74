"""What a restarted kubelet remembers of devices and what it forgets (A.2, A.9)."""

from __future__ import annotations

import pytest

from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node, ids_of
from tests.protocol.suite.plan import Box, Pod, device_container


@pytest.mark.ci
async def test_h13_a_restart_wipes_sockets_registers_watched_plugins_again_and_allocates_nothing(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    legacy = plugins.device("a0", "a1")
    watched = plugins.device("b0", "b1", who="more", resource=node.other_resource, elsewhere=True)
    await legacy.start()
    await watched.serve()
    await watched.registrar.start()
    await node.offers(node.other_resource, 2)
    await node.create(device_container("p", {node.resource: 1, node.other_resource: 1}))
    container = await node.container_id("p")
    before = len(journal)
    await node.restart_kubelet()

    async def wiped() -> bool:
        return not legacy.socket.exists()

    await node.until(wiped, "the socket to be wiped")
    assert watched.socket.exists() and watched.registrar.socket.exists()
    await node.offers(node.other_resource, 2)
    await node.offers(node.resource, 0)
    assert journal.rpcs(legacy.who, before) == []
    (granted,) = legacy.allocated()

    async def remembered() -> bool:
        boxes = await node.pod_resources()  # partial until the kubelet has heard of its pods
        return ("p", "main") in boxes and ids_of(boxes["p", "main"], node.resource) == set(granted)

    await node.until(remembered, "podresources to list what the pod has")
    await legacy.hang_up()
    await legacy.start()
    await node.create(device_container("q", {node.resource: 1, node.other_resource: 1}))
    await node.running("q")
    assert len(legacy.allocated(before)) == len(watched.allocated(before)) == 1
    assert not set(legacy.allocated(before)[0]) & set(granted)
    assert await node.alive(container)
    assert (await node.running("p"))["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_a_pod_that_does_not_run_at_a_restart_fails_if_its_plugin_is_not_back(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    await node.create(Pod("p", (Box(limits={node.resource: 1}, run=3, exit_code=1),), restart="Always"))
    container = await node.container_id("p")
    await node.stop_kubelet()

    async def ended() -> bool:
        return not await node.alive(container)

    await node.until(ended, "the container to end by itself")
    before = len(journal)
    await node.start_kubelet()
    status = (await node.phase("p", "Failed"))["status"]
    assert status["reason"] == "UnexpectedAdmissionError"
    assert status["message"] == (
        "Pod was rejected: Allocate failed due to no healthy devices present; "
        f"cannot allocate unhealthy devices {node.resource}, which is unexpected"
    )
    assert journal.rpcs(since=before) == []


async def test_h14_a_corrupt_checkpoint_is_forgotten(node: Node, plugins: Plugins, journal: Journal) -> None:
    plugin = plugins.device("a0", elsewhere=True)
    await plugin.serve()
    await plugin.registrar.start()
    await node.offers(node.resource, 1)
    await node.create(device_container("p", {node.resource: 1}))
    container = await node.container_id("p")
    await node.stop_kubelet()
    (node.device_plugins / "kubelet_internal_checkpoint").write_text("{")
    before = len(journal)
    await node.start_kubelet()
    await node.offers(node.resource, 1)
    boxes = await node.pod_resources()
    assert not any(ids_of(box, node.resource) for box in boxes.values())
    assert await node.alive(container)
    assert journal.rpcs(plugin.who, before) == [
        rpc for rpc in journal.rpcs(plugin.who, before) if rpc != "Allocate"
    ]
