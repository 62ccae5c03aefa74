"""The podresources client over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bridge.platform.api import podresources_pb2 as pb
from bridge.platform.api import podresources_pb2_grpc as pb_grpc
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import (
    Allocatable,
    ClaimDevice,
    ClaimUse,
    DeviceUse,
    PodRef,
    PodResourcesClient,
)
from dra_v1.sockets import SocketServer
from tests.unit.kubelet_peer import short_folder


class Lister(pb_grpc.PodResourcesListerServicer):
    def __init__(self, *pods: pb.PodResources, allocatable: list[pb.ContainerDevices] | None = None) -> None:
        self.pods = pods
        self.allocatable = allocatable or []
        self.refuses = False
        self.peers: set[str] = set()

    async def List(
        self,
        request: pb.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse],
    ) -> pb.ListPodResourcesResponse:
        if self.refuses:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
        return pb.ListPodResourcesResponse(pod_resources=self.pods)

    async def GetAllocatableResources(
        self,
        request: pb.AllocatableResourcesRequest,
        context: grpc.aio.ServicerContext[pb.AllocatableResourcesRequest, pb.AllocatableResourcesResponse],
    ) -> pb.AllocatableResourcesResponse:
        return pb.AllocatableResourcesResponse(devices=self.allocatable)

    async def Get(
        self,
        request: pb.GetPodResourcesRequest,
        context: grpc.aio.ServicerContext[pb.GetPodResourcesRequest, pb.GetPodResourcesResponse],
    ) -> pb.GetPodResourcesResponse:
        return pb.GetPodResourcesResponse()


def at(path: Path, lister: Lister) -> SocketServer:
    return SocketServer(path, lambda server: pb_grpc.add_PodResourcesListerServicer_to_server(lister, server))


@pytest.fixture
def socket() -> Iterator[Path]:
    with short_folder() as path:
        yield path / "kubelet.sock"


def pod(name: str, *containers: pb.ContainerResources) -> pb.PodResources:
    return pb.PodResources(name=name, namespace="default", containers=containers)


def devices(resource: str, *ids: str, numa: int = 0) -> pb.ContainerDevices:
    return pb.ContainerDevices(
        resource_name=resource, device_ids=ids, topology=pb.TopologyInfo(nodes=[pb.NUMANode(ID=numa)])
    )


ACC = "example.com/acc"


async def test_devices_are_gathered_by_pod_container_and_resource(socket: Path) -> None:
    main = pb.ContainerResources(
        name="main", devices=[devices(ACC, "a"), devices(ACC, "b", numa=1), devices("x/y", "z")]
    )
    server = at(socket, Lister(pod("train", main), pod("idle")))
    await server.serve()
    client = PodResourcesClient(socket)
    found = await client.list()
    assert not isinstance(found, Unavailable)
    train = PodRef("default", "train")
    assert found.pods == {train, PodRef("default", "idle")}
    assert set(found.devices) == {
        DeviceUse(train, "main", ACC, frozenset("ab")),
        DeviceUse(train, "main", "x/y", frozenset("z")),
    }
    assert found.claims == ()
    await client.close()
    await server.stop()


async def test_claims_come_with_driver_pool_device_and_share(socket: Path) -> None:
    parts = [
        pb.ClaimResource(
            driver_name="acc.example.com",
            pool_name="node1",
            device_name="acc0",
            cdi_devices=[pb.CDIDevice(name="example.com/acc=acc0")],
        ),
        pb.ClaimResource(driver_name="d", pool_name="p", device_name="n", share_id="s-1"),
    ]
    claim = pb.DynamicResource(claim_name="c", claim_namespace="default", claim_resources=parts)
    server = at(socket, Lister(pod("train", pb.ContainerResources(name="main", dynamic_resources=[claim]))))
    await server.serve()
    client = PodResourcesClient(socket)
    found = await client.list()
    assert not isinstance(found, Unavailable)
    assert found.claims == (
        ClaimUse(
            PodRef("default", "train"),
            "main",
            "default",
            "c",
            (
                ClaimDevice("acc.example.com", "node1", "acc0", None, ("example.com/acc=acc0",)),
                ClaimDevice("d", "p", "n", "s-1", ()),
            ),
        ),
    )
    await client.close()
    await server.stop()


async def test_allocatable_is_by_resource(socket: Path) -> None:
    server = at(socket, Lister(allocatable=[devices(ACC, "a"), devices(ACC, "b"), devices("x/y", "z")]))
    await server.serve()
    client = PodResourcesClient(socket)
    assert await client.allocatable() == Allocatable({ACC: frozenset("ab"), "x/y": frozenset("z")})
    await client.close()
    await server.stop()


async def test_no_socket_and_a_refusal_are_outcomes_with_a_reason(socket: Path) -> None:
    client = PodResourcesClient(socket)
    found = await client.list()
    assert isinstance(found, Unavailable)
    assert str(socket) in found.reason
    lister = Lister()
    lister.refuses = True
    server = at(socket, lister)
    await server.serve()
    found = await client.list()
    assert isinstance(found, Unavailable)
    assert "rate limit" in found.reason
    await client.close()
    await server.stop()


async def test_h13_a_restarted_kubelet_is_asked_at_once(socket: Path) -> None:
    client = PodResourcesClient(socket)
    for name in ("before", "after"):
        server = at(socket, Lister(pod(name)))
        await server.serve()
        found = await client.list()
        assert not isinstance(found, Unavailable)
        assert found.pods == {PodRef("default", name)}
        await server.stop()
        assert isinstance(await client.list(), Unavailable)
    await client.close()


async def test_a_list_beyond_the_usual_four_mebibytes_is_read(socket: Path) -> None:
    many = [devices(ACC, *(f"{n}-{'x' * 50}" for n in range(100_000)))]
    server = at(socket, Lister(pod("big", pb.ContainerResources(name="c", devices=many))))
    await server.serve()
    client = PodResourcesClient(socket)
    found = await client.list()
    assert not isinstance(found, Unavailable)
    assert len(found.devices[0].ids) == 100_000
    await client.close()
    await server.stop()
