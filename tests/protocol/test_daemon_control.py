"""The operator's commands beside a running daemon: what only it knows, and releases by force through its socket."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from bridge.cli import client
from bridge.daemon import control
from bridge.ledger.holds import Plane
from bridge.ledger.store import read_records
from bridge.platform import openers
from bridge.sandbox import make
from tests.protocol.stage import ACC, RESOURCE, Clock, Node, acc, stage
from tests.protocol.test_daemon_healing import UNBOUND, events, lose, taints, told
from tests.unit.test_metrics_http import free_port, get


async def ask(node: Node, do: str, **more: object) -> Any:
    """Ask the daemon as a command does."""
    return await asyncio.to_thread(client.ask, node.state, do, **more)


async def refused(node: Node, capsys: pytest.CaptureFixture[str], do: str, **more: object) -> str:
    """Ask for what the daemon refuses: what the command prints, and that it exits with 1."""
    with pytest.raises(typer.Exit) as ended:
        await ask(node, do, **more)
    assert ended.value.exit_code == 1
    return capsys.readouterr().err


def by_device(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["device"]: row for row in rows}


async def until(
    node: Node, clock: Clock, holds: Callable[[dict[str, dict[str, Any]]], bool]
) -> dict[str, dict[str, Any]]:
    """Ask for the holds until they are so, anew after each few looks of the daemon at its sources."""
    async with asyncio.timeout(20):
        while not holds(found := by_device(await ask(node, "holds"))):
            await clock.looked()
    return found


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Tells of the daemon's looks at its sources."""
    made = Clock()
    monkeypatch.setattr("bridge.daemon.sources.time", made)
    return made


async def test_holds_say_what_the_evidence_says(clock: Clock) -> None:
    async with stage(devices=3) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.offers(*map(acc, range(3)))
        await node.run_pod("by-claim", claims={"dev": "c"})
        await node.run_pod("by-resource", limits={RESOURCE: 1})
        found = await until(node, clock, lambda rows: "podresources" in (rows[acc(2)]["evidence"] or ""))
        assert found[acc(2)]["evidence"] == "in use by pod default/by-resource, says podresources"
        assert found[acc(2)]["holder"] == "pod default/by-resource"
        assert found[acc(0)]["evidence"] == "prepared; it ends when the kubelet unprepares the claim"
        await node.allocate(acc(1))
        found = await until(node, clock, lambda rows: bool(rows.get(acc(1), {}).get("evidence")))
        assert found[acc(1)]["evidence"] == "stays: the kubelet has only just started"


async def test_the_socket_is_the_owners_alone_and_goes_with_the_daemon() -> None:
    async with stage() as node:
        path = node.state / control.NAME
        assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o600
        await node.stop()
        assert not path.exists()
        with pytest.raises(client.NoDaemon, match="no daemon answers"):
            client.ask(node.state, "holds")
        await node.start()
        assert await ask(node, "holds") == []


async def test_nonsense_is_answered_and_harms_nobody() -> None:
    async with stage() as node:
        for line in (
            b"\n",
            b"{}\n",
            b"[]\n",
            b'{"do": "everything"}\n',
            b"\xff\xfe\n",
            b'{"do": ["holds"]}\n',
        ):
            reader, writer = await asyncio.open_unix_connection(node.state / control.NAME)
            writer.write(line)
            answer = json.loads(await reader.readline())
            assert answer["ok"] is False and "explain, health, holds, release" in answer["error"]
            writer.close()
        reader, writer = await asyncio.open_unix_connection(node.state / control.NAME)
        writer.write(b"x" * 200_000)
        assert await reader.read() == b"", "a line without end is no request"
        writer.close()
        assert await ask(node, "holds") == []


async def test_explain_knows_what_the_daemon_does_now() -> None:
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_claim("c", make.request("acc", tolerations=[{"operator": "Exists"}]))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        await lose(node, "loser", claims={"dev": "c"})
        await node.box.until(lambda: bool(taints(node, acc(0))), "the taint")
        found = await ask(node, "explain", device=acc(0))
        assert found["target"] == f"acc/{acc(0)}"
        dra = next(view for view in found["views"] if view["plane"] == "dra")
        assert not dra["offered"] and any("tainted in the slices" in why for why in dra["why"])
        assert any("through the device plugin API" in why for why in dra["why"])


