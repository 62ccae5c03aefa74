"""Claims over time: shared, unprepared, across restarts; health; slices of drivers that went (B.2, B.3)."""

from __future__ import annotations

import time

import pytest

from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import health_v1_pb2 as health
from tests.protocol.suite.drivers import BOTH, DraDriver
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import Box, Pod, Request, claim_pod


async def started(node: Node, plugins: Plugins, name: str = "") -> DraDriver:
    driver = plugins.dra(name)
    await driver.start()
    await node.publish(driver.driver, ["dev0"])
    return driver


@pytest.mark.ci
async def test_a_shared_claim_is_prepared_for_the_first_pod_and_unprepared_after_the_last(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    driver = await started(node, plugins)
    await node.claim("c", Request("one", node.driver))
    before = len(journal)
    for pod in ("p", "q"):
        await node.create(claim_pod(pod, "c"))
        await node.running(pod)
    assert journal.rpcs(since=before) == ["NodePrepareResources"]
    await node.delete("p")
    await node.gone("p")
    assert driver.unprepared() == []
    await node.delete("q")
    await node.gone("q")
    assert driver.unprepared() == driver.prepared()


async def test_unprepare_comes_before_the_pods_end_is_told_and_again_until_it_works(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    driver = await started(node, plugins)
    driver.unprepare_error = "not yet"
    await node.claim("c", Request("one", node.driver))
    await node.create(Pod("p", (Box(claims=("c",), run=0),), claims={"c": "c"}))
    await journal.wait("NodeUnprepareResources", count=2)
    assert (await node.pod("p") or {})["status"]["phase"] not in ("Succeeded", "Failed")
    assert await node.claim_status("c") != {}
    driver.unprepare_error = ""
    await node.phase("p", "Succeeded")
    assert await node.events("p", "FailedUnprepareDynamicResources") == [], "no kubelet writes such an event"
    assert all(claims == driver.prepared()[0] for claims in driver.unprepared())


async def test_a_driver_that_went_keeps_pods_from_ending_until_it_is_back(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    driver = await started(node, plugins)
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    container = await node.container_id("p")
    await driver.stop()
    await node.delete("p")

    async def ended() -> bool:
        return not await node.alive(container)

    await node.until(ended, "the container to end")
    assert await node.pod("p") is not None
    await driver.start()
    await node.gone("p")
    assert len(driver.unprepared()) == 1


@pytest.mark.ci
async def test_h13_a_restart_deletes_the_nodes_slices_and_prepares_again_only_for_another_pod(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    """Claims are prepared where a pod's sandbox is made: a running pod's are not, until another pod needs them."""
    driver = await started(node, plugins)
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    container = await node.container_id("p")
    before = len(journal)
    await node.restart_kubelet()

    async def wiped() -> bool:
        return not await node.slices(node.driver)

    await node.until(wiped, "the slices to be deleted")
    await journal.wait("NotifyRegistrationStatus", driver.who, since=before)
    await node.create(claim_pod("q", "c"))
    await node.running("q")
    assert journal.rpcs(driver.who, before) == ["GetInfo", "NotifyRegistrationStatus", "NodePrepareResources"]
    assert driver.prepared(before) == driver.prepared()[:1]
    assert await node.alive(container)
    await node.delete("p")
    await node.gone("p")
    assert driver.unprepared() == []


async def test_health_is_followed_from_1_36_on(node: Node, plugins: Plugins, journal: Journal) -> None:
    driver = plugins.dra(versions=(*BOTH, "v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"))
    await driver.start()
    await node.publish(node.driver, ["dev0"])
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    status = (await node.running("p"))["status"]["containerStatuses"][0]
    if node.version < (1, 36):
        assert journal.of("NodeWatchResources") == []
        assert "allocatedResourcesStatus" not in status
        return
    await journal.wait("NodeWatchResources")
    device = health.DeviceIdentifier(pool_name=node.name, device_name="dev0")
    driver.tell_health(
        health.DeviceHealth(
            device=device,
            health=health.HealthStatus.UNHEALTHY,
            last_updated_time=int(time.time()),
            message="hot",
        )
    )
    wanted = [
        {
            "name": "claim:c",
            "resources": [
                {"resourceID": f"{node.driver}/{node.name}/dev0", "health": "Unhealthy", "message": "hot"}
            ],
        }
    ]
    last: object = None

    async def shown() -> bool:
        nonlocal last
        pod = await node.pod("p") or {}
        last = pod["status"]["containerStatuses"][0].get("allocatedResourcesStatus")
        return last == wanted

    await node.until(shown, f"health in the pod's status {last}")


@pytest.mark.slow
async def test_the_slices_of_drivers_that_went_are_deleted(node: Node, plugins: Plugins) -> None:
    """A real kubelet waits half a minute; before 1.33 it acts at once, and only on a socket that is gone."""
    gone = await started(node, plugins)
    silent = await started(node, plugins, node.other_driver)
    back = await started(node, plugins, f"back.{node.driver}")
    await gone.registrar.stop()
    await silent.hang_up()
    await back.hang_up()
    await back.serve()

    async def deleted() -> bool:
        return not await node.slices(gone.driver)

    await node.until(deleted, "the slices of the driver whose registration is gone")
    if node.version < (1, 33):
        assert await node.slices(silent.driver)
    else:

        async def deleted_too() -> bool:
            return not await node.slices(silent.driver)

        await node.until(deleted_too, "the slices of the driver that does not answer")
    assert await node.slices(back.driver)


async def test_the_answer_after_a_failure_of_another_driver_replaces_the_first(
    node: Node, plugins: Plugins
) -> None:
    """Both drivers are asked again, and what the first said before is not kept beside."""
    driver, other = await started(node, plugins), await started(node, plugins, node.other_driver)
    other.refuse_prepare = "broken"
    node.write_cdi(f"{node.driver}/acc", {"dev0": "1"})
    driver.answer = lambda claim: v1.NodePrepareResourceResponse(
        devices=[
            v1.Device(pool_name=node.name, device_name="dev0", cdi_device_ids=[f"{node.driver}/acc=dev0"])
        ]
    )
    await node.claim("c", Request("one", node.driver), Request("two", node.other_driver))
    await node.create(claim_pod("p", "c"))

    async def shown() -> list[str]:
        return await node.events("p", "FailedPrepareDynamicResources")

    await node.until(shown, "the event")
    other.relent()
    await node.running("p")
    assert (await node.got("p")).env == {"SUITE_dev0": "1"}
