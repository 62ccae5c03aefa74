"""The whole daemon under fire: restarts of the kubelet, of the node and of itself, gaps, clocks, lost replies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

import grpc
import pytest
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from bridge.daemon import sources
from bridge.ledger.holds import Phase, Plane
from bridge.ledger.ledger import Ledger
from bridge.planes import dra
from bridge.planes.dra import DraPlane
from bridge.sandbox import make
from bridge.sandbox.kubelet.endpoint import EndpointError
from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from dra_v1.api import pluginregistration_pb2 as reg
from dra_v1.api.pluginregistration_pb2_grpc import RegistrationStub
from tests.protocol.raw_plugins import RawDevicePlugin
from tests.protocol.stage import (
    DRIVER,
    NX,
    NX_DRIVER,
    RESOURCE,
    Clock,
    Node,
    acc,
    process,
    serves,
    stage,
)
from tests.protocol.test_daemon_features import nx, nx_config

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The daemon's clock of evidence, which tests move; it looks at its sources without pausing."""
    moved = Clock()
    monkeypatch.setattr(sources, "time", moved)
    for pause in ("SOON_S", "UNDECIDED_S", "SETTLED_S"):
        monkeypatch.setattr(f"bridge.ledger.reconcile.{pause}", 0.005)
    return moved


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The ledger's wall clock, as one number that tests set."""
    now = [time.time()]
    monkeypatch.setitem(Ledger.open.__kwdefaults__, "clock", lambda: now[0])
    return now


@contextlib.asynccontextmanager
async def serving(plugin: RawDevicePlugin) -> AsyncIterator[None]:
    """A plugin beside the daemon, registered."""
    await plugin.serve()
    try:
        await plugin.register()
        yield
    finally:
        await plugin.stop()


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


async def test_h6_a_claim_remade_under_its_name_neither_frees_nor_gets_the_old_ones_device() -> None:
    async with stage() as node:
        old = node.claim_on("c", acc(0))
        first = (await node.prepare(old))[uid(old)]
        assert not first.error
        node.box.api.registry.delete("resourceclaims", "c", "default")
        new = node.claim_on("c", acc(0))
        assert uid(new) != uid(old)
        refused = (await node.prepare(new))[uid(new)]
        assert f"{acc(0)} is held by claim default/c through DRA" in refused.error
        # Unprepare of the new one is no business of the old one's hold, and neither is the new allocation.
        assert not (await node.unprepare(new))[uid(new)].error
        (hold,) = node.holds()
        assert (hold.holder.uid, hold.phase) == (uid(old), Phase.PREPARED)
        assert (await node.prepare(old))[uid(old)] == first, "known by UID, though the object is another"
        assert not (await node.unprepare(old))[uid(old)].error
        served = (await node.prepare(new))[uid(new)]
        assert not served.error and served.devices[0].device_name == acc(0)
        (hold,) = node.holds()
        assert hold.holder.uid == uid(new)


async def test_h6_a_claim_whose_uid_differs_is_not_prepared() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        claim["metadata"]["uid"] = "another-uid"
        answer = (await node.prepare(claim))["another-uid"]
        assert "default/c" in answer.error and "UID" in answer.error and not answer.devices
        assert node.holds() == []


async def test_h7_an_unprepared_claim_holds_until_it_is_deallocated() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        await node.prepare(claim)
        await node.unprepare(claim)
        assert node.phases() == {acc(0): Phase.RELEASING}
        with pytest.raises(EndpointError, match="which is being released"):
            await node.allocate(acc(0))
        patch = {"status": {"allocation": None}}
        registry = node.box.api.registry
        registry.patch("resourceclaims", "c", patch, namespace="default", kind="merge", subresource="status")
        await node.holds_are(set())
        await node.allocate(acc(0))


async def test_a_claim_whose_stored_answer_cannot_be_read_is_let_go_all_the_same() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        await node.prepare(claim)
        with mock.patch.object(dra, "is_by_name", side_effect=ValueError("not a stored claim")):
            assert not (await node.unprepare(claim))[uid(claim)].error
        assert node.phases() == {acc(0): Phase.RELEASING}
        assert (await node.log.wait("stored answer unreadable"))["claim"] == "default/c"


