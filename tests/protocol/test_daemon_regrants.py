"""An ID that the kubelet hands out again: refused while a container of its last pod still runs (S2, H9, H14)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
import pytest

from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Phase, Plane, PodHolder
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes import device_plugin, regrants
from bridge.planes.device_plugin import DevicePluginPlane
from bridge.planes.regrants import Running, Shown, check_last_holders
from bridge.platform import checkpoint
from bridge.platform.api import cri_pb2 as cri
from bridge.platform.cri import CriClient
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import PodResourcesClient
from bridge.sandbox import make
from bridge.sandbox.kubelet.cri import CriServer
from bridge.sandbox.kubelet.endpoint import Endpoint, EndpointError
from tests.protocol.attributions import Attributions, known
from tests.protocol.stage import RESOURCE, Node, acc, stage

__all__ = ["known"]

UNPROVEN = "handed out unproven"
MARGIN_S = 2.0
"""What a loaded machine may take beside a bound; less than the limit of a single call, 5 s."""


@contextlib.asynccontextmanager
async def no_runtime(node: Node, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """As on a node where no runtime was ever found."""
    await node.box.cri.stop()
    with monkeypatch.context() as patch:
        patch.setattr(CriClient, "expected", False)
        yield


@contextlib.asynccontextmanager
async def lingering(node: Node, known: Attributions) -> AsyncIterator[str]:
    """A pod that has the node's only device, was deleted by force, and whose container takes an hour to stop."""
    await node.run_pod("old", limits={RESOURCE: 1}, stop_seconds=3600)
    await known.wait("old")
    container = node.container("old")
    node.box.delete_pod("old", force=True)
    await node.box.wait_gone("pods", "old")
    assert (await node.podresources()).get("old", set()) == set() and container.running
    yield container.pod_uid
    node.box.runtime.crash(container)


async def test_h9_an_id_whose_last_pod_was_deleted_by_force_is_refused_while_its_container_runs(
    known: Attributions,
) -> None:
    async with stage(devices=1) as node:
        async with lingering(node, known) as uid:
            node.box.create_pod(make.pod("new", limits={RESOURCE: 1}))
            pod = await node.box.wait_phase("new", "Failed")
            said = pod["status"]["message"]
            assert f"{acc(0)} is still in use by pod default/old (UID {uid}), whose main still runs" in said
            assert "wait until it has stopped, or stop it with crictl" in said
            assert (await node.log.wait("refused"))["why"] in said
            (hold,) = node.holds()
            assert hold.holder.uid == uid, "the hold is the old pod's as before"
        assert await node.run_pod("later", limits={RESOURCE: 1}) == ["/dev/crypto/acc0"]
        assert node.log.of(UNPROVEN) == []


async def test_h9_one_id_of_a_request_that_still_runs_refuses_the_whole_request(known: Attributions) -> None:
    """H28: all or nothing."""
    async with stage(devices=2) as node:
        await node.run_pod("old", limits={RESOURCE: 1}, stop_seconds=3600)
        await known.wait("old")
        container = node.container("old")
        node.box.delete_pod("old", force=True)
        await node.box.wait_gone("pods", "old")
        with pytest.raises(EndpointError, match=f"{acc(1)} is still in use by pod default/old"):
            await node.allocate(acc(0), acc(1))
        assert set(node.ledger()) == {acc(1)}
        node.box.runtime.crash(container)


async def test_h14_an_id_of_a_running_pod_that_a_damaged_checkpoint_forgot_is_refused(
    known: Attributions,
) -> None:
    async with stage(devices=1) as node:
        await node.run_pod("old", limits={RESOURCE: 1})
        await known.wait("old")
        (hold,) = node.holds()
        since = len(node.box.observe)
        await node.box.kubelet.kill()
        (node.box.paths.device_plugins / "kubelet_internal_checkpoint").write_text("{ not JSON")
        await node.box.kubelet.start()
        await node.box.observe.wait("CheckpointCorrupt", since=since)
        await node.box.observe.wait("DevicesListed", RESOURCE, since=since)
        await node.box.wait_allocatable(RESOURCE, 1)
        with pytest.raises(EndpointError, match=f"{acc(0)} is still in use by pod default/old"):
            await node.allocate(acc(0))
        assert node.container("old").running and node.holds() == [hold]


