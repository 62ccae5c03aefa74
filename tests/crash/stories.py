"""Small stories of a node's life. Each is told in three parts, divided by `yield`: what stands before; what is
begun, in the course of which the daemon dies; and how it goes on once the daemon is up again.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc

from bridge.config import Mode
from bridge.daemon import control
from bridge.ledger.holds import Phase
from bridge.planes.modes import LABEL
from bridge.sandbox import make
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api.deviceplugin_pb2_grpc import DevicePluginStub
from dra_v1.api import health_v1alpha1_pb2 as health
from dra_v1.api.health_v1alpha1_pb2_grpc import DRAResourceHealthStub
from tests.crash.scene import ACC, DEVICES, DRIVER, LEGACY, NX, RESOURCE, Groups, Scene

Telling = AsyncGenerator[None, None]


@dataclass(frozen=True, slots=True, eq=False)
class Story:
    """How a story is told.

    Attributes:
        tell: its three parts.
        groups: of the configuration, at the end.
        profile: the Kubernetes release.
    """

    tell: Callable[[Scene], Telling]
    groups: Groups = (ACC,)
    profile: str = "1.37"

    def __str__(self) -> str:
        legacy = "-legacy" if LEGACY in self.groups else ""
        return self.tell.__name__ + legacy + (f"-{self.profile}" if self.profile != "1.37" else "")


# -- on the device plugin plane


async def pod_starts(scene: Scene) -> Telling:
    """A pod gets a device through the device plugin API."""
    await scene.serve()
    await scene.calms()
    yield
    scene.device_plugin_pod("p")
    yield
    await scene.runs_or_is_replaced("p")


async def pod_ends(scene: Scene) -> Telling:
    """A pod that had one ends."""
    await scene.serve()
    scene.device_plugin_pod("p")
    await scene.runs("p")
    await scene.until(lambda: scene.phases() == {Phase.HELD}, "the hold has its pod")
    await scene.calms()
    yield
    scene.box.delete_pod("p")
    yield


async def pod_is_refused(scene: Scene) -> Telling:
    """The kubelet asks for what a claim has: its list was old."""
    await scene.serve()
    scene.dra_pod("c")
    await scene.runs("c")
    ((_, _, held),) = scene.booked()
    await scene.calms()
    yield
    scene.ask(scene.box.kubelet.devices.endpoints[RESOURCE].allocate([held]))
    yield


async def container_is_prepared(scene: Scene) -> Telling:
    """Somebody makes the call before a container's start, which this daemon does not ask for."""
    await scene.serve()
    await scene.calms()
    yield

    async def call() -> None:
        async with grpc.aio.insecure_channel(
            f"unix://{scene.box.kubelet.devices.endpoints[RESOURCE].socket}"
        ) as c:
            stub: Any = DevicePluginStub(c)
            await stub.PreStartContainer(pb.PreStartContainerRequest(devices_ids=["crypto-acc0"]))

    scene.ask(call())
    yield


# -- on the DRA plane


async def claim_starts(scene: Scene) -> Telling:
    """A pod gets a device through a claim."""
    await scene.serve()
    await scene.calms()
    yield
    scene.dra_pod("c")
    yield
    await scene.runs("c")


async def claim_is_refused(scene: Scene) -> Telling:
    """A claim is allocated what a pod got through the device plugin API: the scheduler's view was old."""
    await scene.serve()
    await scene.calms()
    with scene.box.scheduler.stale():
        scene.box.create_pod(make.pod("p", limits={RESOURCE: DEVICES}))
        await scene.runs("p")
        await scene.calms()
        yield
        scene.dra_pod("c")
        yield
    scene.box.delete_pod("p")


async def configured_claim_starts(scene: Scene) -> Telling:
    """A pod gets a device through a claim with a configuration."""
    await scene.serve()
    await scene.calms()
    yield
    scene.configured_pod("c")
    yield
    await scene.runs("c")