async def test_h12_a_grant_whose_pod_failed_for_another_reason_is_kept_and_then_ends(clock: Clock) -> None:
    async with stage() as node, contextlib.AsyncExitStack() as stack:
        other = RawDevicePlugin(node.box.paths, "example.com/other", ["o0"], name="other")
        other.refuse = "out of order"
        await stack.enter_async_context(serving(other))
        await node.box.wait_allocatable("example.com/other", 1)
        await node.box.wait_allocatable(RESOURCE, 2)
        node.box.create_pod(make.pod("p", limits={RESOURCE: 1, "example.com/other": 1}))
        pod = await node.box.wait_phase("p", "Failed")
        assert "out of order" in pod["status"]["message"]
        assert set(node.ledger()) == {acc(1)}, "our part was handed out, for nothing"
        await clock.looked()
        clock.skip(sources.STABLE_S + 61)
        await node.holds_are(set())
        await node.offers(acc(0), acc(1))


async def test_h12_a_grant_that_no_source_ever_shows_ends_after_its_grace_and_not_before(
    clock: Clock,
) -> None:
    async with stage() as node:
        await node.allocate(acc(1))
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        assert node.phases() == {acc(1): Phase.GRANTED}
        await clock.go(58 - sources.STABLE_S - 1)
        assert node.phases() == {acc(1): Phase.GRANTED}, "58 s: a source may still come to show it"
        clock.skip(3)
        await node.holds_are(set())
        await node.offers(acc(0), acc(1))


async def test_h12_a_hold_that_found_its_pod_ends_with_it(clock: Clock) -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        await clock.go(600)
        assert node.ledger() == {acc(1): (DP, "pod default/p")}, "a running pod keeps its device for ever"
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await clock.looked()
        clock.skip(2)
        await node.holds_are(set())
        await node.offers(acc(0), acc(1))


async def test_h11_a_device_of_an_init_container_is_held_though_podresources_does_not_list_it(
    clock: Clock,
) -> None:
    async with stage() as node:
        node.box.create_pod(
            make.pod("p", init=[make.container("init", limits={RESOURCE: 1})], containers=[make.container()])
        )
        await node.box.observe.wait("ContainerStarted", "default/p")
        assert (await node.podresources()).get("p", set()) == set()
        await clock.go(sources.STABLE_S + 1)
        await clock.go(600)
        assert node.ledger() == {acc(1): (DP, "pod default/p")}


async def test_h9_a_pod_deleted_by_force_keeps_its_device_while_its_container_runs(clock: Clock) -> None:
    async with stage() as node:
        gate = await node.run_pod("p", limits={RESOURCE: 1}, stop_seconds=3600)
        assert gate == ["/dev/crypto/acc1"]
        container = node.container("p")
        await clock.go(sources.STABLE_S + 1)
        node.box.delete_pod("p", force=True)
        await node.box.wait_gone("pods", "p")
        assert (await node.podresources()).get("p", set()) == set()
        await clock.go(600)
        assert set(node.ledger()) == {acc(1)} and container.running
        node.box.runtime.crash(container)
        await clock.looked()
        clock.skip(2)
        await node.holds_are(set())