async def test_an_id_without_a_known_holder_costs_no_look(
    known: Attributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    look = CriClient.containers_of

    async def noted(client: CriClient, uid: str, within: float) -> object:
        asked.append(uid)
        return await look(client, uid, within)

    monkeypatch.setattr(CriClient, "containers_of", noted)
    async with stage(devices=2) as node:
        await node.allocate(acc(0))
        await node.allocate(acc(0))
        assert asked == []
        await node.run_pod("p", limits={RESOURCE: 1})
        await known.wait("p")
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await node.allocate(acc(1))
        assert len(asked) == 1


async def test_a_runtime_that_is_silent_refuses_an_id_of_a_known_pod(known: Attributions) -> None:
    async with stage(devices=1) as node, lingering(node, known) as uid:
        await node.box.cri.stop()
        with pytest.raises(
            EndpointError, match=f"{acc(0)} may still be in use by pod default/old, and the container"
        ):
            await node.allocate(acc(0))
        why = (await node.log.wait("refused"))["why"]
        assert "cri.sock" in why and "make the pod anew once it answers" in why
        (hold,) = node.holds()
        assert hold.holder.uid == uid and node.log.of(UNPROVEN) == []
        await node.box.cri.start()
        with pytest.raises(EndpointError, match="still in use by pod default/old"):
            await node.allocate(acc(0))


async def test_where_no_runtime_was_ever_found_an_id_is_handed_out_again_and_counted_as_unproven(
    known: Attributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(devices=1) as node, lingering(node, known), no_runtime(node, monkeypatch):
        await node.allocate(acc(0))
        told = await node.log.wait(UNPROVEN)
        assert told["devices"] == [acc(0)] and "cri.sock" in told["why"]
        assert node.phases() == {acc(0): Phase.GRANTED}


async def test_a_runtime_that_hangs_costs_an_allocate_no_more_than_its_bound(
    known: Attributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regrants, "LOOK_S", 0.3)
    async with stage(devices=1) as node, lingering(node, known):
        hang = asyncio.Event()

        async def hangs(
            server: CriServer, request: object, context: grpc.aio.ServicerContext[object, object]
        ) -> object:
            await hang.wait()
            return cri.ListContainersResponse()

        # The server looks its methods up when it is made.
        await node.box.cri.stop()
        monkeypatch.setattr(CriServer, "ListContainers", hangs)
        await node.box.cri.start()
        now = asyncio.get_running_loop().time
        began = now()
        with pytest.raises(EndpointError, match="the container runtime did not answer within"):
            await node.allocate(acc(0))
        assert now() - began < 0.3 + MARGIN_S
        hang.set()


@pytest.mark.parametrize("who", ["podresources", "damaged checkpoint", "lost checkpoint"])
async def test_an_id_of_a_pod_not_known_yet_is_refused_in_time_where_the_kubelet_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setattr(regrants, "LOOK_S", 0.3)
    now, hang = asyncio.get_running_loop().time, asyncio.Event()

    async def hangs(client: PodResourcesClient) -> object:
        await hang.wait()
        return Unavailable("hung")

    async with stage(devices=2) as node:
        await node.allocate(acc(0))
        with monkeypatch.context() as patch:
            if who == "podresources":
                patch.setattr(PodResourcesClient, "list", hangs)
            else:
                patch.setattr(
                    checkpoint, "read", lambda path: checkpoint.Damaged(path, "cannot be understood")
                )
            began = now()
            with pytest.raises(EndpointError, match=f"{acc(0)} may still be in use by .*, and the kubelet"):
                await node.allocate(acc(0))
            assert now() - began < 0.3 + MARGIN_S
        assert node.log.of(UNPROVEN) == []
        hang.set()


async def test_the_kubelet_and_the_runtime_share_one_bound() -> None:
    """However long the kubelet takes, nobody waits longer for both."""
    hold = Hold(1, Plane.DEVICE_PLUGIN, Phase.GRANTED, "acc", acc(0), acc(0), PodHolder(), (), 0.0)
    account, asked = Account([hold]), list[float]()
    now = asyncio.get_running_loop().time

    class Slow:
        async def shown_with(self, resource: str, ids: Sequence[str], within: float) -> Shown:
            asked.append(within)
            await asyncio.to_thread(time.sleep, 0.2)
            return Shown(uids={acc(0): frozenset({"u1"})})

        async def running_of(self, pod_uid: str, within: float) -> Running:
            asked.append(within)
            return Running()

    began = now()
    assert await check_last_holders(account, "acc", RESOURCE, [acc(0)], Slow()) == {}
    first, second = asked
    assert first == regrants.LOOK_S <= 2.0 and second <= first - 0.2 and now() - began >= 0.2


async def test_a_refused_ledger_write_counts_no_unproven_hand_out(
    known: Attributions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(devices=1) as node, lingering(node, known), no_runtime(node, monkeypatch):

        async def full(ledger: Ledger, picks: object) -> object:
            raise LedgerError("disk is full")

        monkeypatch.setattr(Ledger, "grant", full)
        with pytest.raises(EndpointError, match="disk is full"):
            await node.allocate(acc(0))
        assert node.log.of(UNPROVEN) == []


async def test_an_id_that_is_held_by_a_pod_not_known_yet_is_refused_while_the_kubelet_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unknown(ledger: Ledger, hold_id: int, pod: object) -> None:
        """The pods of hand-outs stay unknown."""

    monkeypatch.setattr(Ledger, "attribute", unknown)
    async with stage(devices=1) as node:
        await node.run_pod("first", limits={RESOURCE: 1})
        with pytest.raises(EndpointError, match=f"{acc(0)} has just been given to pod default/first"):
            await node.allocate(acc(0))
        node.box.delete_pod("first")
        await node.box.wait_gone("pods", "first")
        await node.allocate(acc(0))


async def test_h9_a_pod_deleted_by_force_that_was_never_matched_is_found_through_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def unknown(ledger: Ledger, hold_id: int, pod: object) -> None:
        """The pods of hand-outs stay unknown."""

    monkeypatch.setattr(Ledger, "attribute", unknown)
    async with stage(devices=1) as node:
        await node.run_pod("old", limits={RESOURCE: 1}, stop_seconds=3600)
        container = node.container("old")
        node.box.delete_pod("old", force=True)
        await node.box.wait_gone("pods", "old")
        with pytest.raises(EndpointError, match=f"{acc(0)} is still in use by .* whose main still runs"):
            await node.allocate(acc(0))
        node.box.runtime.crash(container)


async def test_an_id_that_the_kubelet_forgot_while_it_was_being_allocated_goes_to_one_pod_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A list of the kubelet's pods just then, after a pod has ended, makes it forget what is under way."""
    async with stage(devices=2) as node:
        assert await node.run_pod("old", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]
        old, allocate = node.container("old"), Endpoint.allocate

        async def meanwhile(endpoint: Endpoint, ids: Iterable[str]) -> object:
            answer = await allocate(endpoint, ids)
            node.box.runtime.crash(old)
            await node.box.observe.wait("PodEnded", "default/old")
            await node.podresources()
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(Endpoint, "allocate", meanwhile)
            assert await node.run_pod("first", limits={RESOURCE: 1}) == ["/dev/crypto/acc0"]
        node.box.create_pod(make.pod("second", limits={RESOURCE: 2}, node=node.box.node))
        said = (await node.box.wait_phase("second", "Failed"))["status"]["message"]
        assert re.search(rf"{acc(0)} (has just been given to|is still in use by) pod default/first", said)


async def test_an_id_that_the_kubelet_asks_for_twice_at_once_goes_to_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container that starts anew asks beside the admission of a pod, after a lost checkpoint (H14)."""
    allocate, beside = Endpoint.allocate, list[asyncio.Task[object]]()

    async def twice(endpoint: Endpoint, ids: Iterable[str]) -> object:
        first = asyncio.create_task(allocate(endpoint, ids))
        beside.append(asyncio.create_task(allocate(endpoint, ids)))
        return await first

    monkeypatch.setattr(Endpoint, "allocate", twice)
    async with stage(devices=1) as node:
        await node.run_pod("first", limits={RESOURCE: 1})
        with pytest.raises(EndpointError, match=r"(just been given to|still in use by) pod default/first"):
            await beside[0]


async def test_an_id_is_looked_at_for_one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two calls for one ID could both look before either has it in the ledger."""
    arrived, both = list[Sequence[Sequence[str]]](), asyncio.Event()
    inside = most = 0
    allocate = DevicePluginPlane.allocate

    async def arrives(plane: DevicePluginPlane, containers: Sequence[Sequence[str]]) -> object:
        arrived.append(containers)
        if len(arrived) == 2:
            both.set()
        return await allocate(plane, containers)

    async def looks(*args: Any) -> dict[str, str]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await both.wait()
        for _ in range(20):
            await asyncio.to_thread(int)
        found = await check_last_holders(*args)
        inside -= 1
        return found

    monkeypatch.setattr(DevicePluginPlane, "allocate", arrives)
    monkeypatch.setattr("bridge.planes.device_plugin.check_last_holders", looks)
    async with stage(devices=2) as node:
        await asyncio.gather(node.allocate(acc(0)), node.allocate(acc(1)))
        assert most == 1 and len(arrived) == 2


async def test_an_id_handed_out_a_moment_ago_waits_until_the_kubelet_can_show_its_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_plugin, "SETTLED_S", 0.6)
    now = asyncio.get_running_loop().time
    async with stage(devices=2) as node:
        begun = now()
        await node.allocate(acc(0))
        await node.allocate(acc(0))
        assert now() - begun >= 0.6
