"""The DevicePlugin service over real gRPC: lists, allocation, preferences."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from deviceplugin_v1beta1 import ContainerResponse, Device, DevicePlugin, Mount
from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from deviceplugin_v1beta1.service import MESSAGE_LIMIT, DevicePluginService
from dra_v1.sockets import SocketServer
from tests.unit.kubelet_peer import LIMIT, Connection, dial, short_folder
from tests.unit.scripted_plugin import ScriptedPlugin, WishingPlugin

A, B = Device("a"), Device("b")


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@asynccontextmanager
async def served(folder: Path, plugin: DevicePlugin) -> AsyncIterator[tuple[DevicePluginService, Connection]]:
    service = DevicePluginService(plugin, "example.com/x")
    socket = SocketServer(
        folder / "p.sock", lambda server: pb_grpc.add_DevicePluginServicer_to_server(service, server)
    )
    await socket.serve()
    kubelet = Connection("example.com/x", socket.path)
    try:
        yield service, kubelet
    finally:
        await kubelet.close()
        service.close()
        await socket.stop()


def allocation(*containers: list[str]) -> pb.AllocateRequest:
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    )


async def failure_of(
    call: grpc.aio.UnaryUnaryCall[pb.AllocateRequest, pb.AllocateResponse],
) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, caught.value.details() or ""


async def test_the_options_are_what_the_plugin_has(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (_, kubelet):
        await kubelet.open()
        assert kubelet.options == pb.DevicePluginOptions()
    async with served(folder, WishingPlugin()) as (_, kubelet):
        await kubelet.open()
        assert kubelet.options.pre_start_required
        assert kubelet.options.get_preferred_allocation_available


async def test_lists_are_complete_and_sent_only_when_they_differ(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        await kubelet.open()
        service.show([A, B])
        assert await kubelet.next_list() == {"a": "Healthy", "b": "Healthy"}
        service.show([B, A])
        service.show([A, B])
        service.show([A, Device("b", healthy=False)])
        assert await kubelet.next_list() == {"a": "Healthy", "b": "Unhealthy"}
        service.show([])
        assert await kubelet.next_list() == {}


async def test_a_change_and_its_reversal_before_anybody_looked_is_no_news(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        await kubelet.open()
        service.show([A])
        assert await kubelet.next_list() == {"a": "Healthy"}
        service.show([B])
        service.show([A])
        service.show([A, B])
        assert await kubelet.next_list() == {"a": "Healthy", "b": "Healthy"}


async def test_the_topology_is_told_of_devices_that_have_one(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        service.show([A, Device("n", numa_nodes=(0, 8))])
        stream = kubelet.stub.ListAndWatch(pb.Empty())
        message = await asyncio.wait_for(anext(aiter(stream)), LIMIT)
        stream.cancel()
    plain, aligned = message.devices
    assert not plain.HasField("topology")
    assert [node.ID for node in aligned.topology.nodes] == [0, 8]


async def test_each_stream_gets_the_list_and_one_that_ends_is_forgotten(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        service.show([A])
        await kubelet.open()
        second = Connection("example.com/x", kubelet.endpoint)
        await second.open()
        assert await kubelet.next_list() == await second.next_list() == {"a": "Healthy"}
        assert service.open_streams == 2
        await second.close()
        await kubelet.close()
        async with asyncio.timeout(LIMIT):
            await service.wait_streams(open=False)


async def test_h40_a_reader_that_does_not_read_delays_nobody_and_gets_the_newest_list(folder: Path) -> None:
    lists = [[Device(f"{n}-{i}-{'x' * 40}") for i in range(5000)] for n in range(30)]
    async with served(folder, ScriptedPlugin()) as (service, kubelet), dial(kubelet.endpoint) as channel:
        slow = pb_grpc.DevicePluginStub(channel).ListAndWatch(pb.Empty())
        await kubelet.open()
        for shown in lists:
            service.show(shown)
            assert len(await kubelet.next_list() or {}) == 5000
        await kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT)
        read = []
        async with asyncio.timeout(LIMIT):
            async for message in slow:
                read.append(message.devices[0].ID)
                if read[-1] == lists[-1][0].id:
                    break
        slow.cancel()
    assert len(read) < len(lists), "what the slow reader missed was not kept for it"


async def test_h40_a_slow_reader_that_goes_away_leaves_nothing_behind(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        async with dial(kubelet.endpoint) as channel:
            stream = pb_grpc.DevicePluginStub(channel).ListAndWatch(pb.Empty())
            async with asyncio.timeout(LIMIT):
                await service.wait_streams(open=True)
            for n in range(5):
                service.show([Device(f"{n}-{i}-{'x' * 40}") for i in range(20000)])
            stream.cancel()
        async with asyncio.timeout(LIMIT):
            await service.wait_streams(open=False)


async def test_closing_ends_the_streams(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (service, kubelet):
        service.show([A])
        await kubelet.open()
        assert await kubelet.next_list() == {"a": "Healthy"}
        service.close()
        assert await kubelet.next_list() is None


async def test_each_container_gets_its_own_answer(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (_, kubelet):
        answer = await kubelet.stub.Allocate(allocation(["a", "b"], ["c"]), timeout=LIMIT)
    nodes = [[spec.host_path for spec in one.devices] for one in answer.container_responses]
    assert nodes == [["/dev/a", "/dev/b"], ["/dev/c"]]
    spec = answer.container_responses[0].devices[0]
    assert (spec.container_path, spec.permissions) == ("/dev/x-a", "rw")


class Everything(ScriptedPlugin):
    async def allocate(self, containers: object) -> list[ContainerResponse]:
        return [
            ContainerResponse(
                envs={"K": "v"},
                mounts=[Mount("/host", "/inside", read_only=False)],
                annotations={"a": "1"},
                cdi_devices=("example.com/x=a",),
            )
        ]


async def test_all_that_a_container_can_get_arrives(folder: Path) -> None:
    async with served(folder, Everything()) as (_, kubelet):
        answer = (await kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT)).container_responses[0]
    assert dict(answer.envs) == {"K": "v"}
    assert dict(answer.annotations) == {"a": "1"}
    assert [(m.host_path, m.container_path, m.read_only) for m in answer.mounts] == [
        ("/host", "/inside", False)
    ]
    assert [device.name for device in answer.cdi_devices] == ["example.com/x=a"]


async def test_a_refusal_reaches_the_kubelet_word_by_word(folder: Path) -> None:
    plugin = ScriptedPlugin()
    plugin.refusal = "a is held by claim default/train since 10:42"
    async with served(folder, plugin) as (_, kubelet):
        assert await failure_of(kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT)) == (
            "FAILED_PRECONDITION",
            plugin.refusal,
        )
        plugin.refusal = "é" * 100_000
        code, text = await failure_of(kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT))
        assert (code, len(text.encode())) == ("FAILED_PRECONDITION", MESSAGE_LIMIT)


async def test_an_exception_is_told_logged_and_does_not_stop_the_service(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = ScriptedPlugin()
    plugin.failure = KeyError("acc7")
    async with served(folder, plugin) as (_, kubelet):
        with caplog.at_level(logging.ERROR):
            code, text = await failure_of(kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT))
        assert code == "INTERNAL"
        for word in ("example.com/x", "allocate a", "KeyError", "acc7"):
            assert word in text
        assert any(record.exc_info for record in caplog.records)
        plugin.failure = None
        await kubelet.stub.Allocate(allocation(["a"]), timeout=LIMIT)


async def test_a_wrong_number_of_answers_is_an_error_of_the_plugin(folder: Path) -> None:
    async with served(folder, Everything()) as (_, kubelet):
        code, text = await failure_of(kubelet.stub.Allocate(allocation(["a"], ["b"]), timeout=LIMIT))
    assert code == "INTERNAL"
    assert "1 answers for 2 containers" in text


async def test_h40_a_hung_allocation_blocks_no_other_call(folder: Path) -> None:
    plugin = ScriptedPlugin()
    plugin.hangs = {"slow"}
    async with served(folder, plugin) as (service, kubelet):
        await kubelet.open()
        hung = kubelet.stub.Allocate(allocation(["slow"]), timeout=LIMIT * 2)
        waiting = asyncio.ensure_future(hung)
        await asyncio.wait_for(plugin.hanging.wait(), LIMIT)
        await kubelet.stub.Allocate(allocation(["fast"]), timeout=LIMIT)
        service.show([A])
        assert await kubelet.next_list() == {"a": "Healthy"}
        assert not waiting.done()
        plugin.release.set()
        assert len((await waiting).container_responses) == 1


async def test_a_preference_is_passed_on(folder: Path) -> None:
    request = pb.PreferredAllocationRequest(
        container_requests=[
            pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=["a", "b", "c"], must_include_deviceIDs=["a"], allocation_size=2
            )
        ]
    )
    plugin = WishingPlugin()
    async with served(folder, plugin) as (_, kubelet):
        answer = await kubelet.stub.GetPreferredAllocation(request, timeout=LIMIT)
        assert list(answer.container_responses[0].deviceIDs) == ["a", "c"]
        plugin.failure = RuntimeError("no idea")
        answer = await kubelet.stub.GetPreferredAllocation(request, timeout=LIMIT)
        assert list(answer.container_responses[0].deviceIDs) == ["a"], "a failed wish fails no pod"


async def test_pre_start_is_called_and_its_failure_told(folder: Path) -> None:
    plugin = WishingPlugin()
    request = pb.PreStartContainerRequest(devices_ids=["a", "b"])
    async with served(folder, plugin) as (_, kubelet):
        await kubelet.stub.PreStartContainer(request, timeout=LIMIT)
        assert plugin.prepared == [("a", "b")]
        plugin.failure = OSError("reset failed")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await kubelet.stub.PreStartContainer(request, timeout=LIMIT)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "reset failed" in (caught.value.details() or "")


async def test_pre_start_without_such_a_method_is_unimplemented(folder: Path) -> None:
    async with served(folder, ScriptedPlugin()) as (_, kubelet):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await kubelet.stub.PreStartContainer(pb.PreStartContainerRequest(), timeout=LIMIT)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