async def claim_ends(scene: Scene) -> Telling:
    """A pod that had a claim ends, and the claim is deallocated."""
    await scene.serve()
    scene.dra_pod("c")
    await scene.runs("c")
    await scene.calms()
    yield
    scene.box.delete_pod("c")
    yield


async def configured_claim_ends(scene: Scene) -> Telling:
    """A pod whose claim had a configuration ends."""
    await scene.serve()
    scene.configured_pod("c")
    await scene.runs("c")
    await scene.calms()
    yield
    scene.box.delete_pod("c")
    yield


# -- on both


async def first_start(scene: Scene) -> Telling:
    """The daemon runs for the first time."""
    yield
    await scene.begin()
    yield


async def health_is_watched(scene: Scene) -> Telling:
    """A kubelet of 1.34 with the alpha gate watches the health of devices."""
    await scene.serve()
    await scene.calms()
    yield

    async def call() -> None:
        async with grpc.aio.insecure_channel(
            f"unix://{scene.box.paths.plugins / DRIVER / 'dra.sock'}"
        ) as channel:
            stub: Any = DRAResourceHealthStub(channel)
            async for _ in stub.NodeWatchResources(health.NodeWatchResourcesRequest()):
                pass

    scene.ask(call())
    yield


async def operator_looks(scene: Scene) -> Telling:
    """Somebody on the node asks what is held."""
    await _held_on_both(scene)
    await scene.calms()
    yield
    scene.ask(_control(scene, {"do": "holds"}))
    yield


async def operator_releases(scene: Scene) -> Telling:
    """Somebody on the node releases by force what was handed out to a pod that never came."""
    await scene.serve()
    await scene.calms()
    await scene.box.kubelet.devices.endpoints[RESOURCE].allocate(["crypto-acc0"])
    yield
    request = {"do": "release", "device": "crypto-acc0", "force": True, "who": "somebody", "why": "no pod"}
    scene.ask(_control(scene, request))
    yield


async def _control(scene: Scene, request: dict[str, object]) -> None:
    reader, writer = await asyncio.open_unix_connection(scene.state / control.NAME)
    writer.write(json.dumps(request).encode() + b"\n")
    await reader.readline()
    writer.close()


async def _held_on_both(scene: Scene) -> None:
    await scene.serve()
    scene.device_plugin_pod("p")
    scene.dra_pod("c")
    if NX in scene.groups:
        scene.configured_pod("n")
    for pod in ("p", "c", *(["n"] if NX in scene.groups else [])):
        await scene.runs(pod)


async def starts_with_holds(scene: Scene) -> Telling:
    """The daemon starts while both planes hold devices, after a reboot that took the dynamic CDI files."""
    await _held_on_both(scene)
    await scene.daemon.kill()
    for path in scene.box.paths.cdi_dynamic.iterdir():
        path.unlink()
    _write(scene, "UPDATE meta SET value = 'another' WHERE key = 'boot'")
    yield
    await scene.begin()
    yield


async def starts_with_leftovers(scene: Scene) -> Telling:
    """The daemon starts where a group of another configuration has left its CDI file."""
    await _held_on_both(scene)
    await scene.daemon.kill()
    other = (scene.box.paths.cdi_static / "device-bridge.io-acc.json").read_text().replace("/acc", "/old")
    (scene.box.paths.cdi_static / "device-bridge.io-old.json").write_text(other)
    yield
    await scene.begin()
    yield


async def starts_with_another_group(scene: Scene) -> Telling:
    """The daemon starts with one group more, while both planes of the first hold devices."""
    scene.groups = (ACC,)
    await _held_on_both(scene)
    await scene.daemon.kill()
    scene.groups = (ACC, NX)
    yield
    await scene.begin()
    yield


