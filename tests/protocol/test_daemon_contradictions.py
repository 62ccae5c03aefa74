"""Evidence that contradicts itself: what is in doubt is fenced off, no more; the operator is told what to do; the rest
goes on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.daemon import sources
from bridge.daemon.run import StartError
from bridge.devices.kinds.nx_gzip import CREDITS
from bridge.ledger.holds import Phase, Plane
from bridge.sandbox import make
from bridge.sandbox.daemon import DaemonProcess
from bridge.sandbox.kubelet.endpoint import EndpointError
from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from tests.protocol.attributions import Attributions, known
from tests.protocol.raw_plugins import RawDevicePlugin
from tests.protocol.stage import NX, RESOURCE, Clock, Node, acc, stage
from tests.protocol.test_daemon_features import nx

__all__ = ["known"]

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The daemon's clock of evidence."""
    moved = Clock()
    monkeypatch.setattr(sources, "time", moved)
    return moved


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


@contextlib.asynccontextmanager
async def before_us(node: Node, *ids: str) -> AsyncIterator[RawDevicePlugin]:
    """A plugin that knows no ledger, while the daemon is away."""
    plugin = RawDevicePlugin(node.box.paths, RESOURCE, ids, name="before")
    plugin.answer = lambda ids: dp.ContainerAllocateResponse()
    await plugin.serve()
    await plugin.register()
    await node.box.wait_allocatable(RESOURCE, len(ids))
    try:
        yield plugin
    finally:
        await plugin.stop()


def note_in_checkpoint(node: Node, pod_uid: str, device_id: str) -> None:
    """Write an entry by hand."""
    path = node.box.paths.device_plugins / "kubelet_internal_checkpoint"
    content = json.loads(path.read_text())
    entries = content["Data"]["PodDeviceEntries"] or []
    entries.append(
        {
            "PodUID": pod_uid,
            "ContainerName": "main",
            "ResourceName": RESOURCE,
            "DeviceIDs": {"-1": [device_id]},
            "AllocResp": "",
        }
    )
    content["Data"]["PodDeviceEntries"] = entries
    path.write_text(json.dumps(content))


async def others_go_on(node: Node, *free: str) -> None:
    """Both planes hand out what is in no doubt."""
    dra, plugin = free
    claim = node.claim_on("goes-on", dra)
    assert not (await node.prepare(claim))[uid(claim)].error
    await node.allocate(plugin)


async def test_one_device_that_both_planes_hold_is_closed_and_both_holders_are_named(
    known: Attributions,
) -> None:
    async with stage(devices=3) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"})
        await node.stop()
        async with before_us(node, acc(0)):
            await node.run_pod("dp", limits={RESOURCE: 1})
        await node.start()
        said = await node.log.wait("quarantined")
        assert (said["group"], said["device"]) == ("acc", acc(0))
        for word in (
            f"the kubelet gave {acc(0)} to pod default/dp",
            "claim default/c",
            "delete one of the two pods",
        ):
            assert word in said["why"]
        await node.lists({acc(1), acc(2)}, {acc(0)})
        with pytest.raises(EndpointError, match="quarantined"):
            await node.allocate(acc(0))
        assert node.ledger() == {acc(0): (DRA, "claim default/c")}, "who had it first keeps it"
        await others_go_on(node, acc(1), acc(2))
        node.box.delete_pod("dp")
        await node.box.wait_gone("pods", "dp")
        assert (await node.log.wait("fence lifted"))["device"] == acc(0)


async def test_a_checkpoint_entry_of_a_pod_that_never_existed_holds_nothing(known: Attributions) -> None:
    async with stage(devices=3) as node:
        await node.allocate(acc(2))
        note_in_checkpoint(node, "uid-of-nobody", acc(0))
        since = len(node.log.records)
        await node.run_pod("p", limits={RESOURCE: 1})
        await known.wait("p")
        assert node.log.of("quarantined", since) == [] and acc(0) not in node.ledger()
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error


async def test_h10_a_hold_that_only_a_pod_that_never_existed_explains_ends(
    known: Attributions, clock: Clock
) -> None:
    """The API server is asked: it knows of no such pod."""
    async with stage(devices=2) as node:
        await node.allocate(acc(1))
        note_in_checkpoint(node, "uid-of-nobody", acc(1))
        await clock.looked()
        clock.skip(sources.STABLE_S + 61)
        await node.holds_are(set())
        await node.offers(acc(0), acc(1))


async def test_an_id_that_we_never_gave_out_is_taken_up_if_it_is_ours(known: Attributions) -> None:
    async with stage(devices=3, start=False) as node:
        await node.box.observe.wait("KubeletSynced")
        async with before_us(node, acc(0)):
            await node.run_pod("p", limits={RESOURCE: 1})
        await node.start()
        assert node.ledger() == {acc(0): (DP, "pod default/p")}
        assert node.log.of("quarantined") == []
        await others_go_on(node, acc(1), acc(2))


