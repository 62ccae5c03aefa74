"""Somebody else beside us in our name (H19), or before us (H18): found out, said, and nothing handed out past it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bridge.cli import client
from bridge.daemon.checks import Checks
from bridge.daemon.rivals import Rivals
from bridge.daemon.sources import STABLE_S
from bridge.ledger.evidence import Sighting
from bridge.ledger.holds import Hold, Plane
from bridge.ledger.reconcile import Reconciler
from bridge.sandbox import make
from bridge.sandbox.daemon import DaemonProcess
from bridge.sandbox.kubelet.context import Timings
from bridge.sandbox.kubelet.endpoint import EndpointError
from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from dra_v1.registration import WatcherRegistration
from tests.protocol.attributions import Attributions, known
from tests.protocol.raw_plugins import RawDevicePlugin
from tests.protocol.stage import DRIVER, RESOURCE, Clock, Node, acc, stage
from tests.protocol.test_daemon_healing import told

__all__ = ["known"]

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet that does not wait for sockets where nobody answers, and a daemon that looks without pausing."""
    monkeypatch.setattr("bridge.sandbox.node.Timings", lambda: Timings(dial=0.2))
    for pause in ("SOON_S", "UNDECIDED_S", "SETTLED_S"):
        monkeypatch.setattr(f"bridge.ledger.reconcile.{pause}", 0.005)


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Checks]:
    """What the daemons of a test say at `/readyz`, the last one last."""
    made: list[Checks] = []

    def noted() -> Checks:
        made.append(Checks())
        return made[-1]

    monkeypatch.setattr("bridge.daemon.run.Checks", noted)
    return made


def foreign(node: Node, kind: str, folder: Path) -> WatcherRegistration:
    """Another driver that registers in our name, by sockets of its own."""
    name = DRIVER if kind == "DRAPlugin" else RESOURCE
    versions = ["v1.DRAPlugin"] if kind == "DRAPlugin" else ["v1beta1"]
    return WatcherRegistration(
        type=kind,
        name=name,
        endpoint=folder / "foreign.sock",
        versions=versions,
        socket_path=node.box.paths.registry / "foreign-reg.sock",
    )


@contextlib.asynccontextmanager
async def beside(registration: WatcherRegistration) -> AsyncIterator[None]:
    await registration.start()
    try:
        yield
    finally:
        await registration.stop()


@pytest.mark.parametrize("kind", ["DRAPlugin", "DevicePlugin"])
async def test_h19_a_driver_that_registers_in_our_name_closes_the_group_until_it_is_gone(
    brief: None, checks: list[Checks], kind: str
) -> None:
    async with stage(devices=2) as node:
        held = node.claim_on("held", acc(0))
        answer = (await node.prepare(held))[uid(held)]
        async with beside(foreign(node, kind, node.box.paths.plugins)):
            said = await node.log.wait("another driver serves in our name")
            assert said["group"] == "acc" and "foreign-reg.sock" in said["error"]
            assert "Remove it, or give the group another name" in said["error"]
            await node.log.wait("quarantined")
            (wrong,) = [text for text in checks[-1].ready() if "rivals" in text]
            assert wrong.startswith("group acc, rivals: another ") and "foreign-reg.sock" in wrong
            await node.offers(acc(0))
            new = node.claim_on("new", acc(1))
            refused = (await node.prepare(new))[uid(new)].error
            assert "quarantined since" in refused and "hands out past the ledger" in refused
            assert (await node.prepare(held))[uid(held)] == answer, "who holds keeps what he has"
        await node.log.wait("the other driver is gone")
        await node.log.wait("fence lifted")
        assert not [text for text in checks[-1].ready() if "rivals" in text]
        assert not (await node.prepare(new))[uid(new)].error


@pytest.mark.parametrize("kind", ["DRAPlugin", "DevicePlugin"])
async def test_h19_a_driver_that_was_there_first_is_found_before_anything_is_offered(
    brief: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with stage(start=False) as node:
        await node.box.observe.wait("KubeletSynced")
        # What is found later is no matter here.
        monkeypatch.setattr(Rivals, "follow", lambda rivals: asyncio.Event().wait())
        async with beside(foreign(node, kind, node.box.paths.plugins)):
            await node.start()
            assert all(d["healthy"] == 0 for d in _lists(node))
            await node.offers()
            said = await node.log.wait("quarantined")
            assert (said["group"], said["device"]) == ("acc", "*")


def _lists(node: Node) -> list[dict[str, Any]]:
    return [dict(seen.facts) for seen in node.box.observe.of("DevicesListed", RESOURCE)]


async def test_h19_slices_that_somebody_else_publishes_in_our_name_are_removed_and_keep_the_group_unready(
    checks: list[Checks],
) -> None:
    async with stage() as node:
        await node.offers(acc(0), acc(1))
        spec = {
            "driver": DRIVER,
            "nodeName": node.box.node,
            "pool": {"name": "theirs", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "their-0"}],
        }
        node.box.api.registry.create("resourceslices", {"metadata": {"name": "theirs"}, "spec": spec})
        said = await node.log.wait("foreign slices removed")
        assert said["slices"] == ["theirs"]
        await node.offers(acc(0), acc(1))
        assert await _says(checks, "somebody else publishes slices of driver acc.device-bridge.io")


