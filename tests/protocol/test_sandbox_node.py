"""The sandbox as a whole: reboot, races made certain, the runtime's API, other releases, its own honesty."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest

from bridge.platform.api import cri_pb2 as cri
from bridge.platform.api.cri_pb2_grpc import RuntimeServiceStub
from bridge.sandbox import make
from bridge.sandbox.cdi import CdiError, Specs
from bridge.sandbox.cluster.objects import uid_of
from bridge.sandbox.node import Sandbox, SandboxBroken
from bridge.sandbox.tasks import spawn
from tests.protocol.raw_plugins import RawDevicePlugin

if TYPE_CHECKING:
    from pathlib import Path

    from bridge.platform.api.cri_pb2_grpc import RuntimeServiceAsyncStub

RESOURCE = "example.com/acc"


async def started(box: Sandbox, count: int = 2) -> RawDevicePlugin:
    plugin = RawDevicePlugin(box.paths, RESOURCE, [f"a{i}" for i in range(count)])
    await plugin.serve()
    await plugin.register()
    await box.wait_allocatable(RESOURCE, count)
    return plugin


async def test_nothing_is_left_behind() -> None:
    async with Sandbox() as box:
        base = box.paths.base
        plugin = await started(box)
        box.create_pod(make.pod("p", limits={RESOURCE: 1}))
        await box.wait_phase("p", "Running")
        await plugin.stop()
    assert not base.exists()


async def test_h20_a_reboot_ends_containers_and_empties_run_cdi() -> None:
    async with Sandbox() as box:
        plugin = await started(box)
        box.create_pod(make.pod("p", limits={RESOURCE: 1}, restart="Always"))
        await box.wait_phase("p", "Running")
        first = box.container("p")
        (box.paths.cdi_dynamic / "x.json").write_text("{}")
        (box.paths.cdi_static / "x.json").write_text("{}")
        boot = box.tree.at("/proc/sys/kernel/random/boot_id").read_text()
        await box.reboot()
        assert not list(box.paths.cdi_dynamic.iterdir()) and list(box.paths.cdi_static.iterdir())
        assert box.tree.at("/proc/sys/kernel/random/boot_id").read_text() != boot
        assert first is not None and not first.running
        pod = await box.wait_phase("p", "Failed")
        assert "no healthy devices present" in pod["status"]["message"]
        await plugin.stop()


async def test_h3_a_stale_scheduler_binds_one_pod_too_many() -> None:
    async with Sandbox() as box:
        plugin = await started(box)
        with box.scheduler.stale():
            plugin.devices = {"a0": "Unhealthy", "a1": "Unhealthy"}
            plugin.send()
            await box.wait_allocatable(RESOURCE, 0)
            box.create_pod(make.pod("p", limits={RESOURCE: 1}))
            pod = await box.wait_phase("p", "Failed")
        assert pod["status"]["reason"] == "UnexpectedAdmissionError"
        box.create_pod(make.pod("q", limits={RESOURCE: 1}))
        told = await box.observe.wait("Unschedulable", "default/q")
        assert f"Insufficient {RESOURCE}" in str(told.facts["reason"])
        await plugin.stop()


async def test_h9_the_runtime_shows_what_podresources_does_not() -> None:
    async with Sandbox() as box:
        plugin = await started(box)
        box.create_pod(make.pod("p", limits={RESOURCE: 1}, stop_seconds=30))
        pod = await box.wait_phase("p", "Running")
        box.delete_pod("p", force=True)
        await box.observe.wait("PodGone", "default/p")
        async with grpc.aio.insecure_channel(f"unix://{box.paths.cri_socket}") as channel:
            stub: RuntimeServiceAsyncStub = RuntimeServiceStub(channel)
            state = cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)
            containers = await stub.ListContainers(
                cri.ListContainersRequest(filter=cri.ContainerFilter(state=state))
            )
            sandboxes = await stub.ListPodSandbox(cri.ListPodSandboxRequest())
        (container,), (sandbox,) = containers.containers, sandboxes.items
        assert container.labels["io.kubernetes.pod.uid"] == uid_of(pod) == sandbox.metadata.uid
        assert container.pod_sandbox_id == sandbox.id
        assert box.kubelet.active_pods() == []
        await plugin.stop()


async def test_a_release_without_dra_still_has_device_plugins() -> None:
    async with Sandbox(profile="1.31") as box:
        plugin = await started(box)
        box.create_pod(make.pod("p", limits={RESOURCE: 1}, run_seconds=0.01))
        await box.wait_phase("p", "Succeeded")
        await plugin.stop()


async def test_many_short_pods_never_share_a_device() -> None:
    async with Sandbox() as box:
        plugin = await started(box, 8)
        holders: dict[str, str] = {}
        names = [f"p{i}" for i in range(60)]
        for name in names:
            box.create_pod(make.pod(name, limits={RESOURCE: 1}, run_seconds=0.02))
        await box.until(
            lambda: all(box.pod(name)["status"]["phase"] in ("Succeeded", "Failed") for name in names),
            "all ended",
        )
        for seen in box.observe:
            pod = str(seen.about)
            if seen.what == "ContainerStarted":
                container = next(c for c in box.runtime.containers.values() if f"default/{c.pod_name}" == pod)
                device = container.got.env["IDS"]
                assert device not in holders
                holders[device] = pod
            elif seen.what == "ContainerExited":
                holders = {device: holder for device, holder in holders.items() if holder != pod}
        assert len(plugin.allocated) >= 8
        await plugin.stop()


async def test_a_crash_of_the_sandbox_is_not_passed_over() -> None:
    async def crash() -> None:
        raise RuntimeError("a fault of the sandbox")

    with pytest.raises(SandboxBroken, match="a fault of the sandbox"):
        async with Sandbox() as box:
            spawn(box.observe, "a part", crash())
            await box.observe.wait("Crashed")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"cdiVersion": "9.9.9"}, "unknown cdiVersion"),
        ({"devices": []}, "must have devices"),
        ({"kind": "nonsense"}, "want vendor/class=name"),
        ({"extra": 1}, "unknown fields in spec: extra"),
        ({"devices": [{"name": "d", "containerEdits": {}}]}, "has no container edits"),
        (
            {"devices": [{"name": "d", "containerEdits": {"deviceNodes": [{"path": "dev/x"}]}}]},
            "is not absolute",
        ),
        ({"devices": [{"name": "d", "containerEdits": {"env": ["A"]}}]}, "is not NAME=value"),
    ],
)
def test_a_spec_file_that_does_not_parse_makes_its_devices_unresolvable(
    tmp_path: Path, spec: dict[str, object], text: str
) -> None:
    good = {
        "cdiVersion": "0.6.0",
        "kind": "example.com/acc",
        "devices": [{"name": "d", "containerEdits": {"env": ["A=1"]}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(good))
    assert Specs(tmp_path).resolve(["example.com/acc=d"]).env == {"A": "1"}
    (tmp_path / "a.json").write_text(json.dumps(good | spec))
    with pytest.raises(CdiError, match=text):
        Specs(tmp_path).resolve(["example.com/acc=d"])
