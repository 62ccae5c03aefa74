"""Unix sockets of gRPC servers: whose they are, and that they stay there."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dra_v1.api import pluginregistration_pb2 as pb
from dra_v1.api import pluginregistration_pb2_grpc as pb_grpc
from dra_v1.folders import FolderWatch, identity_of
from dra_v1.sockets import (
    SUN_PATH_LIMIT,
    SocketFolderUnusable,
    SocketInUse,
    SocketPathTooLong,
    SocketServer,
    fits,
    fitting_path,
    listener_at,
)
from tests.unit.kubelet_peer import LIMIT, dial, short_folder

LISTEN = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print("ready", flush=True); s.accept(); s.accept()
"""


class Named(pb_grpc.RegistrationServicer):
    def __init__(self, name: str) -> None:
        self.name = name

    async def GetInfo(
        self, request: pb.InfoRequest, context: grpc.aio.ServicerContext[pb.InfoRequest, pb.PluginInfo]
    ) -> pb.PluginInfo:
        return pb.PluginInfo(name=self.name)

    async def NotifyRegistrationStatus(
        self,
        request: pb.RegistrationStatus,
        context: grpc.aio.ServicerContext[pb.RegistrationStatus, pb.RegistrationStatusResponse],
    ) -> pb.RegistrationStatusResponse:
        return pb.RegistrationStatusResponse()


def named(path: Path, name: str = "mine") -> SocketServer:
    return SocketServer(path, lambda server: pb_grpc.add_RegistrationServicer_to_server(Named(name), server))


async def name_at(path: Path) -> str:
    async with dial(path) as channel:
        info = await pb_grpc.RegistrationStub(channel).GetInfo(pb.InfoRequest(), timeout=LIMIT)
        return info.name


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


async def test_a_served_socket_answers_has_mode_0600_and_is_alone_in_its_folder(folder: Path) -> None:
    server = named(folder / "a.sock")
    assert await server.serve()
    assert await name_at(server.path) == "mine"
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [server.path]
    assert not await server.serve(), "served already"
    await server.stop()
    assert list(folder.iterdir()) == []


async def test_odd_characters_in_the_path_are_no_hindrance(folder: Path) -> None:
    odd = folder / "100%25 a#b?c"
    odd.mkdir()
    server = named(odd / "a b%41.sock")
    await server.serve()
    assert await name_at(server.path) == "mine"
    await server.stop()
    assert list(odd.iterdir()) == []


async def test_a_dead_socket_is_replaced(folder: Path) -> None:
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert listener_at(path) is None
    server = named(path)
    await server.serve()
    assert await name_at(path) == "mine"
    await server.stop()


@pytest.fixture
def foreign(folder: Path) -> Iterator[tuple[Path, int]]:
    """A socket that another process listens at, and that process's number."""
    path = folder / "a.sock"
    with subprocess.Popen([sys.executable, "-c", LISTEN, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            yield path, other.pid
        finally:
            other.kill()


async def test_a_living_socket_of_another_process_is_refused_and_its_owner_named(
    foreign: tuple[Path, int],
) -> None:
    path, pid = foreign
    with pytest.raises(SocketInUse, match=rf"python.*\(process {pid}\)"):
        await named(path).serve()
    assert path.is_socket(), "the file of the other was left alone"


async def test_a_second_server_of_this_process_is_refused(folder: Path) -> None:
    first = named(folder / "a.sock", "first")
    await first.serve()
    with pytest.raises(SocketInUse, match="this process"):
        await named(folder / "a.sock", "second").serve()
    assert await name_at(first.path) == "first"
    await first.stop()


async def test_stop_leaves_the_socket_of_a_successor(folder: Path) -> None:
    first, second = named(folder / "a.sock", "first"), named(folder / "a.sock", "second")
    await first.serve()
    first.path.unlink()
    await second.serve()
    assert not first.is_served()
    await first.stop()
    assert await name_at(second.path) == "second"
    await second.stop()


async def test_a_socket_that_was_taken_away_is_served_again(folder: Path) -> None:
    server = named(folder / "a.sock")
    await server.serve()
    server.path.unlink()
    assert not server.is_served()
    assert await server.serve()
    assert await name_at(server.path) == "mine"
    await server.stop()


async def test_a_missing_folder_a_plain_file_and_a_long_path_each_have_their_own_words(folder: Path) -> None:
    with pytest.raises(SocketFolderUnusable, match="does not exist"):
        await named(folder / "no" / "a.sock").serve()
    (folder / "file").write_text("")
    with pytest.raises(SocketFolderUnusable, match="no socket"):
        await named(folder / "file").serve()
    with pytest.raises(SocketPathTooLong, match=f"{SUN_PATH_LIMIT}"):
        await named(folder / ("x" * 108)).serve()
    assert [path.name for path in folder.iterdir()] == ["file"]


async def test_the_longest_path_that_fits_can_be_served(folder: Path) -> None:
    room = SUN_PATH_LIMIT - len(str(folder)) - 1
    server = named(folder / ("x" * room))
    assert not fits(folder / ("x" * (room + 1)))
    await server.serve()
    assert await name_at(server.path) == "mine"
    await server.stop()


def test_long_names_are_hashed_and_stay_apart() -> None:
    folder = Path("/var/lib/kubelet/plugins_registry")
    assert fitting_path(folder, "a.example_b", "-reg.sock") == folder / "a.example_b-reg.sock"
    long = [fitting_path(folder, "d" * 90 + end, "-reg.sock") for end in "ab"]
    assert long[0] == fitting_path(folder, "d" * 90 + "a", "-reg.sock")
    assert long[0] != long[1]
    assert all(fits(path) and path.name.endswith("-reg.sock") for path in long)
    with pytest.raises(SocketPathTooLong):
        fitting_path(Path("/" + "f" * 100), "name")


async def test_a_watch_wakes_for_new_and_deleted_names_and_for_a_folder_made_again(folder: Path) -> None:
    watched = folder / "w"
    watched.mkdir()
    watch = FolderWatch(watched)
    try:
        async with asyncio.timeout(LIMIT):
            (watched / "a").touch()
            await watch.wait(LIMIT * 2)
            (watched / "a").unlink()
            await watch.wait(LIMIT * 2)
            watched.rmdir()
            await watch.wait(LIMIT * 2)
            watched.mkdir()
            await watch.wait(0)
            (watched / "b").touch()
            await watch.wait(LIMIT * 2)
    finally:
        watch.close()


def test_a_file_is_told_from_its_successor(folder: Path) -> None:
    path = folder / "f"
    assert identity_of(path) is None
    path.touch()
    first = identity_of(path)
    path.unlink()
    path.touch()
    assert first is not None
    assert identity_of(path) != first
