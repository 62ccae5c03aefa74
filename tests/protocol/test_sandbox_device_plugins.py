"""The simulated kubelet's device manager behaves as kubelet-contract A says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest

from bridge.platform.api import podresources_pb2 as podres
from bridge.platform.api.podresources_pb2_grpc import PodResourcesListerStub
from bridge.sandbox import make
from bridge.sandbox.node import Sandbox
from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from tests.protocol.raw_plugins import RawDevicePlugin

if TYPE_CHECKING:
    from bridge.platform.api.podresources_pb2_grpc import PodResourcesListerAsyncStub


RESOURCE = "example.com/acc"
FOUR = ("a0", "a1", "a2", "a3")


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def plugin(box: Sandbox) -> AsyncIterator[RawDevicePlugin]:
    made = RawDevicePlugin(box.paths, RESOURCE, FOUR)
    await made.serve()
    await made.register()
    await box.wait_allocatable(RESOURCE, 4)
    yield made
    await made.stop()


async def listed(box: Sandbox) -> dict[tuple[str, str], set[str]]:
    async with grpc.aio.insecure_channel(f"unix://{box.paths.pod_resources}") as channel:
        stub: PodResourcesListerAsyncStub = PodResourcesListerStub(channel)
        answer = await stub.List(podres.ListPodResourcesRequest())
    found: dict[tuple[str, str], set[str]] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            for device in container.devices:
                found.setdefault((pod.name, container.name), set()).update(device.device_ids)
    return found


async def allocatable(box: Sandbox) -> set[str]:
    async with grpc.aio.insecure_channel(f"unix://{box.paths.pod_resources}") as channel:
        stub: PodResourcesListerAsyncStub = PodResourcesListerStub(channel)
        answer = await stub.GetAllocatableResources(podres.AllocatableResourcesRequest())
    return {one for device in answer.devices for one in device.device_ids}


async def come_back(box: Sandbox, plugin: RawDevicePlugin) -> None:
    await plugin.stop()
    await box.wait_allocatable(RESOURCE, 0)
    await plugin.serve()
    await plugin.register()
    await box.wait_allocatable(RESOURCE, 4)


async def test_a_pod_gets_devices_by_one_call_per_container(box: Sandbox, plugin: RawDevicePlugin) -> None:
    containers = [make.container("one", limits={RESOURCE: 1}), make.container("two", limits={RESOURCE: 2})]
    box.create_pod(make.pod("p", containers=containers))
    await box.wait_phase("p", "Running")
    assert [len(ids) for ids in plugin.allocated] == [1, 2]
    one, two = box.container("p", "one"), box.container("p", "two")
    assert one is not None and two is not None
    assert one.got.env["IDS"] == plugin.allocated[0][0]
    assert set(two.got.env["IDS"].split(",")) == set(plugin.allocated[1])
    assert await listed(box) == {
        ("p", "one"): set(plugin.allocated[0]),
        ("p", "two"): set(plugin.allocated[1]),
    }


@pytest.mark.parametrize(
    ("version", "resource", "text"),
    [
        ("v1alpha", RESOURCE, "is not supported by kubelet"),
        ("v1beta1", "acc", "is invalid"),
        ("v1beta1", "kubernetes.io/acc", "is invalid"),
        ("v1beta1", "deviceclass.resource.kubernetes.io/x", "is invalid"),
    ],
)
async def test_a_bad_registration_is_refused(box: Sandbox, version: str, resource: str, text: str) -> None:
    plugin = RawDevicePlugin(box.paths, RESOURCE, FOUR)
    await plugin.serve()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plugin.register(version, resource)
    assert text in str(refused.value.details())
    await plugin.stop()


async def test_the_stream_end_makes_everything_unhealthy_at_once(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    await plugin.stop()
    await box.wait_allocatable(RESOURCE, 0)
    node = box.get("nodes", box.node, "")
    assert node is not None and node["status"]["capacity"][RESOURCE] == "4"
    await plugin.serve()
    await plugin.register()
    await box.wait_allocatable(RESOURCE, 4)


async def test_each_list_replaces_the_last(box: Sandbox, plugin: RawDevicePlugin) -> None:
    plugin.devices = {"a0": "Healthy", "a1": "Unhealthy"}
    plugin.send()
    await box.wait_allocatable(RESOURCE, 1)
    assert await allocatable(box) == {"a0"}
    assert box.kubelet.devices.unhealthy[RESOURCE] == {"a1"}


async def test_a_refused_allocate_fails_the_pod_for_good(box: Sandbox, plugin: RawDevicePlugin) -> None:
    plugin.refuse = "acc0 is held by somebody"
    box.create_pod(make.pod("p", limits={RESOURCE: 1}))
    pod = await box.wait_phase("p", "Failed")
    assert pod["status"]["reason"] == "UnexpectedAdmissionError"
    assert pod["status"]["message"] == (
        "Pod was rejected: Allocate failed due to rpc error: code = FailedPrecondition "
        "desc = acc0 is held by somebody, "
        "which is unexpected"
    )
    assert not box.kubelet.devices.allocated.get(RESOURCE)
    assert await listed(box) == {}


async def test_preference_is_asked_with_all_candidates_and_obeyed(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    plugin.options.get_preferred_allocation_available = True
    plugin.prefer = lambda request: sorted(request.available_deviceIDs)[-request.allocation_size :]
    await come_back(box, plugin)
    box.create_pod(make.pod("p", limits={RESOURCE: 2}))
    await box.wait_phase("p", "Running")
    assert set(plugin.allocated[0]) == {"a2", "a3"}
    assert set(plugin.preferences[0].available_deviceIDs) == set(FOUR)
    box.create_pod(make.pod("q", limits={RESOURCE: 1}))
    await box.wait_phase("q", "Running")
    assert plugin.allocated[1] == ["a1"]


async def test_too_little_preference_is_no_refusal(box: Sandbox, plugin: RawDevicePlugin) -> None:
    plugin.options.get_preferred_allocation_available = True
    plugin.prefer = lambda request: ["a0", "nonsense"]
    await come_back(box, plugin)
    box.create_pod(make.pod("p", limits={RESOURCE: 3}))
    await box.wait_phase("p", "Running")
    assert len(plugin.allocated[0]) == 3
    assert "a0" in plugin.allocated[0]


async def test_an_init_containers_devices_are_used_again(box: Sandbox, plugin: RawDevicePlugin) -> None:
    pod = make.pod(
        "p",
        init=[make.container("prepare", limits={RESOURCE: 2})],
        containers=[make.container("main", limits={RESOURCE: 2})],
    )
    pod["metadata"]["annotations"]["sandbox/run-seconds.prepare"] = "0"
    box.create_pod(pod)
    await box.wait_phase("p", "Running")
    first, second = plugin.allocated
    assert set(first) == set(second)
    assert await listed(box) == {("p", "main"): set(second)}


async def test_h11_an_init_containers_device_is_in_the_checkpoint_only(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    pod = make.pod(
        "p", init=[make.container("prepare", limits={RESOURCE: 1})], containers=[make.container("main")]
    )
    box.create_pod(pod)
    await box.observe.wait("ContainerStarted", "default/p")
    assert await listed(box) == {}
    checkpoint = json.loads((box.paths.device_plugins / "kubelet_internal_checkpoint").read_text())
    (entry,) = checkpoint["Data"]["PodDeviceEntries"]
    assert (entry["ContainerName"], entry["ResourceName"]) == ("prepare", RESOURCE)
    assert entry["DeviceIDs"] == {"-1": plugin.allocated[0]}
    assert isinstance(checkpoint["Checksum"], int)


async def test_a_restarted_container_gets_the_cached_answer(box: Sandbox, plugin: RawDevicePlugin) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 1}, restart="Always"))
    await box.wait_phase("p", "Running")
    first = box.container("p")
    assert first is not None
    seen = len(box.observe)
    box.runtime.crash(first)
    await box.observe.wait("ContainerStarted", "default/p", since=seen)
    second = box.container("p")
    assert second is not None and second.got.env == first.got.env and second.attempt == 1
    assert len(plugin.allocated) == 1


async def test_pre_start_is_a_late_veto_that_does_not_fail_the_pod(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    plugin.options.pre_start_required = True
    plugin.refuse_start = "not now"
    await come_back(box, plugin)
    box.create_pod(make.pod("p", limits={RESOURCE: 1}))
    await box.observe.wait("EventFailed", "default/p")
    assert box.pod("p")["status"]["phase"] == "Pending"
    plugin.refuse_start = ""
    await box.wait_phase("p", "Running")
    assert plugin.started == plugin.allocated


async def test_registration_by_the_watcher_survives_a_kubelet_restart(box: Sandbox) -> None:
    plugin = RawDevicePlugin(box.paths, RESOURCE, FOUR)
    plugin.__class__ = _Outside
    await plugin.serve()
    registrar = await plugin.register_by_watcher()
    assert (await registrar.status()).plugin_registered
    await box.wait_allocatable(RESOURCE, 4)
    await box.kubelet.restart()
    assert (await registrar.status()).plugin_registered
    await box.wait_allocatable(RESOURCE, 4)
    await registrar.stop()
    await box.wait_allocatable(RESOURCE, 0)
    plugin.registrar = None
    await plugin.stop()


class _Outside(RawDevicePlugin):
    """A plugin whose socket is not in the folder that the kubelet wipes."""

    @property
    def socket(self):  # type: ignore[no-untyped-def]
        return self.paths.plugins / f"{self.name}.sock"


async def test_h13_kubelet_restart_wipes_sockets_and_keeps_grants(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 1}))
    await box.wait_phase("p", "Running")
    await box.kubelet.restart()
    assert not plugin.socket.exists()
    await box.wait_allocatable(RESOURCE, 0)
    await box.observe.wait("KubeletSynced")
    assert await listed(box) == {("p", "main"): set(plugin.allocated[0])}
    await plugin.server.stop(None)
    await come_back(box, plugin)
    box.create_pod(make.pod("q", limits={RESOURCE: 3}))
    await box.wait_phase("q", "Running")
    assert not set(plugin.allocated[0]) & set(plugin.allocated[1])


async def test_a_pod_that_does_not_run_at_restart_fails_before_the_plugin_is_back(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 1}, restart="Always"))
    await box.wait_phase("p", "Running")
    await box.kubelet.kill()
    container = box.container("p")
    assert container is not None
    box.runtime.crash(container)
    await box.kubelet.start()
    pod = await box.wait_phase("p", "Failed")
    assert "no healthy devices present; cannot allocate unhealthy devices" in pod["status"]["message"]


async def test_h14_a_corrupt_checkpoint_makes_held_devices_look_free(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 4}))
    await box.wait_phase("p", "Running")
    await box.kubelet.kill()
    (box.paths.device_plugins / "kubelet_internal_checkpoint").write_text("{")
    await box.kubelet.start()
    assert box.observe.of("CheckpointCorrupt")
    await box.observe.wait("KubeletSynced")
    assert await listed(box) == {}


async def test_h9_a_force_deleted_pods_devices_are_free_while_it_runs(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 4}, stop_seconds=30))
    await box.wait_phase("p", "Running")
    (running,) = box.runtime.containers.values()
    box.delete_pod("p", force=True)
    box.create_pod(make.pod("q", limits={RESOURCE: 1}))
    await box.wait_phase("q", "Running")
    assert running.running
    assert set(plugin.allocated[1]) <= set(plugin.allocated[0])


async def test_an_ordinary_deletion_waits_for_the_containers(box: Sandbox, plugin: RawDevicePlugin) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 1}, stop_seconds=0.2))
    await box.wait_phase("p", "Running")
    container = box.container("p")
    assert container is not None
    box.delete_pod("p")
    assert box.pod("p")["metadata"]["deletionGracePeriodSeconds"] == 30
    await box.wait_gone("pods", "p")
    assert not container.running and container.exit_code == 143


async def test_h3_one_pod_too_many_fails_at_admission(box: Sandbox, plugin: RawDevicePlugin) -> None:
    box.create_pod(make.pod("p", limits={RESOURCE: 4}))
    await box.wait_phase("p", "Running")
    box.create_pod(make.pod("q", limits={RESOURCE: 1}, node=box.node))
    pod = await box.wait_phase("q", "Failed")
    assert pod["status"]["reason"] == "UnexpectedAdmissionError"


async def test_device_specs_and_health_reach_the_container_and_its_status(
    box: Sandbox, plugin: RawDevicePlugin
) -> None:
    for one in FOUR:
        box.tree.add(f"/dev/{one}")
    plugin.answer = lambda ids: dp.ContainerAllocateResponse(
        devices=[
            dp.DeviceSpec(host_path=f"/dev/{i}", container_path=f"/dev/{i}", permissions="rw") for i in ids
        ]
    )
    box.create_pod(make.pod("p", limits={RESOURCE: 1}))
    await box.wait_phase("p", "Running")
    container = box.container("p")
    assert container is not None
    (one,) = plugin.allocated[0]
    assert [node.host_path for node in container.got.nodes] == [f"/dev/{one}"]
    plugin.devices[one] = "Unhealthy"
    plugin.send()

    def told() -> bool:
        (status,) = box.pod("p")["status"]["containerStatuses"]
        expected = [{"name": RESOURCE, "resources": [{"resourceID": one, "health": "Unhealthy"}]}]
        return bool(status["allocatedResourcesStatus"] == expected)

    await box.until(told, "the device's health in the pod's status")
    assert container.running


@pytest.mark.parametrize(("profile", "left"), [("1.37", 4), ("1.34", 0)])
async def test_h17_an_overlap_of_two_plugins_kills_the_new_one_in_earlier_releases(
    profile: str, left: int
) -> None:
    async with Sandbox(profile=profile) as box:
        first, second = (RawDevicePlugin(box.paths, RESOURCE, FOUR, name=name) for name in ("one", "two"))
        for plugin in (first, second):
            await plugin.serve()
            await plugin.register()
        await box.wait_allocatable(RESOURCE, 4)
        since = len(box.observe)
        await first.stop()
        await box.observe.wait("PluginDisconnected", RESOURCE, since=since)
        await box.wait_allocatable(RESOURCE, left)
        await second.stop()