async def test_h13_a_kubelet_restart_with_the_api_server_down_changes_no_answer() -> None:
    async with stage(NX, {"name": "acc", "kind": "device-node", "options": {"include": ["/dev/crypto/acc*"]}},
                     start=False) as node:  # fmt: skip
        await nx(node, 4)
        config = [
            {
                "source": "FromClaim",
                "requests": [],
                "opaque": {"driver": NX_DRIVER, "parameters": nx_config("Long")},
            }
        ]
        plain, tuned = node.claim_on("plain", acc(0)), node.claim_on("tuned", "nx-gzip--0", driver=NX_DRIVER)
        tuned["status"]["allocation"]["devices"]["config"] = config
        tuned = node.box.api.registry.replace("resourceclaims", tuned, "status")
        before = [
            (await node.prepare(plain))[uid(plain)],
            (await node.prepare(tuned, driver=NX_DRIVER))[uid(tuned)],
        ]
        assert [answer.error for answer in before] == ["", ""] and len(
            before[1].devices[0].cdi_device_ids
        ) == 2
        node.box.api.unavailable()
        since = len(node.box.observe)
        await node.box.kubelet.restart()
        for name in (DRIVER, NX_DRIVER):
            await node.box.observe.wait("DriverRegistered", name, since=since)
        await node.box.observe.wait("PluginRegistered", RESOURCE, since=since)
        await node.lists({acc(1)}, {acc(0)})
        after = [
            (await node.prepare(plain))[uid(plain)],
            (await node.prepare(tuned, driver=NX_DRIVER))[uid(tuned)],
        ]
        assert after == before, "word for word, from the ledger"
        node.box.api.unavailable(False)
        await node.box.observe.wait("SlicesWiped", since=since)
        await node.offers(acc(0), acc(1))
        await node.box.until(lambda: bool(node.box.slices(NX_DRIVER)), "slices of nx back")


async def test_h13_pods_of_both_planes_live_through_a_kubelet_restart() -> None:
    async with stage(devices=4) as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"})
        await node.run_pod("dp", limits={RESOURCE: 1})
        containers, held = [node.container(pod) for pod in ("dra", "dp")], node.ledger()
        await node.offers(acc(0), acc(1), acc(2))
        since = len(node.box.observe)
        await node.box.kubelet.restart()
        await node.box.observe.wait("DevicesListed", RESOURCE, since=since)
        await node.box.observe.wait("DriverRegistered", DRIVER, since=since)
        await node.run_pod("shares", claims={"dev": "c"})
        (again,) = node.box.observe.of("Prepared", "default/c", since)
        assert again.facts["devices"] == [acc(0)]
        await node.offers(acc(0), acc(1), acc(2))
        assert [node.container(pod) for pod in ("dra", "dp")] == containers
        assert node.ledger().keys() == held.keys()
        assert await node.run_pod("new", limits={RESOURCE: 1}) == ["/dev/crypto/acc2"]


async def test_h13_releases_wait_until_a_restarted_kubelets_lists_are_whole(clock: Clock) -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        await node.log.wait("handed out")
        since = len(node.box.observe)
        await node.box.kubelet.restart()
        await node.box.observe.wait("KubeletSynced", since=since)
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await clock.looked(30)
        assert set(node.ledger()) == {acc(1)}, "nothing shows it, but the kubelet has only just started"
        await clock.go(sources.STABLE_S - 2)
        assert set(node.ledger()) == {acc(1)}
        await clock.go(4)
        clock.skip(2)
        await node.holds_are(set())


async def test_h15_a_killed_daemon_forgets_nothing_and_pods_of_both_planes_go_on() -> None:
    async with stage(devices=4, start=False) as node, process(node) as daemon:
        box = node.box
        box.create_claim("c", make.request("acc"))
        await node.run_pod("dra", claims={"dev": "c"})
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.offers(acc(0), acc(1), acc(2))
        before = {share: plane for share, (plane, _) in node.ledger().items()}
        since = len(box.observe)
        await daemon.kill()
        await box.observe.wait("PluginDisconnected", RESOURCE, since=since)
        assert node.offered() == [acc(0), acc(1), acc(2)], "slices stay"
        # What is asked for meanwhile waits for the daemon.
        box.create_claim("late", make.request("acc"))
        box.create_pod(make.pod("late", claims={"dev": "late"}))
        since = len(box.observe)
        await daemon.start()
        await serves(node, since)
        assert before.items() <= {share: plane for share, (plane, _) in node.ledger().items()}.items()
        await box.wait_phase("late", "Running")
        assert node.nodes("late") == ["/dev/crypto/acc1"]
        assert {share: plane for share, (plane, _) in node.ledger().items()} == before | {acc(1): DRA}
        for pod in ("dra", "dp"):
            assert node.container(pod).running
        assert await node.run_pod("new", limits={RESOURCE: 1}) == ["/dev/crypto/acc2"]


