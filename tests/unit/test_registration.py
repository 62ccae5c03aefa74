"""The plugin-watcher registration: the socket is the registration."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dra_v1.folders import identity_of
from dra_v1.registration import RegistrationStatus, WatcherRegistration
from dra_v1.sockets import SocketFolderUnusable
from tests.unit.kubelet_peer import LIMIT, KubeletPeer, kubelet_at, short_folder, until


@pytest.fixture
def root() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
async def kubelet(root: Path) -> AsyncIterator[KubeletPeer]:
    async with kubelet_at(root) as peer:
        yield peer


def registration(kubelet: KubeletPeer, seen: list[RegistrationStatus] | None = None) -> WatcherRegistration:
    return WatcherRegistration(
        type="DRAPlugin",
        name="acc.example.com",
        endpoint=Path("/some/dra.sock"),
        versions=["v1.DRAPlugin", "v1beta1.DRAPlugin"],
        socket_path=kubelet.registry_dir / "acc-reg.sock",
        on_status=seen.append if seen is not None else None,
    )


async def test_the_kubelet_learns_who_it_is_and_its_word_is_kept(kubelet: KubeletPeer) -> None:
    seen: list[RegistrationStatus] = []
    plugin = registration(kubelet, seen)
    await plugin.start()
    assert plugin.status.registered is None
    info = await kubelet.see(plugin.socket_path)
    assert (info.type, info.name, info.endpoint) == ("DRAPlugin", "acc.example.com", "/some/dra.sock")
    assert list(info.supported_versions) == ["v1.DRAPlugin", "v1beta1.DRAPlugin"]
    async with asyncio.timeout(LIMIT):
        await plugin.wait_registered()
    assert seen == [RegistrationStatus(True)]
    await plugin.stop()
    assert not plugin.socket_path.exists()


async def test_after_a_refusal_the_socket_is_made_anew_for_kubelets_that_try_once(
    kubelet: KubeletPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dra_v1.registration.REFUSED_S", 0.05)
    plugin = registration(kubelet)
    await plugin.start()
    kubelet.refusal = "the endpoint does not answer"
    await kubelet.see(plugin.socket_path)
    first = identity_of(plugin.socket_path)
    await until(plugin.socket_path.parent, lambda: identity_of(plugin.socket_path) not in (None, first))
    kubelet.refusal = ""
    await kubelet.see(plugin.socket_path)
    assert plugin.status.registered
    await plugin.stop()


async def test_a_refusal_is_told_and_a_later_success_too(kubelet: KubeletPeer) -> None:
    plugin = registration(kubelet)
    await plugin.start()
    kubelet.refusal = "no such version"
    await kubelet.see(plugin.socket_path)
    assert plugin.status == RegistrationStatus(False, "no such version")
    kubelet.refusal = ""
    await kubelet.see(plugin.socket_path)
    async with asyncio.timeout(LIMIT):
        await plugin.wait_registered()
    await plugin.stop()


async def test_h13_a_deleted_registration_socket_comes_back(kubelet: KubeletPeer) -> None:
    plugin = registration(kubelet)
    await plugin.start()
    plugin.socket_path.unlink()
    assert (await kubelet.see(plugin.socket_path)).name == "acc.example.com"
    await plugin.stop()


async def test_h13_a_registry_folder_made_anew_gets_its_socket_back(kubelet: KubeletPeer) -> None:
    plugin = registration(kubelet)
    await plugin.start()
    shutil.rmtree(kubelet.registry_dir)
    kubelet.registry_dir.mkdir()
    assert (await kubelet.see(plugin.socket_path)).name == "acc.example.com"
    await plugin.stop()


async def test_renewal_is_a_new_socket(kubelet: KubeletPeer) -> None:
    plugin = registration(kubelet)
    await plugin.start()
    before = identity_of(plugin.socket_path)
    await plugin.renew()
    await until(kubelet.registry_dir, lambda: identity_of(plugin.socket_path) not in (None, before))
    await plugin.stop()


async def test_a_missing_registry_folder_is_an_error_at_once(root: Path) -> None:
    plugin = WatcherRegistration(
        type="DRAPlugin", name="a", endpoint=root / "e", versions=["v1"], socket_path=root / "no" / "r.sock"
    )
    with pytest.raises(SocketFolderUnusable, match="kubelet"):
        await plugin.start()
