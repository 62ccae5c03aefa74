"""The daemon starts from any state: what is held is answered at once, what is free waits for the rebuild (E.7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from bridge.daemon.sources import Sources
from bridge.ledger.evidence import Sighting
from bridge.ledger.holds import Phase, Plane
from bridge.planes.dra import DraPlane
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.attributions import Attributions, known
from tests.protocol.stage import DRIVER, RESOURCE, Node, acc, stage

__all__ = ["known"]

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


class Held:
    """A first look at the sources that is held back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        look = Sources.look

        async def slow(sources: Sources) -> Sighting:
            self.begun.set()
            await self.go.wait()
            return await look(sources)

        monkeypatch.setattr(Sources, "look", slow)


def called(monkeypatch: pytest.MonkeyPatch, method: str) -> asyncio.Event:
    """Set when the plane is asked."""
    asked = asyncio.Event()
    plain = getattr(DraPlane, method)

    async def noted(plane: DraPlane, claims: Any) -> Any:
        asked.set()
        return await plain(plane, claims)

    monkeypatch.setattr(DraPlane, method, noted)
    return asked


@contextlib.asynccontextmanager
async def starting(node: Node) -> AsyncIterator[asyncio.Task[None]]:
    """A daemon that has been started and may take its time."""
    task = asyncio.create_task(node.start())
    try:
        yield task
    finally:
        await asyncio.gather(task, return_exceptions=True)


async def test_prepare_of_what_is_held_is_answered_before_the_rebuild_ends_and_nothing_new_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage(devices=3) as node:
        held, new = node.claim_on("held", acc(0)), node.claim_on("new", acc(1))
        answer = (await node.prepare(held))[uid(held)]
        assert not answer.error
        await node.offers(acc(0), acc(1), acc(2))
        await node.stop()
        # What a daemon that holds nothing back would publish at once.
        node.box.tree.add("/dev/crypto/acc3")
        look = Held(monkeypatch)
        since = len(node.box.observe)
        async with starting(node) as started:
            await node.box.observe.wait("DriverRegistered", DRIVER, since=since)
            await look.begun.wait()
            assert (await node.prepare(held))[uid(held)] == answer, "word for word, from the ledger"
            waiting, leaving = called(monkeypatch, "prepare"), called(monkeypatch, "unprepare")
            prepare = asyncio.create_task(node.prepare(new))
            unprepare = asyncio.create_task(node.unprepare(held))
            await waiting.wait()
            await leaving.wait()
            other = node.claim_on("other", acc(2))
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await node.prepare(other, timeout=0.2)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not prepare.done() and not unprepare.done() and not started.done()
            assert node.phases() == {acc(0): Phase.PREPARED}
            assert node.offered() == [acc(0), acc(1), acc(2)] and node.healthy() == set()
            assert node.box.observe.of("PluginRegistered", RESOURCE, since=since) == []
            look.go.set()
            assert not (await prepare)[uid(new)].error and not (await unprepare)[uid(held)].error
            await started
        await node.offers(acc(0), acc(1), acc(2), acc(3))


async def test_what_the_rebuild_takes_up_decides_which_planes_are_served() -> None:
    """The ledger is lost, the mode went to `dra` meanwhile, and a pod still runs with the other plane's device."""
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await node.stop()
        for file in node.state.glob("ledger.*"):
            file.unlink()
        node.config["mode"] = "dra"
        since = len(node.box.observe)
        await node.start()
        assert node.ledger() == {acc(1): (DP, "pod default/p")}
        await node.box.observe.wait("PluginRegistered", RESOURCE, since=since)
        taken = node.claim_on("c", acc(1))
        assert "held by pod default/p" in (await node.prepare(taken))[uid(taken)].error


async def test_a_stop_during_the_rebuild_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(start=False) as node:
        look = Held(monkeypatch)
        await node.box.observe.wait("KubeletSynced")
        started = asyncio.create_task(node.start())
        await look.begun.wait()
        async with asyncio.timeout(10):
            node._stop.set()
            with pytest.raises(AssertionError, match="ended by itself"):
                await started
        assert list(node.box.paths.registry.iterdir()) == []
        look.go.set()
        await node.start()
        await node.allocate(acc(1))


async def test_a_socket_of_somebody_else_under_the_device_plugins_name_takes_dra_away_again() -> None:
    """A group is served whole or not at all: DRA, served first, is taken back."""
    async with stage(
        {"name": "acc", "kind": "device-node", "options": {"include": ["/dev/crypto/acc*"]}},
        {"name": "other", "kind": "device-node", "options": {"include": ["/dev/other*"]}},
        start=False,
    ) as node:
        await node.box.kubelet.kill()
        path = node.box.paths.registry / "device-bridge.io_acc-reg.sock"
        foreign = await asyncio.start_unix_server(lambda reader, writer: writer.close(), path)
        started = asyncio.create_task(node.start(refused=["acc"]))
        told = await node.log.wait("group refused, it is tried again")
        assert told["group"] == "acc" and "serves there already" in told["error"]
        assert not (node.box.paths.registry / f"{DRIVER}-reg.sock").exists()
        assert not (node.box.paths.plugins / DRIVER / "dra.sock").exists()
        foreign.close()
        await foreign.wait_closed()
        await node.box.kubelet.start()
        await started


async def test_h20_a_reboot_that_changes_the_enumeration_and_empties_the_cdi_folder(
    known: Attributions,
) -> None:
    """Holds stay; the running claim's device is found again under its name, whatever its numbers are."""
    async with stage(devices=4) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"}, restart="Always")
        await node.run_pod("dp", limits={RESOURCE: 1}, restart="Always")
        await known.wait("dp")
        before = node.ledger()
        assert before == {acc(0): (DRA, "claim default/c"), acc(3): (DP, "pod default/dp")}
        await node.stop()
        await node.box.reboot()
        # Another order of probing: the nodes are made anew, with other numbers; one is missing, one is new.
        for number in (3, 1, 0, 2):
            node.box.tree.remove(f"/dev/crypto/acc{number}")
        for number in (3, 0, 7, 1):
            node.box.tree.add(f"/dev/crypto/acc{number}")
        since = len(node.box.observe)
        await node.start()
        assert node.ledger() == before, "nothing is freed by a reboot"
        assert list(node.box.paths.cdi_static.iterdir())
        await node.box.observe.wait("ContainerStarted", "default/dra", since=since)
        assert node.nodes("dra") == ["/dev/crypto/acc0"]
        await node.offers(acc(0), acc(1), acc(7))
        with pytest.raises(EndpointError, match="held by claim default/c"):
            await node.allocate(acc(0))
        late = node.claim_on("late", acc(3))
        assert "held by pod default/dp" in (await node.prepare(late))[uid(late)].error
