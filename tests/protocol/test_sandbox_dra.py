"""The simulated kubelet's DRA side, the scheduler and the controllers behave as kubelet-contract B to D says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bridge.sandbox import make
from bridge.sandbox.cluster.objects import ApiProblem, dig, uid_of
from bridge.sandbox.node import Sandbox, Timings
from dra_v1.api import dra_v1_pb2 as dra
from dra_v1.api import health_v1_pb2 as health
from tests.protocol.raw_plugins import RawDraDriver

DRIVER = "acc.example.com"
Slice = dict[str, Any]


def slice_of(*names: str, **spec: Any) -> Slice:
    devices = [{"name": name} for name in names]
    pool = {"name": "node-a", "generation": 1, "resourceSliceCount": 1}
    return {
        "metadata": {"name": "00000-acc"},
        "spec": {"driver": DRIVER, "nodeName": "node-a", "pool": pool, "devices": devices, **spec},
    }


def cdi_spec(box: Sandbox, *names: str) -> None:
    devices = [
        {"name": n, "containerEdits": {"env": [f"DEV_{n}=1"], "deviceNodes": [{"path": f"/dev/{n}"}]}}
        for n in names
    ]
    spec = {"cdiVersion": "0.6.0", "kind": "example.com/acc", "devices": devices}
    (box.paths.cdi_static / "acc.json").write_text(json.dumps(spec))
    box.tree.add(*(f"/dev/{name}" for name in names))


def answer_from(box: Sandbox) -> Callable[[dra.Claim], dra.NodePrepareResourceResponse]:
    """Answer a claim with one CDI name per allocated device, as a correct driver does."""

    def answer(claim: dra.Claim) -> dra.NodePrepareResourceResponse:
        stored = box.get("resourceclaims", claim.name, claim.namespace)
        assert stored is not None and uid_of(stored) == claim.uid
        response = dra.NodePrepareResourceResponse()
        for result in dig(stored, "status.allocation.devices.results"):
            device = response.devices.add(
                request_names=[result["request"].split("/")[0]],
                pool_name=result["pool"],
                device_name=result["device"],
                cdi_device_ids=[f"example.com/acc={result['device']}"],
            )
            if "shareID" in result:
                device.share_id = result["shareID"]
        return response

    return answer


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with Sandbox(timings=Timings(wipe_delay=0.2)) as sandbox:
        await sandbox.observe.wait("SlicesWiped")
        sandbox.create_class("acc", DRIVER)
        cdi_spec(sandbox, "d0", "d1", "d2")
        yield sandbox


@pytest.fixture
async def driver(box: Sandbox) -> AsyncIterator[RawDraDriver]:
    made = RawDraDriver(box.paths, DRIVER)
    made.prepare = answer_from(box)
    await made.start()
    box.create("resourceslices", slice_of("d0", "d1", "d2"))
    yield made
    await made.stop()


def results(box: Sandbox, claim: str) -> list[dict[str, Any]]:
    return list(dig(box.get("resourceclaims", claim), "status.allocation.devices.results", []))


async def test_a_claim_is_prepared_injected_and_unprepared(box: Sandbox, driver: RawDraDriver) -> None:
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.wait_phase("p", "Running")
    container = box.container("p")
    assert container is not None and container.got.env == {"DEV_d0": "1"}
    assert [node.host_path for node in container.got.nodes] == ["/dev/d0"]
    box.delete_pod("p")
    await box.wait_gone("pods", "p")
    assert [[c.name for c in call] for call in driver.unprepares] == [["c"]]
    await box.until(lambda: not results(box, "c"), "claim deallocated")


async def test_one_prepare_call_carries_all_claims_of_a_pod(box: Sandbox, driver: RawDraDriver) -> None:
    for name in ("c1", "c2", "c3"):
        box.create_claim(name, make.request("acc"))
    box.create_pod(make.pod("p", claims={"a": "c1", "b": "c2", "c": "c3"}))
    await box.wait_phase("p", "Running")
    assert [sorted(c.name for c in call) for call in driver.prepares] == [["c1", "c2", "c3"]]
    assert [results(box, name)[0]["device"] for name in ("c1", "c2", "c3")] == ["d0", "d1", "d2"]


def _foreign(answer: dra.NodePrepareResourcesResponse) -> None:
    answer.claims["ffff"].SetInParent()


def _missing(answer: dra.NodePrepareResourcesResponse) -> None:
    answer.claims.clear()


@pytest.mark.parametrize(
    ("twist", "text"),
    [
        (_foreign, "returned result for unknown claim UID ffff"),
        (_missing, "NodePrepareResources skipped 1 ResourceClaims"),
    ],
)
async def test_a_wrong_answer_is_an_error_and_tried_again(
    box: Sandbox, driver: RawDraDriver, twist: Callable[[dra.NodePrepareResourcesResponse], None], text: str
) -> None:
    driver.twist = twist
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    told = await box.observe.wait("EventFailedPrepareDynamicResources", "default/p")
    assert text in str(told.facts["message"])
    assert box.pod("p")["status"]["phase"] == "Pending"
    driver.twist = lambda answer: None
    await box.wait_phase("p", "Running")


async def test_an_unknown_cdi_name_keeps_the_container_from_starting(
    box: Sandbox, driver: RawDraDriver
) -> None:
    (box.paths.cdi_static / "acc.json").unlink()
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    told = await box.observe.wait("EventFailed", "default/p")
    assert "unresolvable CDI devices example.com/acc=d0" in str(told.facts["message"])


async def test_a_pod_whose_driver_is_gone_stays_terminating(box: Sandbox, driver: RawDraDriver) -> None:
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.wait_phase("p", "Running")
    driver.unprepare_error = "the device does not answer"
    box.delete_pod("p")
    told = await box.observe.wait("UnprepareFailed", "default/p")
    assert "the device does not answer" in str(told.facts["error"])
    assert box.get("pods", "p") is not None and results(box, "c")
    driver.unprepare_error = ""
    await box.wait_gone("pods", "p")


async def test_h7_a_shared_claim_is_prepared_once_and_unprepared_after_its_last_pod(
    box: Sandbox, driver: RawDraDriver
) -> None:
    box.create_claim("c", make.request("acc"))
    for name in ("p", "q"):
        box.create_pod(make.pod(name, claims={"dev": "c"}))
        await box.wait_phase(name, "Running")
    assert len(driver.prepares) == 1
    box.delete_pod("p")
    await box.wait_gone("pods", "p")
    assert driver.unprepares == []
    box.delete_pod("q")
    await box.wait_gone("pods", "q")
    assert len(driver.unprepares) == 1


async def test_h13_after_a_kubelet_restart_a_running_pods_claim_is_prepared_again_for_another_pod(
    box: Sandbox, driver: RawDraDriver
) -> None:
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.wait_phase("p", "Running")
    before = box.container("p")
    seen = len(box.observe)
    await box.kubelet.restart()
    wiped = await box.observe.wait("SlicesWiped", since=seen)
    assert wiped.facts["count"] == 1
    await box.observe.wait("DriverRegistered", since=seen)
    box.create_pod(make.pod("q", claims={"dev": "c"}))
    await box.wait_phase("q", "Running")
    assert driver.prepares[1:] == driver.prepares[:1] and box.container("p") is before
    for pod in ("p", "q"):
        assert driver.unprepares == []
        box.delete_pod(pod)
        await box.wait_gone("pods", pod)
    assert len(driver.unprepares) == 1


async def test_h6_a_claim_remade_under_its_name_waits_for_the_old_one(
    box: Sandbox, driver: RawDraDriver
) -> None:
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}, stop_seconds=0.5))
    await box.wait_phase("p", "Running")
    box.delete_pod("p", force=True)
    await box.until(lambda: not results(box, "c"), "claim deallocated")
    box.api.registry.delete("resourceclaims", "c", "default")
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("q", claims={"dev": "c"}))
    told = await box.observe.wait("EventFailedPrepareDynamicResources", "default/q")
    assert "previous pod force-deleted" in str(told.facts["message"])
    await box.wait_phase("q", "Running")
    assert len(driver.unprepares) == 1


async def test_slices_are_wiped_after_the_last_instance_and_not_if_it_returns(
    box: Sandbox, driver: RawDraDriver
) -> None:
    await driver.registrar.stop()
    await box.until(lambda: not box.slices(DRIVER), "slices wiped")
    box.create("resourceslices", slice_of("d0"))
    await driver.registrar.start()
    assert (await driver.registrar.status()).plugin_registered
    assert box.slices(DRIVER)


async def test_a_slow_get_info_fails_and_is_tried_again(box: Sandbox) -> None:
    driver = RawDraDriver(box.paths, DRIVER)
    await driver.serve()
    driver.registrar.delay = 1.5
    await driver.registrar.start()
    await box.observe.wait("RegistrationFailed", f"{DRIVER}-reg.sock")
    driver.registrar.delay = 0
    assert (await driver.registrar.status()).plugin_registered
    await driver.stop()


async def test_an_unsupported_version_is_told_to_the_plugin(box: Sandbox) -> None:
    driver = RawDraDriver(box.paths, DRIVER, versions=["v9.DRAPlugin"])
    await driver.serve()
    await driver.registrar.start()
    status = await driver.registrar.status()
    assert not status.plugin_registered and "none of services supported by the plugin" in status.error
    await driver.stop()


async def test_the_release_1_32_speaks_v1beta1_and_serves_v1beta1() -> None:
    async with Sandbox(profile="1.32") as box:
        await box.observe.wait("SlicesWiped")
        box.create_class("acc", DRIVER)
        cdi_spec(box, "d0")
        driver = RawDraDriver(box.paths, DRIVER, versions=["v1.DRAPlugin", "v1beta1.DRAPlugin"])
        driver.prepare = answer_from(box)
        await driver.start()
        assert box.observe.of("DriverRegistered")[0].facts["service"] == "v1beta1.DRAPlugin"
        box.create("resourceslices", slice_of("d0"))
        box.create_claim("c", make.request("acc"))
        box.create_pod(make.pod("p", claims={"dev": "c"}))
        await box.wait_phase("p", "Running")
        await driver.stop()


async def test_health_reaches_the_pods_status(box: Sandbox) -> None:
    driver = RawDraDriver(box.paths, DRIVER, versions=["v1.DRAPlugin", "v1.DRAResourceHealth"])
    driver.prepare = answer_from(box)
    await driver.start()
    box.create("resourceslices", slice_of("d0"))
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.wait_phase("p", "Running")
    identifier = health.DeviceIdentifier(pool_name="node-a", device_name="d0")
    entry = health.DeviceHealth(device=identifier, health=health.UNHEALTHY, message="too hot")
    driver.health.put_nowait(health.NodeWatchResourcesResponse(devices=[entry]))

    def told() -> bool:
        (status,) = box.pod("p")["status"]["containerStatuses"]
        device = {"resourceID": "example.com/acc=d0", "health": "Unhealthy", "message": "too hot"}
        return bool(status["allocatedResourcesStatus"] == [{"name": "claim:dev", "resources": [device]}])

    await box.until(told, "health in the pod's status")
    await driver.stop()


async def test_a_template_claim_lives_as_long_as_its_pod(box: Sandbox, driver: RawDraDriver) -> None:
    box.create_template("t", make.request("acc", count=2))
    box.create_pod(make.pod("p", templates={"dev": "t"}, run_seconds=0.05))
    await box.wait_phase("p", "Succeeded")
    await box.until(lambda: not box.api.registry.select("resourceclaims"), "template claim deleted")
    (call,) = driver.prepares
    assert call[0].name.startswith("p-dev-")
    assert len(driver.unprepares) == 1


async def test_an_incomplete_pool_and_a_tainted_device_are_not_allocated(
    box: Sandbox, driver: RawDraDriver
) -> None:
    stored = box.slices()[0]
    stored["spec"]["pool"]["resourceSliceCount"] = 2
    box.api.registry.replace("resourceslices", stored)
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.observe.wait("Unschedulable", "default/p")
    stored = box.slices()[0]
    stored["spec"]["pool"]["resourceSliceCount"] = 1
    stored["spec"]["devices"][0]["taints"] = [{"key": "example.com/held", "effect": "NoSchedule"}]
    box.api.registry.replace("resourceslices", stored)
    await box.wait_phase("p", "Running")
    assert results(box, "c")[0]["device"] == "d1"


async def test_a_no_execute_taint_evicts_the_pod(box: Sandbox, driver: RawDraDriver) -> None:
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.wait_phase("p", "Running")
    stored = box.slices()[0]
    stored["spec"]["devices"][0]["taints"] = [{"key": "example.com/held", "effect": "NoExecute"}]
    box.api.registry.replace("resourceslices", stored)
    await box.wait_gone("pods", "p")
    assert box.observe.of("Evicted", "default/p")


async def test_shares_of_a_device_have_ids_and_use_its_capacity_up(
    box: Sandbox, driver: RawDraDriver
) -> None:
    stored = box.slices()[0]
    policy = {"default": "2", "validRange": {"min": "2", "step": "2"}}
    stored["spec"]["devices"] = [
        {
            "name": "d0",
            "allowMultipleAllocations": True,
            "capacity": {"credits": {"value": "6", "requestPolicy": policy}},
        }
    ]
    box.api.registry.replace("resourceslices", stored)
    for name, amount in (("c1", "3"), ("c2", "1"), ("c3", "1")):
        box.create_claim(name, make.request("acc", capacity={"credits": amount}))
        box.create_pod(make.pod(f"p-{name}", claims={"dev": name}))
    await box.wait_phase("p-c1", "Running")
    await box.wait_phase("p-c2", "Running")
    await box.observe.wait("Unschedulable", "default/p-c3")
    (first,), (second,) = results(box, "c1"), results(box, "c2")
    assert first["consumedCapacity"] == {"credits": "4"} and second["consumedCapacity"] == {"credits": "2"}
    assert first["shareID"] != second["shareID"]


async def test_h26_admin_access_is_granted_on_a_device_in_use(box: Sandbox, driver: RawDraDriver) -> None:
    box.create_claim("all", make.request("acc", all_devices=True))
    box.create_pod(make.pod("p", claims={"dev": "all"}))
    await box.wait_phase("p", "Running")
    assert len(results(box, "all")) == 3
    box.create_claim("admin", make.request("acc", admin=True))
    box.create_pod(make.pod("q", claims={"dev": "admin"}))
    await box.wait_phase("q", "Running")
    assert results(box, "admin")[0]["adminAccess"] is True


async def test_h31_an_extended_resource_goes_to_dra_where_the_node_has_none(
    box: Sandbox, driver: RawDraDriver
) -> None:
    box.api.registry.delete("deviceclasses", "acc")
    box.create_class("acc", DRIVER, extended="example.com/acc")
    box.create_pod(make.pod("p", limits={"example.com/acc": 2}))
    pod = await box.wait_phase("p", "Running")
    status = pod["status"]["extendedResourceClaimStatus"]
    assert status["resourceClaimName"].startswith("p-extended-resources-")
    assert status["requestMappings"] == [
        {"containerName": "main", "resourceName": "example.com/acc", "requestName": "container-0-request-0"}
    ]
    container = box.container("p")
    assert container is not None and container.got.cdi_names == ["example.com/acc=d0", "example.com/acc=d1"]


async def test_binding_waits_for_the_conditions_of_the_devices(box: Sandbox, driver: RawDraDriver) -> None:
    stored = box.slices()[0]
    for device in stored["spec"]["devices"]:
        device.update(bindsToNode=True, bindingConditions=["ready"], bindingFailureConditions=["held"])
    box.api.registry.replace("resourceslices", stored)
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.observe.wait("BindingConditionsPending", "default/p")
    assert box.pod("p")["status"]["nominatedNodeName"] == "node-a"
    assert "nodeName" not in box.pod("p")["spec"]
    entry = {"driver": DRIVER, "pool": "node-a", "device": "d0"}
    entry["conditions"] = [{"type": "ready", "status": "True"}]  # type: ignore[assignment]
    status = {"status": {"devices": [entry]}}
    box.api.registry.patch(
        "resourceclaims", "c", status, namespace="default", kind="merge", subresource="status"
    )
    await box.wait_phase("p", "Running")


async def test_h33_without_the_api_server_nothing_new_is_prepared(box: Sandbox, driver: RawDraDriver) -> None:
    gate = asyncio.Event()

    async def hold() -> None:
        await gate.wait()

    driver.hold = hold
    box.create_claim("c", make.request("acc"))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    await box.observe.wait("PodAdmitted", "default/p")
    box.api.unavailable()
    with pytest.raises(ApiProblem, match="cannot be reached"):
        box.kubelet.dra._context.api.get("pods", "p", "default")
    box.api.unavailable(False)
    gate.set()
    await box.wait_phase("p", "Running")


async def test_a_selector_that_is_not_understood_is_a_clear_error(box: Sandbox, driver: RawDraDriver) -> None:
    spec = make.claim_spec(make.request("acc"))
    expression = 'device.attributes["acc"].x == 1'
    spec["devices"]["requests"][0]["exactly"]["selectors"] = [{"cel": {"expression": expression}}]
    box.create("resourceclaims", make.claim("c", spec))
    box.create_pod(make.pod("p", claims={"dev": "c"}))
    told = await box.observe.wait("Unschedulable", "default/p")
    assert "the sandbox understands only" in str(told.facts["reason"])