@pytest.mark.parametrize("profile", ["1.37", "1.32"])
async def test_a_device_is_not_released_while_a_container_of_its_holder_runs(
    clock: Clock, capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    """Old kubelets do not say which pods use a claim; early word does."""
    async with stage(profile=profile) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.offers(acc(0), acc(1))
        await node.run_pod("by-claim", claims={"dev": "c"})
        await node.run_pod("by-resource", limits={RESOURCE: 1})
        await until(node, clock, lambda rows: rows[acc(1)]["holder"] == "pod default/by-resource")
        for device, pod in ((acc(0), "by-claim"), (acc(1), "by-resource")):
            text = await refused(node, capsys, "release", device=device, who="me", why="tired")
            assert f"container main of pod default/{pod} runs" in text and "--force" in text
        assert set(node.ledger()) == {acc(0), acc(1)} and read_records(node.state) == ()


async def test_a_claims_device_is_not_released_where_nobody_says_which_pods_use_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with stage(profile="1.32", mode="dra") as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        text = await refused(node, capsys, "release", device=acc(0), who="me", why="tired")
        assert "nobody says which pods use claim default/c" in text
        assert set(node.ledger()) == {acc(0)}


async def test_a_device_is_not_released_while_somebody_has_it_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage() as node:
        await node.allocate(acc(0))
        seen = openers.Look((openers.Opener(7, "train", "/dev/crypto/acc0"),), 100, 0, False)
        monkeypatch.setattr(openers, "look", lambda nodes, proc: seen)
        text = await refused(node, capsys, "release", device=acc(0), who="me", why="tired")
        assert "process 7 (train) has /dev/crypto/acc0 open" in text
        assert set(node.ledger()) == {acc(0)}


async def test_a_device_whose_pod_nobody_knows_yet_is_not_released(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with stage() as node:
        await node.allocate(acc(0))
        text = await refused(node, capsys, "release", device=acc(0), who="me", why="tired")
        assert f"nobody knows yet which pod {acc(0)} was given to" in text and "--force" in text
        assert set(node.ledger()) == {acc(0)} and read_records(node.state) == ()


async def test_a_release_by_force_is_done_recorded_told_and_offered_again() -> None:
    async with stage() as node:
        await node.allocate(acc(0))
        await node.offers(acc(1))
        done = await ask(node, "release", device=acc(0), who="me@here", why="stale", force=True)
        assert [hold["device"] for hold in done["holds"]] == [acc(0)]
        await node.offers(acc(0), acc(1))
        (record,) = read_records(node.state)
        assert record.who == "me@here" and record.text.endswith("granted: stale")
        text = await told(node, node.box.node, "DeviceReleasedByForce")
        assert "by me@here: stale" in text
        assert (await node.log.wait("released by force"))["who"] == "me@here"


async def test_what_is_in_use_is_taken_up_again_after_a_release_by_force(clock: Clock) -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await until(node, clock, lambda rows: rows[acc(1)]["holder"] == "pod default/p")
        done = await ask(node, "release", device=acc(1), who="me", why="wrong", force=True)
        assert any("container main of pod default/p runs" in note for note in done["notes"])
        await node.log.wait("took up a hold that the ledger lacked")
        assert set(node.ledger()) == {acc(1)}


async def test_a_quarantine_is_told_lifted_and_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    async with stage(start=False) as node:
        await asyncio.to_thread(_quarantined, node.state)
        await node.start()
        await node.offers(acc(1))
        text = await told(node, node.box.node, "DeviceQuarantined")
        assert f"{acc(0)} of group acc is not offered any more, on either plane: in doubt" in text
        done = await ask(node, "release", device=acc(0), who="me", why="checked")
        assert done["quarantine"] == "in doubt" and done["holds"] == []
        await node.offers(acc(0), acc(1))
        assert "in doubt" in await told(node, node.box.node, "DeviceQuarantineLifted")
        text = await refused(node, capsys, "release", device=acc(0), who="me", why="again")
        assert "there is nothing to release" in text
        assert "`bridge devices` lists them" in await refused(node, capsys, "explain", device="acc9")


def _quarantined(state: Path) -> None:
    from bridge.ledger.ledger import Ledger

    async def make_it() -> None:
        ledger = await Ledger.open(state)
        await ledger.quarantine("acc", acc(0), "in doubt")
        await ledger.close()

    asyncio.run(make_it())


async def test_h43_no_claim_gets_a_device_whose_taint_may_still_be_stored() -> None:
    """The fence: the device is free again, but the API server does not take the taint back yet."""
    async with stage(UNBOUND, devices=1) as node:
        node.box.create_claim("c", make.request("acc", tolerations=[{"operator": "Exists"}]))
        await node.offers(acc(0))
        await node.box.wait_allocatable(RESOURCE, 1)
        with node.box.scheduler.stale():
            await node.allocate(acc(0))
            node.box.create_pod(make.pod("loser", claims={"dev": "c"}))
            await node.box.observe.wait("EventFailedPrepareDynamicResources", "default/loser")
        await node.box.until(lambda: bool(taints(node, acc(0))), "the taint")
        node.box.api.forbid("update", "resourceslices")
        await ask(node, "release", device=acc(0), who="me", why="test", force=True)
        late = node.claim_on("late", acc(0))
        answer = (await node.prepare(late))[late["metadata"]["uid"]]
        assert "tainted for a moment" in answer.error and taints(node, acc(0))
        assert node.ledger() == {}
        node.box.api.allow("update", "resourceslices")
        await node.box.until(lambda: not taints(node, acc(0)), "the taint to be taken back")
        await node.box.wait_phase("loser", "Running")
        assert node.ledger() == {acc(0): (Plane.DRA, "claim default/c")}


async def test_degraded_proof_is_told_counted_and_over_when_the_source_is_back() -> None:
    port = free_port()
    async with stage(devices=1, metricsAddress=f"127.0.0.1:{port}") as node:
        await node.allocate(acc(0))
        await node.box.cri.stop()
        text = await told(node, node.box.node, "DeviceProofDegraded")
        assert text.startswith("runtime does not answer (") and "`bridge doctor`" in text
        found = {one["name"]: one for one in (await ask(node, "health"))["sources"]}
        assert found["runtime"]["available"] is False and found["podresources"]["available"] is True
        assert "device_bridge_proof_degraded 1.0" in (await asyncio.to_thread(get, port, "/metrics"))[1]
        await node.box.cri.start()
        await told(node, node.box.node, "DeviceProofRestored")
        assert "device_bridge_proof_degraded 0.0" in (await asyncio.to_thread(get, port, "/metrics"))[1]


async def test_events_about_claims_reach_nobody_else() -> None:
    async with stage(ACC, devices=1) as node:
        await node.allocate(acc(0))
        held = node.claim_on("c", acc(0))
        await node.prepare(held)
        assert "is held by" in await told(node, "c", "DeviceRefused")
        assert events(node, node.box.node, "DeviceRefused") == []
