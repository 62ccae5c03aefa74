"""Groups of one daemon: what one of them lacks or breaks, what the others do, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.daemon import follow, run, serving
from bridge.daemon.checks import Checks
from bridge.daemon.errors import Broken
from bridge.daemon.run import StartError
from bridge.planes import device_plugin
from bridge.sandbox.daemon import DaemonProcess
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import ACC, DRIVER, RESOURCE, Node, acc, stage

OTHER: dict[str, Any] = {"name": "other", "kind": "device-node", "options": {"include": ["/dev/other*"]}}


@contextlib.contextmanager
def cdi_out_of_order(node: Node) -> Iterator[None]:
    """The folder of the groups' CDI files cannot be written: a file stands in its place."""
    folder = node.box.paths.cdi_static
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("a file")
    yield
    folder.unlink()
    aside.rename(folder)


async def test_devices_left_out_are_told_once() -> None:
    async with stage(start=False) as node:
        (node.box.paths.root / "dev/crypto/acc7").mkdir()
        named = {"include": ["/dev/crypto/acc*", "/dev/crypto/acc7"]}
        node.config["groups"] = [ACC | {"options": named}]
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        node.box.tree.add("/dev/crypto/acc5")
        await node.lists({acc(0), acc(1), acc(5)}, set())
        told = [record for record in node.log.records if "acc7" in str(vars(record))]
        assert len(told) == 1 and told[0].levelname == "WARNING"


async def test_claims_left_from_dual_need_the_api_server_and_the_refusal_says_so() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[claim["metadata"]["uid"]].error
        await node.stop()
        node.config["mode"] = "device-plugin"
        node.box.paths.kubeconfig.write_text("{}")
        with pytest.raises(StartError, match="DRA, offered or still held in acc, needs the API server"):
            await node.start()


@pytest.mark.parametrize("renamed", [{"name": "other"}, {"resourceName": "example.com/other"}])
async def test_a_group_cannot_be_renamed_under_its_holds(renamed: dict[str, str]) -> None:
    async with stage() as node:
        await node.allocate(acc(1))
        await node.stop()
        files = sorted(path.name for path in node.box.paths.cdi_static.iterdir())
        group = node.config["groups"][0]
        node.config["groups"] = [group | renamed]
        with pytest.raises(StartError, match=f"{acc(1)} by a pod not yet identified.*put .* back"):
            await node.start()
        assert sorted(path.name for path in node.box.paths.cdi_static.iterdir()) == files
        node.config["groups"] = [group]
        await node.start()
        await node.offers(acc(0))


async def test_damage_found_at_a_start_is_accepted_by_a_later_one_only() -> None:
    async with stage() as node:
        await node.stop()
        (node.state / "ledger.db").write_bytes(b"junk" * 1000)
        await node.start(accept_empty_ledger=True)
        with pytest.raises(EndpointError, match=f"{acc(1)} is quarantined"):
            await node.allocate(acc(1))
        assert any("does not accept damage that this start found" in r.getMessage() for r in node.log.records)
        await node.stop()
        await node.start(accept_empty_ledger=True)
        await node.allocate(acc(1))
        assert any("lifted, as told" in r.getMessage() for r in node.log.records)
        await node.stop()
        await node.start(accept_empty_ledger=True)
        assert any("has nothing to accept" in r.getMessage() for r in node.log.records)
        assert set(node.ledger()) == {acc(1)}


async def test_a_list_that_ends_by_a_defect_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage() as node:
        view = device_plugin.device_plugin_view

        def break_then(roster: Any, account: Any, memory: Any) -> Any:
            if len(account):
                raise ArithmeticError("no such number")
            return view(roster, account, memory)

        monkeypatch.setattr(device_plugin, "device_plugin_view", break_then)
        await node.allocate(acc(1))
        with pytest.raises(Broken, match="group acc: device plugin: ArithmeticError: no such number"):
            await node.ended()


async def test_a_projection_to_slices_that_breaks_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage() as node:

        def break_now(*_: object, **__: object) -> None:
            raise ArithmeticError("no such number")

        monkeypatch.setattr("bridge.daemon.dra.dra_view", break_now)
        await node.allocate(acc(1))
        with pytest.raises(Broken, match="group acc: slices: ArithmeticError: no such number"):
            await node.ended()


async def test_a_publisher_that_breaks_ends_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage() as node:

        def break_now(*_: object, **__: object) -> None:
            raise ArithmeticError("no such number")

        await node.offers(acc(0), acc(1))
        monkeypatch.setattr("dra_v1.slice_publisher.plan", break_now)
        await node.allocate(acc(1))
        with pytest.raises(Broken, match="group acc: publication: ArithmeticError: no such number"):
            await node.ended()


