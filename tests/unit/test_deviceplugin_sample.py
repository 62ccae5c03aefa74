"""The sample driver as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from tests.unit.kubelet_peer import LIMIT, KubeletPeer, kubelet_at, short_folder, until

SAMPLE = Path(__file__).parents[2] / "samples" / "deviceplugin_driver.py"

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def root() -> Iterator[Path]:
    with short_folder() as path:
        for name in ("acc0", "acc1", "other"):
            (path / name).touch()
        yield path


@pytest.fixture
async def kubelet(root: Path) -> AsyncIterator[KubeletPeer]:
    async with kubelet_at(root) as peer:
        yield peer


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Starts the sample on a route, and sees to its end."""
    processes: list[subprocess.Popen[str]] = []

    def started(route: str) -> subprocess.Popen[str]:
        arguments = ["--resource-name", "example.com/acc", "--glob", f"{root}/acc*"]
        arguments += ["--kubelet-root", str(root), "--registration", route]
        process = subprocess.Popen(
            [sys.executable, str(SAMPLE), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            cwd=SAMPLE.parents[1],
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def test_the_sample_stays_under_sixty_lines() -> None:
    assert len(SAMPLE.read_text().splitlines()) < 60


@pytest.mark.parametrize("route", ["legacy", "watcher"])
async def test_the_sample_offers_nodes_gives_them_and_leaves_nothing(
    kubelet: KubeletPeer, start: Start, root: Path, route: str
) -> None:
    process = start(route)
    if route == "watcher":
        await kubelet.see(kubelet.registry_dir / "example.com_acc-reg.sock")
    connection = await kubelet.registered()
    stem = str(root).strip("/").replace("/", "-")
    ids = [f"{stem}-acc0", f"{stem}-acc1"]
    assert await connection.next_list() == dict.fromkeys(ids, "Healthy")

    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
    answer = await connection.stub.Allocate(request, timeout=LIMIT)
    assert [spec.host_path for spec in answer.container_responses[0].devices] == [
        f"{root}/acc0",
        f"{root}/acc1",
    ]
    unknown = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=["acc9"])])
    with pytest.raises(grpc.aio.AioRpcError, match="acc9"):
        await connection.stub.Allocate(unknown, timeout=LIMIT)

    process.terminate()
    assert await connection.next_list() is None
    for folder in (kubelet.plugins_dir, kubelet.registry_dir):
        await until(folder, lambda folder=folder: not list(folder.glob("example*")))  # type: ignore[misc]
    _, log = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, log


async def test_a_failing_sample_ends_with_the_reason(root: Path, start: Start) -> None:
    process = start("legacy")
    _, log = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert "device-plugins does not exist" in log