async def test_h15_sigterm_takes_the_registrations_away_and_leaves_slices_and_holds() -> None:
    async with stage(start=False) as node, process(node) as daemon:
        await node.run_pod("dp", limits={RESOURCE: 1})
        await node.offers(acc(0))
        assert await daemon.stop() == 0
        assert list(node.box.paths.registry.iterdir()) == [] and node.offered() == [acc(0)]
        assert not list(node.state.glob("*.sock"))
        assert set(node.ledger()) == {acc(1)}


async def test_h15_what_an_earlier_plugin_handed_out_is_taken_up_before_anything_is_offered() -> None:
    """From podresources and, for an ordinary init container, from the checkpoint alone (H11)."""
    async with stage(devices=4, start=False) as node:
        box = node.box
        earlier = RawDevicePlugin(box.paths, RESOURCE, [acc(n) for n in range(4)])
        earlier.answer = lambda ids: dp.ContainerAllocateResponse()
        async with serving(earlier):
            await box.wait_allocatable(RESOURCE, 4)
            await node.run_pod("main", limits={RESOURCE: 1})
            inside = [make.container("init", limits={RESOURCE: 1})]
            box.create_pod(make.pod("init", init=inside, containers=[make.container()]))
            await box.observe.wait("ContainerStarted", "default/init")
            main, init = (set(ids).pop() for ids in earlier.allocated)
        await box.wait_allocatable(RESOURCE, 0)
        since = len(box.observe)
        await node.start()
        assert node.ledger() == {main: (DP, "pod default/main"), init: (DP, "pod default/init")}
        free = [acc(n) for n in range(4) if acc(n) not in (main, init)]
        await node.offers(*free)
        for write in box.observe.of("DevicesListed", RESOURCE, since=since):
            assert write.facts == {"healthy": 4, "unhealthy": 0}
        taken = node.claim_on("c", main)
        assert "held by pod default/main" in (await node.prepare(taken))[uid(taken)].error


async def test_h16_a_prepare_whose_reply_was_lost_is_answered_again_and_held_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon dies between the ledger's commit and the reply; CDI file and answer come from the ledger."""
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        tuned = node.claim_on("tuned", "nx-gzip--0", driver=NX_DRIVER)
        tuned["status"]["allocation"]["devices"]["config"] = [
            {
                "source": "FromClaim",
                "requests": [],
                "opaque": {"driver": NX_DRIVER, "parameters": nx_config("Long")},
            }
        ]
        tuned = node.box.api.registry.replace("resourceclaims", tuned, "status")
        committed = asyncio.Event()
        with monkeypatch.context() as patched:
            book = DraPlane._book

            async def dies(plane: DraPlane, *args: Any) -> None:
                await book(plane, *args)
                committed.set()
                await asyncio.Event().wait()

            patched.setattr(DraPlane, "_book", dies)
            asked = asyncio.create_task(node.prepare(tuned, driver=NX_DRIVER))
            await committed.wait()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            await node.stop()
        assert node.ledger() == {"nx-gzip--0": (DRA, "claim default/tuned")}
        assert list(node.box.paths.cdi_dynamic.iterdir()) == []
        await node.start()
        assert len(list(node.box.paths.cdi_dynamic.iterdir())) == 1, "restored before anything is answered"
        answers = [(await node.prepare(tuned, driver=NX_DRIVER))[uid(tuned)] for _ in range(2)]
        assert answers[0] == answers[1] and not answers[0].error and len(node.holds()) == 1
        assert len(answers[0].devices[0].cdi_device_ids) == 2


