"""How DRA drivers register, and what a kubelet asks of them for a pod's claims (B.1, B.2)."""

from __future__ import annotations

import pytest

from dra_v1.api import dra_v1_pb2 as v1
from tests.protocol.suite.drivers import DraDriver
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import Box, Pod, Request, claim_pod

FAILED = "FailedPrepareDynamicResources"


def told(node: Node, new: str, old: str = "") -> str:
    """Return the message of a failed preparation; 1.32 has words of its own."""
    wrapped = f"prepare dynamic resources: {new}" if node.version >= (1, 34) or not old else old
    return f"Failed to prepare dynamic resources: {wrapped}"


@pytest.mark.ci
async def test_the_first_of_the_drivers_versions_that_the_kubelet_knows_is_used(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    newest_first = plugins.dra(versions=("v9.DRAPlugin", "v1.DRAPlugin", "v1beta1.DRAPlugin"))
    oldest_first = plugins.dra(node.other_driver, versions=("v1beta1.DRAPlugin", "v1.DRAPlugin"))
    for driver in (newest_first, oldest_first):
        await driver.start()
        await node.publish(driver.driver, ["dev0"])
    assert journal.rpcs(newest_first.who)[:2] == ["GetInfo", "NotifyRegistrationStatus"]
    await node.claim("c", Request("one", node.driver), Request("two", node.other_driver))
    await node.create(claim_pod("p", "c"))
    await node.running("p")
    assert newest_first.services == ["v1" if node.version >= (1, 34) else "v1beta1"]
    assert oldest_first.services == ["v1beta1"]


async def test_a_driver_without_a_known_version_is_refused(node: Node, plugins: Plugins) -> None:
    driver = plugins.dra(versions=["v9.DRAPlugin"])
    await driver.serve()
    await driver.registrar.start()
    answer = await driver.registrar.told()
    if node.version < (1, 34):
        assert answer.plugin_registered, "1.32 takes it for an alpha driver"
        return
    assert not answer.plugin_registered
    assert answer.error == (
        "RegisterPlugin error -- plugin validation failed with err: invalid supported gRPC versions of DRA driver "
        f"plugin {node.driver} at endpoint {node.inside(driver.socket)}: none of services supported by the plugin "
        '(["v9.DRAPlugin"]) are supported by the kubelet (["v1.DRAPlugin" "v1beta1.DRAPlugin"])'
    )


async def test_a_driver_without_versions_is_refused(node: Node, plugins: Plugins) -> None:
    driver = plugins.dra(versions=[])
    await driver.serve()
    await driver.registrar.start()
    answer = await driver.registrar.told()
    assert not answer.plugin_registered
    where = (
        f"invalid supported gRPC versions of DRA driver plugin {node.driver} at endpoint {node.inside(driver.socket)}"
        if node.version >= (1, 34)
        else f"invalid versions of plugin {node.driver}"
    )
    assert answer.error == (
        f"RegisterPlugin error -- plugin validation failed with err: {where}: "
        "empty list of supported gRPC services (aka supported versions)"
    )


async def test_a_second_instance_is_used_until_it_goes(node: Node, plugins: Plugins) -> None:
    first, second = plugins.dra(), plugins.dra(instance="-2")
    await node.publish(node.driver, ["dev0", "dev1"])
    await first.start()
    await second.start()
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    await node.running("p")
    assert (len(first.prepared()), len(second.prepared())) == (0, 1)


@pytest.mark.ci
async def test_each_driver_is_asked_once_for_all_claims_of_a_pod_before_its_containers_and_once_after(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    driver, other = plugins.dra(), plugins.dra(node.other_driver)
    for one in (driver, other):
        await one.start()
        await node.publish(one.driver, ["dev0", "dev1", "dev2"])
    node.write_cdi(f"{node.driver}/acc", {"a": "1", "b": "2"})
    uids = {
        "a": await node.claim("a", Request("one", node.driver)),
        "b": await node.claim("b", Request("one", node.driver), Request("two", node.other_driver)),
    }

    def answer(claim: v1.Claim) -> v1.NodePrepareResourceResponse:
        name = f"{node.driver}/acc={claim.name}"
        device = v1.Device(
            pool_name=node.name, device_name="dev0", request_names=["one"], cdi_device_ids=[name]
        )
        return v1.NodePrepareResourceResponse(devices=[device])

    driver.answer = answer
    before = len(journal)
    boxes = (Box("main", claims=("a", "b/one")), Box("half", claims=("b",)), Box("other", claims=("b/two",)))
    await node.create(Pod("p", boxes, claims={"a": "a", "b": "b"}))
    await node.running("p")
    assert journal.rpcs(since=before) == ["NodePrepareResources"] * 2
    ((first, second),) = driver.prepared()
    assert first == v1.Claim(namespace=node.namespace, name="a", uid=uids["a"])
    assert second == v1.Claim(namespace=node.namespace, name="b", uid=uids["b"])
    assert other.prepared() == [[second]]
    assert (await node.got("p", "main")).env == {"SUITE_a": "1", "SUITE_b": "2"}
    assert (await node.got("p", "half")).env == {"SUITE_b": "2"}
    assert (await node.got("p", "other")).env == {}
    assert set(uids.values()) <= node.claims_checkpoint()
    await node.delete("p")
    await node.gone("p")
    assert journal.rpcs(since=before)[2:] == ["NodeUnprepareResources"] * 2
    assert driver.unprepared() == [[first, second]]
    assert other.unprepared() == [[second]]
    assert not set(uids.values()) & node.claims_checkpoint()


async def test_podresources_lists_prepared_devices(node: Node, plugins: Plugins) -> None:
    driver = plugins.dra()
    await driver.start()
    await node.publish(node.driver, ["dev0"])
    node.write_cdi(f"{node.driver}/acc", {"dev0": "1"})
    names = [f"{node.driver}/acc=dev0"]
    driver.answer = lambda claim: v1.NodePrepareResourceResponse(
        devices=[v1.Device(pool_name=node.name, device_name="dev0", cdi_device_ids=names)]
    )
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    await node.running("p")
    found = (await node.pod_resources())["p", "main"].dynamic_resources
    if node.version < (1, 34):
        assert not found, "alpha and off"
        return
    (claim,) = found
    assert (claim.claim_name, claim.claim_namespace) == ("c", node.namespace)
    (resource,) = claim.claim_resources
    assert (resource.driver_name, resource.pool_name, resource.device_name) == (
        node.driver,
        node.name,
        "dev0",
    )
    assert [device.name for device in resource.cdi_devices] == names


async def test_what_is_wrong_with_an_answer_is_told_and_asked_again(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    """Each fault has a driver of its own, because a kubelet takes ten seconds to come again."""
    drivers: dict[str, DraDriver] = {}
    uids: dict[str, str] = {}
    for fault in ("error", "code", "missing", "unknown", "both"):
        name = f"{fault}.{node.driver}"
        drivers[fault] = plugins.dra(name)
        await drivers[fault].start()
        await node.publish(name, ["dev0"])
        uids[fault] = await node.claim(fault, Request("one", name))

    def replace(
        answer: v1.NodePrepareResourcesResponse, uid: str, one: v1.NodePrepareResourceResponse
    ) -> None:
        answer.claims.clear()
        answer.claims[uid].CopyFrom(one)

    failed = v1.NodePrepareResourceResponse(error="boom")
    mixed = v1.NodePrepareResourceResponse(error="boom", devices=[v1.Device(pool_name="x", device_name="y")])
    drivers["error"].twist = lambda answer: replace(answer, uids["error"], failed)
    drivers["both"].twist = lambda answer: replace(answer, uids["both"], mixed)
    drivers["code"].refuse_prepare = "broken"
    drivers["missing"].twist = lambda answer: answer.claims.clear()
    drivers["unknown"].twist = lambda answer: replace(answer, "somebody", v1.NodePrepareResourceResponse())
    of = f"{node.namespace}/"
    expected = {
        "error": told(
            node,
            "NodePrepareResources failed for ResourceClaim error: boom",
            f"NodePrepareResources failed for claim {of}error: boom",
        ),
        "both": told(
            node,
            "NodePrepareResources failed for ResourceClaim both: boom",
            f"NodePrepareResources failed for claim {of}both: boom",
        ),
        "code": told(
            node,
            "NodePrepareResources: rpc error: code = Internal desc = broken",
            "NodePrepareResources failed: rpc error: code = Internal desc = broken",
        ),
        "missing": told(
            node,
            "NodePrepareResources skipped 1 ResourceClaims",
            "NodePrepareResources left out 1 claims",
        ),
        "unknown": told(
            node,
            "NodePrepareResources returned result for unknown claim UID somebody",
            "NodePrepareResources returned result for unknown claim UID somebody",
        ),
    }
    for fault in drivers:
        await node.create(claim_pod(fault, fault))
    for fault, text in expected.items():
        # The API server may at first refuse the node the claim, so it need not be the first event.
        async def shown(fault: str = fault, text: str = text) -> bool:
            return text in await node.events(fault, FAILED)

        await node.until(shown, f"the event of {fault}: {text}")
        assert (await node.pod(fault) or {})["status"]["phase"] == "Pending"
    for driver in drivers.values():
        driver.relent()
    for fault, driver in drivers.items():
        await node.running(fault)
        assert len(driver.prepared()) >= 2


async def test_names_in_an_answer_are_not_compared_with_the_allocation(node: Node, plugins: Plugins) -> None:
    """The kubelet takes what a driver says: pool, device and request names are the driver's own business."""
    driver = plugins.dra()
    await driver.start()
    await node.publish(node.driver, ["dev0"])
    driver.answer = lambda claim: v1.NodePrepareResourceResponse(
        devices=[
            v1.Device(),
            v1.Device(pool_name="another", device_name="unknown", request_names=["one/sub", "none"]),
        ]
    )
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))
    await node.running("p")
    assert len(driver.prepared()) == 1


async def test_a_driver_that_is_not_there_is_waited_for(node: Node, plugins: Plugins) -> None:
    driver = plugins.dra()
    await node.publish(node.driver, ["dev0"])
    await node.claim("c", Request("one", node.driver))
    await node.create(claim_pod("p", "c"))

    text = told(
        node,
        f"DRA driver {node.driver} is not registered",
        f"failed to get gRPC client for driver {node.driver}: "
        f"plugin name {node.driver} not found in the list of registered DRA plugins",
    )

    async def shown() -> bool:
        return text in await node.events("p", FAILED)

    await node.until(shown, text)
    await driver.start()
    await node.running("p")
    assert len(driver.prepared()) == 1


async def test_h32_a_pod_past_the_scheduler_may_not_use_its_claim(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    driver = plugins.dra()
    await driver.start()
    await node.publish(node.driver, ["dev0"])
    claim = await node.claim("c", Request("one", node.driver))
    pod = await node.create(claim_pod("p", "c", bound=True))

    text = told(
        node,
        f"pod p ({pod}) is not allowed to use ResourceClaim c ({claim})",
        f"pod p({pod}) is not allowed to use resource claim c({claim})",
    )

    async def shown() -> bool:
        return text in await node.events("p", FAILED)

    await node.until(shown, text)
    assert driver.prepared() == []
