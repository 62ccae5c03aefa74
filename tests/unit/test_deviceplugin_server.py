"""A device plugin from start to stop, on both routes, through kubelet restarts and faults of the author's code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import pytest

from deviceplugin_v1beta1 import (
    Device,
    DeviceListError,
    DevicePluginServer,
    DevicesEnded,
    RegistrationStatus,
    ResourceNameError,
    SocketInUse,
    server,
)
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from dra_v1.folders import FileIdentity, identity_of
from dra_v1.sockets import SocketError
from tests.unit.kubelet_peer import LIMIT, KubeletPeer, kubelet_at, short_folder, until
from tests.unit.scripted_plugin import ScriptedPlugin

RESOURCE = "example.com/acc"
A, B = Device("a"), Device("b")


@pytest.fixture
def root() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
async def kubelet(root: Path) -> AsyncIterator[KubeletPeer]:
    async with kubelet_at(root) as peer:
        yield peer


def plugin_server(
    kubelet: KubeletPeer,
    plugin: ScriptedPlugin,
    registration: Literal["watcher", "legacy"],
    resource: str = RESOURCE,
    seen: list[RegistrationStatus] | None = None,
) -> DevicePluginServer:
    return DevicePluginServer(
        plugin,
        resource,
        registration=registration,
        plugins_dir=kubelet.plugins_dir,
        registry_dir=kubelet.registry_dir,
        socket_dir=kubelet.socket_dir,
        on_status=seen.append if seen is not None else None,
    )


def registry_socket(kubelet: KubeletPeer) -> Path:
    return kubelet.registry_dir / "example.com_acc-reg.sock"


def replaced(path: Path, before: FileIdentity | None) -> bool:
    return identity_of(path) not in (None, before)


async def registered(plugin: DevicePluginServer) -> None:
    async with asyncio.timeout(LIMIT):
        await plugin.wait_registered()


async def test_legacy_the_kubelet_is_called_and_reads_the_list(kubelet: KubeletPeer) -> None:
    seen: list[RegistrationStatus] = []
    async with plugin_server(kubelet, ScriptedPlugin(A, B), "legacy", seen=seen) as plugin:
        connection = await kubelet.registered()
        request = kubelet.attempts.get_nowait()
        assert (request.version, request.resource_name) == ("v1beta1", RESOURCE)
        assert request.endpoint == "example.com_acc.sock", "a bare file name"
        assert await connection.next_list() == {"a": "Healthy", "b": "Healthy"}
        await registered(plugin)
    assert await connection.next_list() is None
    assert not plugin.socket_path.exists()
    assert seen == [RegistrationStatus(True)]


async def test_watcher_the_kubelet_finds_it_and_reads_the_list(kubelet: KubeletPeer) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(A), "watcher") as plugin:
        info = await kubelet.see(registry_socket(kubelet))
        assert (info.type, info.name, list(info.supported_versions)) == (
            "DevicePlugin",
            RESOURCE,
            ["v1beta1"],
        )
        assert Path(info.endpoint) == plugin.socket_path
        assert plugin.socket_path.parent == kubelet.socket_dir
        await registered(plugin)
        connection = await kubelet.registered()
        assert await connection.next_list() == {"a": "Healthy"}
    assert await connection.next_list() is None
    assert not registry_socket(kubelet).exists()
    assert not plugin.socket_path.exists()
    assert kubelet.attempts.empty(), "kubelet.sock is not used on this route"


async def test_nothing_is_registered_before_the_first_list(kubelet: KubeletPeer) -> None:
    scripted = ScriptedPlugin()
    async with plugin_server(kubelet, scripted, "legacy") as plugin:
        assert plugin.socket_path.is_socket()
        scripted.show(A)
        connection = await kubelet.registered()
        assert await connection.next_list() == {"a": "Healthy"}
        assert kubelet.attempts.qsize() == 1


async def test_h13_kubelet_restart_wipes_the_socket_and_a_new_registration_follows(
    kubelet: KubeletPeer,
) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(A), "legacy") as plugin:
        await (await kubelet.registered()).next_list()
        for _ in range(3):
            await kubelet.stop()
            await kubelet.start()
            connection = await kubelet.registered()
            assert await connection.next_list() == {"a": "Healthy"}
            await registered(plugin)
        assert plugin.socket_path.is_socket()


async def test_h13_the_own_socket_removed_is_served_and_registered_again(kubelet: KubeletPeer) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(A), "legacy") as plugin:
        first = await kubelet.registered()
        assert await first.next_list() == {"a": "Healthy"}
        plugin.socket_path.unlink()
        second = await kubelet.registered()
        assert await second.next_list() == {"a": "Healthy"}
        assert await first.next_list() is None, "the old connection ended before the new one began"


async def test_h13_registration_is_tried_until_there_is_a_kubelet_and_it_agrees(kubelet: KubeletPeer) -> None:
    await kubelet.stop()
    seen: list[RegistrationStatus] = []
    async with plugin_server(kubelet, ScriptedPlugin(A), "legacy", seen=seen) as plugin:
        kubelet.refusal = "not ready"
        await kubelet.start()
        async with asyncio.timeout(LIMIT):
            await kubelet.attempts.get()
            await kubelet.attempts.get()
        kubelet.refusal = ""
        await kubelet.registered()
        await registered(plugin)
    failed = [status for status in seen if status.registered is False]
    assert failed
    assert all(RESOURCE in status.error for status in failed)
    assert any("not ready" in status.error for status in failed)
    assert seen[-1] == RegistrationStatus(True)


async def test_h13_watcher_a_lost_endpoint_comes_back_with_a_new_registration(kubelet: KubeletPeer) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(A), "watcher") as plugin:
        await kubelet.see(registry_socket(kubelet))
        before = identity_of(registry_socket(kubelet))
        plugin.socket_path.unlink()
        await until(kubelet.registry_dir, lambda: replaced(registry_socket(kubelet), before))
        await kubelet.registered()
        await kubelet.see(registry_socket(kubelet))
        connection = await kubelet.registered()
        assert await connection.next_list() == {"a": "Healthy"}


@pytest.mark.parametrize("route", ["watcher", "legacy"])
async def test_h15_a_plugin_whose_list_nobody_reads_any_more_registers_again(
    kubelet: KubeletPeer, monkeypatch: pytest.MonkeyPatch, route: Literal["watcher", "legacy"]
) -> None:
    monkeypatch.setattr(server, "FORGOTTEN_SECONDS", 0.2)
    async with plugin_server(kubelet, ScriptedPlugin(A), route):
        if route == "watcher":
            await kubelet.see(registry_socket(kubelet))
        first = await kubelet.registered()
        assert await first.next_list() == {"a": "Healthy"}
        before = identity_of(registry_socket(kubelet))
        await first.close()
        if route == "watcher":
            await until(kubelet.registry_dir, lambda: replaced(registry_socket(kubelet), before))
            await kubelet.see(registry_socket(kubelet))
        second = await kubelet.registered()
        assert await second.next_list() == {"a": "Healthy"}


@pytest.mark.parametrize("route", ["watcher", "legacy"])
@pytest.mark.parametrize(
    ("failure", "raised"),
    [(None, DevicesEnded), (OSError("bus gone"), OSError)],
    ids=["ends", "fails"],
)
async def test_a_list_that_ends_or_fails_stops_the_server_and_is_told(
    kubelet: KubeletPeer,
    route: Literal["watcher", "legacy"],
    failure: Exception | None,
    raised: type[Exception],
) -> None:
    scripted = ScriptedPlugin(A)
    async with plugin_server(kubelet, scripted, route) as plugin:
        if route == "watcher":
            await kubelet.see(registry_socket(kubelet))
        connection = await kubelet.registered()
        assert await connection.next_list() == {"a": "Healthy"}
        scripted.end(failure)
        with pytest.raises(raised):
            await asyncio.wait_for(plugin.wait(), LIMIT)
        assert await connection.next_list() is None, "the kubelet sees the end, not a frozen list"
        await until(plugin.socket_path.parent, lambda: not plugin.socket_path.exists())
        assert not registry_socket(kubelet).exists()


async def test_a_list_that_cannot_be_shown_is_told(kubelet: KubeletPeer) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(Device("x" * 64)), "legacy") as plugin:
        with pytest.raises(DeviceListError, match="63 are allowed"):
            await asyncio.wait_for(plugin.wait(), LIMIT)


async def test_wait_ends_with_stop(kubelet: KubeletPeer) -> None:
    plugin = plugin_server(kubelet, ScriptedPlugin(A), "legacy")
    await plugin.start()
    waiting = asyncio.create_task(plugin.wait())
    await plugin.stop()
    await asyncio.wait_for(waiting, LIMIT)
    await plugin.stop()


async def test_calls_under_way_are_finished_at_the_end(kubelet: KubeletPeer) -> None:
    scripted = ScriptedPlugin(A)
    scripted.hangs = {"a"}
    plugin = plugin_server(kubelet, scripted, "legacy")
    await plugin.start()
    connection = await kubelet.registered()
    call = asyncio.ensure_future(connection.stub.Allocate(_allocation("a"), timeout=LIMIT))
    await asyncio.wait_for(scripted.hanging.wait(), LIMIT)
    stopping = asyncio.create_task(plugin.stop())
    await until(kubelet.plugins_dir, lambda: not plugin.socket_path.exists())
    scripted.release.set()
    assert len((await call).container_responses) == 1
    await asyncio.wait_for(stopping, LIMIT)


async def test_two_servers_of_one_resource_are_refused(kubelet: KubeletPeer) -> None:
    async with plugin_server(kubelet, ScriptedPlugin(A), "watcher"):
        await kubelet.see(registry_socket(kubelet))
        with pytest.raises(SocketInUse):
            await plugin_server(kubelet, ScriptedPlugin(B), "watcher").start()


async def test_a_folder_that_cannot_be_made_is_told(kubelet: KubeletPeer, root: Path) -> None:
    (root / "file").write_text("")
    refused = DevicePluginServer(ScriptedPlugin(A), RESOURCE, socket_dir=root / "file" / "sub")
    with pytest.raises(
        SocketError, match=r"cannot make the folder .*/file/sub for a socket: Not a directory"
    ):
        await refused.start()


async def test_a_long_resource_name_gets_a_hashed_file_name(kubelet: KubeletPeer) -> None:
    resource = ".".join(["d" * 60] * 3) + "/" + "n" * 60
    async with plugin_server(kubelet, ScriptedPlugin(A), "legacy", resource):
        connection = await kubelet.registered()
        assert connection.resource == resource
        assert await connection.next_list() == {"a": "Healthy"}


async def test_a_name_that_the_kubelet_would_refuse_is_refused_at_once(kubelet: KubeletPeer) -> None:
    with pytest.raises(ResourceNameError, match="domain"):
        plugin_server(kubelet, ScriptedPlugin(A), "legacy", "acc")


def _allocation(*ids: str) -> pb.AllocateRequest:
    return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