async def test_h16_a_grant_whose_reply_was_lost_ends_only_by_evidence_and_grace(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    async with stage(devices=1) as node:
        committed = asyncio.Event()
        await node.box.wait_allocatable(RESOURCE, 1)
        with monkeypatch.context() as patched:
            grant = Ledger.grant

            async def dies(ledger: Ledger, picks: Any) -> Any:
                await grant(ledger, picks)
                committed.set()
                await asyncio.Event().wait()

            patched.setattr(Ledger, "grant", dies)
            node.box.create_pod(make.pod("p", limits={RESOURCE: 1}))
            await committed.wait()
            await node.stop()
            await node.box.wait_phase("p", "Failed")
        await node.start()
        assert node.phases() == {acc(0): Phase.GRANTED}, "a hold without a consumer is kept"
        refused = node.claim_on("c", acc(0))
        assert "held by" in (await node.prepare(refused))[uid(refused)].error
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        assert node.phases() == {acc(0): Phase.GRANTED}
        clock.skip(40)
        await node.holds_are(set())
        assert not (await node.prepare(refused))[uid(refused)].error


async def test_h34_a_watch_gap_with_410_gone_brings_the_slices_back() -> None:
    async with stage(devices=3) as node:
        await node.offers(acc(0), acc(1), acc(2))
        api = node.box.api
        api.unavailable()
        api.registry.delete_all("resourceslices")
        await node.allocate(acc(2))
        for number in range(3):
            node.box.add_node(f"noise-{number}")
        api.registry.store.compact()
        api.unavailable(False)
        await node.offers(acc(0), acc(1))


async def test_h34_slices_that_somebody_else_changed_are_repaired() -> None:
    async with stage() as node:
        await node.offers(acc(0), acc(1))
        (stored,) = node.box.slices(DRIVER)
        stored["spec"]["devices"] = [{"name": "intruder"}]
        node.box.api.registry.replace("resourceslices", stored)
        await node.offers(acc(0), acc(1))


class _Moves(FileSystemEventHandler):
    """What happened to files, as (event, path at the end)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def on_any_event(self, event: FileSystemEvent) -> None:
        self.seen.append((event.event_type, str(event.dest_path or event.src_path)))


async def tuned_pod(node: Node, **more: Any) -> dict[str, Any]:
    """A running pod `p` whose claim `tuned` has a configuration; the claim."""
    spec = make.claim_spec(make.request("nx"), driver=NX_DRIVER, parameters=nx_config("Long"))
    node.box.create("resourceclaims", make.claim("tuned", spec))
    await node.run_pod("p", claims={"dev": "tuned"}, **more)
    claim = node.box.get("resourceclaims", "tuned")
    assert claim is not None
    return claim


async def test_h35_a_claims_cdi_file_is_named_by_uid_made_whole_and_kept_until_unprepare() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        folder = node.box.paths.cdi_dynamic
        moves, watch = _Moves(), Observer()
        watch.schedule(moves, str(folder))
        watch.start()
        claim = await tuned_pod(node, restart="Always")
        (file,) = folder.iterdir()
        assert file.name == f"device-bridge.io-nx-claim-{uid(claim)}.json"
        first = file.read_bytes()
        assert json.loads(first)["kind"] == "device-bridge.io/nx"
        # Neither a container's end, nor a repeated Prepare, nor a restart of the daemon takes it away.
        since = len(node.box.observe)
        node.box.runtime.crash(node.container("p"))
        await node.box.observe.wait("ContainerStarted", "default/p", since=since)
        await node.prepare(claim, driver=NX_DRIVER)
        await node.stop()
        await node.start()
        assert file.read_bytes() == first
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        assert list(folder.iterdir()) == []
        watch.stop()
        await asyncio.to_thread(watch.join)
        ways = {event for event, path in moves.seen if path == str(file)}
        assert "moved" in ways and not ways & {"created", "modified"}, "only ever renamed into its place"


async def test_h35_a_reboot_empties_the_dynamic_folder_and_running_claims_get_their_files_back() -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 4)
        claim = await tuned_pod(node, restart="Always")
        (name,) = (path.name for path in node.box.paths.cdi_dynamic.iterdir())
        await node.stop()
        await node.box.reboot()
        assert list(node.box.paths.cdi_dynamic.iterdir()) == []
        since = len(node.box.observe)
        await node.start()
        assert [path.name for path in node.box.paths.cdi_dynamic.iterdir()] == [name]
        await node.box.observe.wait("ContainerStarted", "default/p", since=since)
        assert node.container("p").got.env["NX_DEVICE_TIMESLICE_INTERVAL"] == "Long"
        assert node.ledger() == {hold.share: (DRA, "claim default/tuned") for hold in node.holds()}
        assert len(node.holds()) == 1 and node.holds()[0].holder.uid == uid(claim)


async def test_h35_files_of_claims_that_nobody_has_are_swept_at_the_start() -> None:
    async with stage(start=False) as node:
        stale = node.box.paths.cdi_dynamic / "device-bridge.io-acc-claim-00000000-dead.json"
        foreign = node.box.paths.cdi_dynamic / "example.com-gpu.json"
        spec = {
            "cdiVersion": "0.5.0",
            "devices": [{"name": "claim-dead-0", "containerEdits": {"env": ["A=b"]}}],
        }
        for file in (stale, foreign):
            file.write_text(
                json.dumps(spec | {"kind": "device-bridge.io/acc" if file is stale else "example.com/gpu"})
            )
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        assert not stale.exists() and foreign.exists()


async def test_h35_the_static_file_keeps_a_held_device_that_is_unplugged() -> None:
    async with stage() as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        node.box.tree.remove("/dev/crypto/acc0")
        await node.offers(acc(1))

        def static() -> set[str]:
            file = node.box.paths.cdi_static / "device-bridge.io-acc.json"
            return {device["name"] for device in json.loads(file.read_text())["devices"]}

        assert acc(0) in static()
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await node.holds_are(set())
        node.box.tree.add("/dev/crypto/acc2")
        await node.offers(acc(1), acc(2))
        assert acc(0) not in static()


def gated(node: Node, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Make the API server hold back one claim: (somebody asks for it, let it go)."""
    asked, go = asyncio.Event(), asyncio.Event()
    answer: Callable[..., Awaitable[Any]] = node.box.api._get

    async def slow(request: Any, target: Any) -> Any:
        if target.name == name:
            asked.set()
            await go.wait()
        return await answer(request, target)

    monkeypatch.setattr(node.box.api, "_get", slow)
    return asked, go


async def test_h40_a_slow_answer_for_one_claim_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(devices=4) as node:
        slow, quick = node.claim_on("slow", acc(0)), node.claim_on("quick", acc(1))
        asked, go = gated(node, "slow", monkeypatch)
        waiting = asyncio.create_task(node.prepare(slow))
        await asked.wait()
        async with asyncio.timeout(5):
            assert not (await node.prepare(quick))[uid(quick)].error
            await node.allocate(acc(3))
            assert not (await node.unprepare(quick))[uid(quick)].error
            for socket in node.box.paths.registry.iterdir():
                await _get_info(socket)
        assert not waiting.done()
        go.set()
        assert not (await waiting)[uid(slow)].error


async def _get_info(socket: Any) -> None:
    """GetInfo within the second that the kubelet gives it."""
    async with grpc.aio.insecure_channel(f"unix://{socket}") as channel:
        stub: Any = RegistrationStub(channel)
        info = await stub.GetInfo(reg.InfoRequest(), timeout=1)
        assert info.type in ("DRAPlugin", "DevicePlugin")


@pytest.mark.parametrize("step", [365 * 86400.0, -365 * 86400.0])
async def test_h42_a_step_of_the_wall_clock_ends_no_hold_and_lengthens_none(
    clock: Clock, wall: list[float], step: float
) -> None:
    async with stage() as node:
        await node.allocate(acc(0))
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        wall[0] += step
        await clock.looked(20)
        await node.allocate(acc(1))
        await clock.looked()
        assert set(node.ledger()) == {acc(0), acc(1)}
        assert node.holds()[1].since - node.holds()[0].since == pytest.approx(step, abs=60)
        clock.skip(30)
        await node.holds_are({acc(1)})
        clock.skip(31)
        await node.holds_are(set())


async def test_h14_a_lost_checkpoint_releases_nothing_that_runs(clock: Clock) -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        await node.box.kubelet.kill()
        (node.box.paths.device_plugins / "kubelet_internal_checkpoint").write_text("{ not JSON")
        await node.box.kubelet.start()
        await clock.go(sources.STABLE_S + 1)
        await clock.go(600)
        assert set(node.ledger()) == {acc(1)}, "its container runs, whatever the kubelet forgot"
        late = node.claim_on("c", acc(1))
        assert "held by pod default/p" in (await node.prepare(late))[uid(late)].error


async def test_h14_a_checkpoint_that_is_gone_proves_nothing_and_keeps_no_hold_for_ever(clock: Clock) -> None:
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await clock.looked()
        await clock.go(sources.STABLE_S + 1)
        since = len(node.log.records)
        (node.box.paths.device_plugins / "kubelet_internal_checkpoint").unlink()
        assert (
            "has lost its checkpoint"
            in (await node.log.wait("evidence missing, releases wait", since))["error"]
        )
        await clock.go(3600)
        assert set(node.ledger()) == {acc(1)}, "its container runs"
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await clock.looked()
        await clock.go(590)
        assert set(node.ledger()) == {acc(1)}, "no source shows it, and the one that would is missing"
        clock.skip(11)
        await node.holds_are(set())


async def test_h35_files_of_claims_that_a_lost_ledger_does_not_know_stay_while_the_kubelet_has_them() -> None:
    async with stage() as node:
        node.box.create_claim("c", make.request("acc"))
        await node.run_pod("p", claims={"dev": "c"})
        (hold,) = node.holds()
        await node.stop()
        file = node.box.paths.cdi_dynamic / f"device-bridge.io-acc-claim-{hold.holder.uid}.json"
        kind = {"cdiVersion": "0.5.0", "kind": "device-bridge.io/acc", "devices": []}
        file.write_text(json.dumps(kind))
        for old in node.state.glob("ledger.*"):
            old.unlink()
        await node.start()
        await node.stop()
        await node.start()
        assert file.exists() and node.phases() == {acc(0): Phase.PREPARED}
        node.box.delete_pod("p")
        await node.box.wait_gone("pods", "p")
        await node.holds_are(set())
        assert not file.exists()


async def test_a_damaged_ledger_is_kept_aside_and_everything_is_quarantined() -> None:
    """S5: nothing is handed out until a person has looked; running pods are left alone."""
    async with stage() as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        await node.stop()
        (node.state / "ledger.db").write_bytes(b"not a database at all" * 100)
        for journal in node.state.glob("ledger.db-*"):
            journal.unlink()
        since = len(node.log.records)
        await node.start()
        assert "damaged" in str(
            (await node.log.wait("ledger damaged, everything is quarantined", since))["file"]
        )
        await node.offers()
        assert node.healthy() == set()
        claim = node.claim_on("c", acc(0))
        assert "quarantined since" in (await node.prepare(claim))[uid(claim)].error
        assert "--accept-empty-ledger" in (await node.prepare(claim))[uid(claim)].error
        assert list(node.state.glob("ledger.db.damaged-*")) and node.container("p").running


async def test_a_ledger_that_cannot_be_written_hands_out_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """S1: what is not on disk is not answered, on either plane; and it goes on when the disk does."""
    import sqlite3

    async with stage() as node:
        from bridge.ledger.store import Store

        claim = node.claim_on("c", acc(0))
        with monkeypatch.context() as patched:

            def full(store: Store, transactions: Any) -> None:
                raise sqlite3.OperationalError("database or disk is full")

            patched.setattr(Store, "write", full)
            with pytest.raises(EndpointError, match="disk is full; nothing was handed out"):
                await node.allocate(acc(1))
            assert "disk is full" in (await node.prepare(claim))[uid(claim)].error
        assert node.holds() == []
        await node.offers(acc(0), acc(1))
        await node.lists({acc(0), acc(1)}, set())
        await node.allocate(acc(1))
        assert not (await node.prepare(claim))[uid(claim)].error