async def _says(checks: list[Checks], text: str) -> bool:
    return any(text in wrong for wrong in checks[-1].ready())


async def test_h19_stale_slices_of_our_own_from_before_are_no_rivals() -> None:
    async with stage(start=False) as node:
        spec = {
            "driver": DRIVER,
            "nodeName": node.box.node,
            "pool": {"name": "former", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "former-0"}],
        }
        await node.box.observe.wait("KubeletSynced")
        node.box.api.registry.create("resourceslices", {"metadata": {"name": "former"}, "spec": spec})
        await node.start()
        await node.offers(acc(0), acc(1))
        assert node.log.of("foreign slices removed") == []


async def test_h17_of_two_daemons_that_start_at_once_one_serves_and_the_other_says_who() -> None:
    async with stage(start=False) as node:
        await node.box.observe.wait("KubeletSynced")
        made = [DaemonProcess(node.box.paths, node.box.node, node.config) for _ in range(2)]
        for number, daemon in enumerate(made):
            daemon.log = node.box.paths.base / f"daemon-{number}.log"
        async with contextlib.AsyncExitStack() as stack:
            both = [await stack.enter_async_context(daemon) for daemon in made]
            ends = [asyncio.create_task(daemon.ended(60)) for daemon in both]
            done, left = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            assert [end.result() for end in done] == [1]
            await node.box.observe.wait("DriverRegistered", DRIVER)
            await node.box.observe.wait("DevicesListed", RESOURCE)
            loser = made[ends.index(done.pop())]
            assert "has the ledger in" in await asyncio.to_thread(loser.log.read_text)
            await node.allocate(acc(1))
            for end in left:
                end.cancel()
            await asyncio.gather(*left, return_exceptions=True)


async def test_h19_other_plugins_of_the_node_are_no_rivals() -> None:
    async with stage() as node:
        registry, plugins = node.box.paths.registry, node.box.paths.plugins
        csi = WatcherRegistration(
            type="CSIPlugin",
            name=DRIVER,
            endpoint=plugins / "csi.sock",
            versions=["1.0.0"],
            socket_path=registry / "csi-reg.sock",
        )
        other = WatcherRegistration(
            type="DRAPlugin",
            name="gpu.example.com",
            endpoint=plugins / "gpu.sock",
            versions=["v1.DRAPlugin"],
            socket_path=registry / "gpu.example.com-reg.sock",
        )
        (registry / "dead.sock").write_text("no socket at all")
        async with beside(csi), beside(other):
            await node.stop()
            since = len(node.log.records)
            await node.start()
            assert node.log.of("another driver serves in our name", since) == []
            await node.offers(acc(0), acc(1))
            await node.allocate(acc(1))


async def test_h19_what_a_plugin_of_the_older_route_hands_out_past_us_is_held_against_dra(
    known: Attributions,
) -> None:
    """It says its name to the kubelet alone; what it gives shows in podresources."""
    async with stage(devices=2) as node:
        # The reconciler looks while the plane holds something.
        await node.allocate(acc(0))
        rival = RawDevicePlugin(node.box.paths, RESOURCE, [acc(0), acc(1)], name="rival")
        rival.answer = lambda ids: dp.ContainerAllocateResponse()
        await rival.serve()
        try:
            await rival.register()
            node.box.create_pod(make.pod("p", limits={RESOURCE: 1}))
            await node.box.wait_phase("p", "Running")
            (ids,) = rival.allocated
            if ids == [acc(0)]:  # then the ledger had it out, and it is attributed as any other
                await known.wait("p")
            else:
                taken = await node.log.wait("took up a hold that the ledger lacked")
                assert taken["device"] == acc(1)
            claim = node.claim_on("c", ids[0])
            assert "held by pod default/p" in (await node.prepare(claim))[uid(claim)].error
        finally:
            await rival.stop()