async def test_a_pool_that_cannot_be_published_ends_the_daemon_with_1() -> None:
    async with stage(start=False) as node:
        daemon = await DaemonProcess(node.box.paths, "No_Node", node.config).start()
        assert await daemon.ended() == 1
        said = await asyncio.to_thread(daemon.log.read_text)
        assert "group acc: slices: PublishError: pool No_Node cannot be published: name" in said


async def test_a_group_whose_socket_is_taken_is_refused_alone_and_served_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "RETRY_S", 0.05)
    checks = Checks()
    monkeypatch.setattr(run, "Checks", lambda: checks)
    async with stage(dict(ACC), start=False) as node:
        node.box.tree.add("/dev/other0")
        await node.box.observe.wait("KubeletSynced")
        path = node.box.paths.plugins / "other.device-bridge.io/dra.sock"
        path.parent.mkdir()
        foreign = await asyncio.start_unix_server(lambda reader, writer: writer.close(), path)
        node.config["groups"].append(OTHER)
        await node.start(refused={"other"})
        await node.allocate(acc(1))
        told = await node.log.wait("group refused, it is tried again")
        assert told["group"] == "other"
        assert "this process serves there already" in told["error"] and str(path) in told["error"]
        assert any(line.startswith("group other: cannot serve at") for line in checks.ready())
        assert not any(line.startswith("group acc") for line in checks.ready())
        foreign.close()
        await foreign.wait_closed()
        path.unlink(missing_ok=True)
        await node.offers("other0", driver="other.device-bridge.io")
        await node.lists({"other0"}, set(), resource="device-bridge.io/other")
        assert not any(line.startswith("group other: cannot") for line in checks.ready())
        assert len(node.log.of("group refused, it is tried again")) == 1


async def test_a_socket_folder_that_cannot_be_made_is_a_clear_refusal() -> None:
    async with stage(start=False) as node:
        folder = node.box.paths.plugins / DRIVER
        folder.write_text("a file")
        with pytest.raises(StartError, match=f"cannot make the folder {folder} .*: File exists; .*move away"):
            await node.start()


async def test_while_cdi_files_cannot_be_written_devices_still_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETRY_S", 3600.0)
    async with stage() as node:
        with cdi_out_of_order(node):
            node.box.tree.add("/dev/crypto/acc5")
            told = await node.log.wait("new devices are not offered")
            assert told["group"] == "acc" and "could not be written" in told["error"]
            node.box.tree.remove("/dev/crypto/acc0")
            await node.lists({acc(1)}, set())
            await node.offers(acc(1))
        node.box.tree.add("/dev/crypto/acc6")
        await node.lists({acc(1), acc(5), acc(6)}, set())
        assert len(node.log.of("new devices are not offered")) == 1


async def test_what_was_held_back_is_offered_as_soon_as_its_file_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "RETRY_S", 0.05)
    async with stage() as node:
        with cdi_out_of_order(node):
            node.box.tree.add("/dev/crypto/acc5")
            await node.log.wait("new devices are not offered")
        await node.lists({acc(0), acc(1), acc(5)}, set())
        await node.offers(acc(0), acc(1), acc(5))


async def test_a_group_that_needs_no_cdi_file_does_not_wait_for_one() -> None:
    async with stage(mode="device-plugin", start=False) as node:
        await node.box.observe.wait("KubeletSynced")
        with cdi_out_of_order(node):
            await node.start()
            await node.run_pod("p", limits={RESOURCE: 1})
            node.box.tree.add("/dev/crypto/acc5")
            await node.lists({acc(0), acc(1), acc(5)}, set())
            assert (await node.log.wait("no CDI file, this group does without"))["group"] == "acc"


async def test_an_owner_inside_the_container_needs_the_cdi_file() -> None:
    owned = ACC | {"options": ACC["options"] | {"owner": {"uid": 1000}}}
    async with stage(owned, mode="device-plugin", start=False) as node:
        with cdi_out_of_order(node), pytest.raises(StartError, match="could not be written"):
            await node.start()


async def test_a_group_that_lacks_its_cdi_file_at_the_start_is_refused_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "RETRY_S", 0.05)
    async with stage(ACC | {"mode": "device-plugin"}, OTHER, start=False) as node:
        node.box.tree.add("/dev/other0")
        await node.box.observe.wait("KubeletSynced")
        with cdi_out_of_order(node):
            await node.start(refused={"other"})
            await node.allocate(acc(1))
            told = await node.log.wait("group refused, it is tried again")
            assert told["group"] == "other" and "could not be written" in told["error"]
        await node.offers("other0", driver="other.device-bridge.io")