async def starts_with_an_old_ledger(scene: Scene) -> Telling:
    """The daemon starts on a ledger of the first schema, with holds of both planes."""
    await _held_on_both(scene)
    await scene.daemon.kill()
    _write(scene, "DROP TABLE records")
    _write(scene, "DROP TABLE switches")
    _write(scene, "PRAGMA user_version=1")
    yield
    await scene.begin()
    yield


async def starts_with_a_damaged_ledger(scene: Scene) -> Telling:
    """The daemon starts on a damaged ledger with holds of both planes; the node is drained, and it begins anew."""
    await _held_on_both(scene)
    await scene.daemon.kill()
    (scene.state / "ledger.db").write_bytes(b"damaged")
    yield
    await scene.begin()
    yield
    await _drained(scene)


async def starts_with_a_lost_ledger(scene: Scene) -> Telling:
    """As with a damaged one, but its file is gone and its journal is left."""
    await _held_on_both(scene)
    await scene.daemon.kill()
    (scene.state / "ledger.db").unlink()
    yield
    await scene.begin()
    yield
    await _drained(scene)


async def _drained(scene: Scene) -> None:
    await scene.all_end()
    await scene.daemon.kill()
    scene.accept_empty_ledger = True
    await scene.serve()


async def stops(scene: Scene) -> Telling:
    """SIGTERM, with holds of both planes."""
    await _held_on_both(scene)
    await scene.calms()
    yield
    scene.daemon.terminate()
    yield


async def _switches(scene: Scene, begins: Mode, to: Mode) -> Telling:
    """The Node's label asks for another mode while both planes hold devices, and in the end for the file's again."""
    await scene.serve()
    await scene.calms()  # the scheduler sees what is allocatable, and serves the name by the device plugin
    scene.device_plugin_pod("p")
    scene.dra_pod("c")
    await scene.runs("p")
    await scene.runs("c")
    if begins is not Mode.DUAL:
        scene.box.label_node(**{LABEL: begins})
        await scene.arrives(begins)
    yield
    scene.box.label_node(**{LABEL: to})
    yield
    await scene.arrives(to)
    scene.box.label_node(**{LABEL: None})
    await scene.arrives(Mode.DUAL)


async def goes_to_dra(scene: Scene) -> Telling:
    """Both planes are left for DRA under the same resource name."""
    async for part in _switches(scene, Mode.DUAL, Mode.DRA):
        yield part


async def goes_all_the_way_to_dra(scene: Scene) -> Telling:
    """The device plugin alone is left for DRA."""
    async for part in _switches(scene, Mode.DEVICE_PLUGIN, Mode.DRA):
        yield part


async def comes_back_from_dra(scene: Scene) -> Telling:
    """DRA is left for the device plugin alone."""
    async for part in _switches(scene, Mode.DRA, Mode.DEVICE_PLUGIN):
        yield part


async def device_goes_and_comes(scene: Scene) -> Telling:
    """A device is unplugged, and another one held on each plane."""
    await _held_on_both(scene)
    (free,) = {"crypto-acc0", "crypto-acc1", "crypto-acc2"} - {share for _, _, share in scene.booked()}
    path = "/dev/" + free.replace("-", "/")
    await scene.calms()
    yield
    scene.box.tree.remove(path)
    yield
    scene.box.tree.add(path)


async def slice_is_left_over(scene: Scene) -> Telling:
    """Somebody has made a slice of ours that nobody wants."""
    await scene.serve()
    await scene.calms()
    (ours,) = scene.box.slices(DRIVER)
    stray = {"metadata": {"name": "stray"}, "spec": {**ours["spec"], "devices": []}}
    yield
    scene.box.create("resourceslices", stray)
    yield
    await scene.until(lambda: len(scene.box.slices(DRIVER)) == 1, "the stray slice is deleted")


def _write(scene: Scene, statement: str) -> None:
    with closing(sqlite3.connect(scene.state / "ledger.db", isolation_level=None)) as db:
        db.execute(statement)