DAMAGE = {
    "cut": '{"Data": {"PodDeviceEntries": [{"PodUID": "x"',
    "another version": json.dumps({"Data": {"Entries": []}, "Version": "v3", "Checksum": 7}),
    "an entry without its pod": json.dumps(
        {
            "Data": {
                "PodDeviceEntries": [{"ResourceName": RESOURCE, "DeviceIDs": {"-1": [acc(1)]}}],
                "RegisteredDevices": {},
            },
            "Checksum": 1,
        }
    ),
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
async def test_a_checkpoint_that_cannot_be_read_ends_no_hold_and_stops_nothing(
    known: Attributions, clock: Clock, content: str
) -> None:
    async with stage(devices=3) as node:
        await node.allocate(acc(2))
        await clock.looked()
        since = len(node.log.records)
        (node.box.paths.device_plugins / "kubelet_internal_checkpoint").write_text(content)
        said = await node.log.wait("evidence missing, releases wait", since)
        assert said["source"] == "checkpoint" and "cannot be read" in said["error"]
        assert said["effect"].startswith("no hold of the device plugin plane ends")
        await clock.go(sources.STABLE_S + 1)
        await clock.go(86400)
        assert node.phases() == {acc(2): Phase.GRANTED}
        assert node.log.of("quarantined", since) == []
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error
        await node.allocate(acc(1))  # the kubelet is not asked: it would write a good one
        # The kubelet writes a good one with its next pod, and the hold may end.
        node.box.kubelet.devices.write_checkpoint()
        await node.log.wait("evidence is back", since)
        await clock.looked()
        clock.skip(61)
        await node.holds_are({acc(0)})


async def test_a_ledger_from_the_future_is_refused_left_alone_and_read_by_its_own_version() -> None:
    async with stage() as node:
        await node.allocate(acc(1))
        await node.stop()
        version = set_version(node, 99)
        before = (node.state / "ledger.db").read_bytes()
        daemon = await DaemonProcess(node.box.paths, node.box.node, node.config).start()
        assert await daemon.ended() == 1
        with pytest.raises(
            StartError, match=r"schema 99, this version knows up to \d+.*run that one, or drain"
        ):
            await node.start()
        assert (node.state / "ledger.db").read_bytes() == before
        assert list(node.box.paths.registry.iterdir()) == [] and not list(node.state.glob("*damaged*"))
        set_version(node, version)
        await node.start()
        assert set(node.ledger()) == {acc(1)}


def set_version(node: Node, version: int) -> int:
    """Change the schema version of the ledger; the one before."""
    with contextlib.closing(sqlite3.connect(node.state / "ledger.db")) as db:
        (before,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version={version}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return int(before)


async def test_a_claim_status_that_names_a_device_twice_is_refused_whole() -> None:
    async with stage(devices=3) as node:
        claim = node.claim_on("twice", acc(0), acc(0))
        error = (await node.prepare(claim))[uid(claim)].error
        assert f"{acc(0)} is named twice" in error
        assert node.holds() == []
        await others_go_on(node, acc(0), acc(1))


async def test_h8_the_second_of_two_claims_on_one_device_waits_for_the_first() -> None:
    async with stage(devices=3) as node:
        first, second = node.claim_on("first", acc(0)), node.claim_on("second", acc(0))
        answer = (await node.prepare(first))[uid(first)]
        assert not answer.error
        both = await node.prepare(first, second)
        assert both[uid(first)] == answer
        assert f"{acc(0)} is held by claim default/first through DRA" in both[uid(second)].error
        assert "offered again when that claim is deallocated" in both[uid(second)].error
        await others_go_on(node, acc(1), acc(2))
        await node.unprepare(first)
        node.box.api.registry.patch(
            "resourceclaims",
            "first",
            {"status": {"allocation": None}},
            namespace="default",
            kind="merge",
            subresource="status",
        )
        assert not (await node.prepare(second))[uid(second)].error


async def test_a_ledger_lost_with_its_mark_is_rebuilt_from_evidence_and_what_is_uncertain_is_closed(
    known: Attributions,
) -> None:
    async with stage(devices=4) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"})
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.stop()
        for file in node.state.glob("ledger.*"):
            file.unlink()
        await node.start()
        assert node.ledger() == {acc(0): (DRA, "claim default/c"), acc(3): (DP, "pod default/dp")}, "taken up"
        assert node.phases()[acc(0)] is Phase.PREPARED, "the kubelet has it so, and will unprepare it"
        await node.offers(acc(0), acc(1), acc(2))
        with pytest.raises(EndpointError, match="held by claim default/c"):
            await node.allocate(acc(0))
        await others_go_on(node, acc(1), acc(2))
        node.box.delete_pod("dra")
        await node.box.wait_gone("pods", "dra")
        await node.holds_are({acc(1), acc(2), acc(3)})
        await node.offers(acc(0), acc(1))


async def test_a_ledger_lost_while_the_kubelet_is_silent_closes_the_group_until_it_speaks(
    known: Attributions,
) -> None:
    async with stage(devices=2) as node:
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.stop()
        for file in node.state.glob("ledger.*"):
            file.unlink()
        hidden = node.box.paths.pod_resources.with_name("hidden.sock")
        node.box.paths.pod_resources.rename(hidden)
        await node.start()
        said = await node.log.wait("quarantined")
        assert (said["group"], said["device"]) == ("acc", "*")
        assert "the ledger is new and the kubelet does not yet say what pods hold" in said["why"]
        with pytest.raises(EndpointError, match="quarantined"):
            await node.allocate(acc(0))
        hidden.rename(node.box.paths.pod_resources)
        await node.log.wait("fence lifted")
        assert node.ledger() == {acc(1): (DP, "pod default/dp")}
        await node.offers(acc(0))


async def test_h41_a_device_that_says_it_is_used_is_not_given_to_the_next_while_no_hold_explains_it(
    known: Attributions, clock: Clock
) -> None:
    """The kernel counts credits in use; a process of the host may have them (H41), or one that nobody shows."""
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        used = node.box.paths.root / "sys" / CREDITS.removeprefix("/sys/") / "nr_used_credits"
        used.write_text("2\n")
        await node.allocate("nx-gzip--3", resource="device-bridge.io/nx")
        await clock.looked()
        await clock.go(sources.STABLE_S + 61)
        await clock.go(3600)
        assert set(node.ledger()) == {"nx-gzip--3"}
        used.write_text("0\n")
        await node.holds_are(set())