class Rest:
    """Tells when a daemon that holds nothing has stopped to look, and when it looks again.

    Attributes:
        whole: set at each look that leaves nothing open.
        looked: set at each look.
        rivals: set at each look for rivals.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole, self.looked, self.rivals = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._clock = Clock()
        monkeypatch.setattr("bridge.daemon.sources.time", self._clock)
        act_on, look = Reconciler.act_on, Rivals.look

        async def acted(reconciler: Reconciler, sighting: Sighting, holds: tuple[Hold, ...]) -> None:
            await act_on(reconciler, sighting, holds)
            self.looked.set()
            if sighting.kubelet_stable:
                self.whole.set()

        async def looked(rivals: Rivals) -> None:
            await look(rivals)
            self.rivals.set()

        monkeypatch.setattr(Reconciler, "act_on", acted)
        monkeypatch.setattr(Rivals, "look", looked)

    async def begun(self) -> None:
        """The kubelet has been up for long; wait for the last look."""
        self._clock.skip(STABLE_S + 1)
        async with asyncio.timeout(20):
            await self.whole.wait()
        self.looked.clear()
        self.rivals.clear()


@pytest.fixture
async def rest(brief: None, monkeypatch: pytest.MonkeyPatch) -> Rest:
    return Rest(monkeypatch)


async def test_h19_what_a_plugin_of_the_older_route_hands_out_shows_though_this_plane_holds_nothing(
    rest: Rest,
) -> None:
    """A kubelet tells nobody that it gave his name to another; it writes down what it hands out."""
    async with stage(devices=1) as node:
        await rest.begun()
        rival = RawDevicePlugin(node.box.paths, RESOURCE, [acc(0)], name="rival")
        rival.answer = lambda ids: dp.ContainerAllocateResponse()
        await rival.serve()
        try:
            await rival.register()
            node.box.create_pod(make.pod("p", limits={RESOURCE: 1}))
            await node.box.wait_phase("p", "Running")
            assert rival.allocated == [[acc(0)]]
            assert (await node.log.wait("took up a hold that the ledger lacked"))["device"] == acc(0)
            text = await told(node, node.box.node, "DeviceTakenUp")
            assert text.startswith(f"the kubelet shows {acc(0)} of group acc with pod default/p")
            claim = node.claim_on("c", acc(0))
            assert "held by pod default/p" in (await node.prepare(claim))[uid(claim)].error
        finally:
            await rival.stop()


async def test_h19_a_daemon_whose_list_the_kubelet_stops_to_read_looks_around(rest: Rest) -> None:
    async with stage(devices=1) as node:
        await rest.begun()
        await node.box.kubelet.kill()
        async with asyncio.timeout(20):
            await rest.rivals.wait()
            for _ in range(3):
                rest.looked.clear()
                await rest.looked.wait()
        await node.box.kubelet.start()


async def test_h18_ids_of_a_driver_before_us_that_pods_still_hold_close_the_group_until_they_end(
    known: Attributions, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stage(start=False) as node:
        box = node.box
        await box.observe.wait("KubeletSynced")
        earlier = RawDevicePlugin(box.paths, RESOURCE, ["acc-of-old-7"], name="earlier")
        earlier.answer = lambda ids: dp.ContainerAllocateResponse()
        await earlier.serve()
        await earlier.register()
        await box.wait_allocatable(RESOURCE, 1)
        await node.run_pod("old", limits={RESOURCE: 1})
        await earlier.stop()
        await node.start()
        said = await node.log.wait("quarantined")
        assert said["group"] == "acc" and "acc-of-old-7, which is no device of group acc" in said["why"]
        assert "drain the node, or give the group another resourceName" in said["why"]
        await node.offers()
        claim = node.claim_on("c", acc(0))
        assert "acc-of-old-7" in (await node.prepare(claim))[uid(claim)].error
        with pytest.raises(EndpointError, match="acc-of-old-7"):
            await node.allocate(acc(1))
        with pytest.raises(typer.Exit):
            await asyncio.to_thread(client.ask, node.state, "release", device="acc/*", who="me", why="tired")
        said_to_me = capsys.readouterr().err
        assert "acc/* is in use: the kubelet shows acc-of-old-7 with pod default/old" in said_to_me
        box.delete_pod("old")
        await box.wait_gone("pods", "old")
        await node.log.wait("fence lifted")
        await node.offers(acc(0), acc(1))
        assert not (await node.prepare(claim))[uid(claim)].error


async def test_h18_ids_that_are_the_same_are_taken_up_with_their_pods() -> None:
    async with stage(start=False) as node:
        box = node.box
        await box.observe.wait("KubeletSynced")
        earlier = RawDevicePlugin(box.paths, RESOURCE, [acc(0)], name="earlier")
        earlier.answer = lambda ids: dp.ContainerAllocateResponse()
        await earlier.serve()
        await earlier.register()
        await box.wait_allocatable(RESOURCE, 1)
        await node.run_pod("old", limits={RESOURCE: 1})
        await earlier.stop()
        await node.start()
        assert node.ledger() == {acc(0): (DP, "pod default/old")}
        entries = json.loads((box.paths.device_plugins / "kubelet_internal_checkpoint").read_text())
        assert entries["Data"]["PodDeviceEntries"], "what the kubelet notes was left alone"
