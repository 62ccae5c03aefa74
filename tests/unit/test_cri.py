"""The container runtime client over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from bridge.platform.api import cri_pb2 as pb
from bridge.platform.api import cri_pb2_grpc as pb_grpc
from bridge.platform.cri import ContainerState, CriClient
from bridge.platform.endpoint import Unavailable
from dra_v1.sockets import SocketServer
from tests.unit.kubelet_peer import short_folder


class Runtime(pb_grpc.RuntimeServiceServicer):
    def __init__(
        self, name: str = "fake", containers: Sequence[pb.Container] = (), pods: Sequence[pb.PodSandbox] = ()
    ) -> None:
        self.name = name
        self.containers = containers
        self.pods = pods

    async def Version(
        self,
        request: pb.VersionRequest,
        context: grpc.aio.ServicerContext[pb.VersionRequest, pb.VersionResponse],
    ) -> pb.VersionResponse:
        return pb.VersionResponse(runtime_name=self.name, runtime_version="v2")

    async def ListContainers(
        self,
        request: pb.ListContainersRequest,
        context: grpc.aio.ServicerContext[pb.ListContainersRequest, pb.ListContainersResponse],
    ) -> pb.ListContainersResponse:
        return pb.ListContainersResponse(containers=self.containers)

    async def ListPodSandbox(
        self,
        request: pb.ListPodSandboxRequest,
        context: grpc.aio.ServicerContext[pb.ListPodSandboxRequest, pb.ListPodSandboxResponse],
    ) -> pb.ListPodSandboxResponse:
        return pb.ListPodSandboxResponse(items=self.pods)

    async def Status(
        self,
        request: pb.StatusRequest,
        context: grpc.aio.ServicerContext[pb.StatusRequest, pb.StatusResponse],
    ) -> pb.StatusResponse:
        return pb.StatusResponse()


def at(path: Path, runtime: Runtime) -> SocketServer:
    return SocketServer(path, lambda server: pb_grpc.add_RuntimeServiceServicer_to_server(runtime, server))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def container(name: str, state: pb.ContainerState.ValueType, sandbox: str = "s1") -> pb.Container:
    labels = {
        "io.kubernetes.pod.uid": "u-label",
        "io.kubernetes.pod.name": "p-label",
        "io.kubernetes.pod.namespace": "n-label",
    }
    metadata = pb.ContainerMetadata(name=name)
    return pb.Container(
        id=f"id-{name}", pod_sandbox_id=sandbox, metadata=metadata, state=state, labels=labels
    )


SANDBOX = pb.PodSandbox(
    id="s1",
    metadata=pb.PodSandboxMetadata(name="train", uid="u1", namespace="default"),
    state=pb.SANDBOX_READY,
)


async def test_containers_come_with_their_pod_and_state(folder: Path) -> None:
    states = [pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED, pb.CONTAINER_UNKNOWN]
    containers = [container(f"c{state}", state) for state in states]
    server = at(folder / "r.sock", Runtime("fake", containers, [SANDBOX]))
    await server.serve()
    client = CriClient([folder / "r.sock"])
    view = await client.view()
    assert not isinstance(view, Unavailable)
    assert [(one.state, one.may_use_devices) for one in view.containers] == [
        (ContainerState.CREATED, True),
        (ContainerState.RUNNING, True),
        (ContainerState.EXITED, False),
        (ContainerState.UNKNOWN, True),
    ]
    assert {(one.pod_namespace, one.pod_name, one.pod_uid) for one in view.containers} == {
        ("default", "train", "u1")
    }
    assert [(one.pod_uid, one.ready) for one in view.sandboxes] == [("u1", True)]
    await client.close()
    await server.stop()


async def test_a_container_whose_sandbox_is_gone_is_named_by_its_labels(folder: Path) -> None:
    runtime = Runtime("fake", [container("c", pb.CONTAINER_RUNNING, sandbox="gone")], [SANDBOX])
    server = at(folder / "r.sock", runtime)
    await server.serve()
    client = CriClient([folder / "r.sock"])
    view = await client.view()
    assert not isinstance(view, Unavailable)
    (found,) = view.containers
    assert (found.pod_namespace, found.pod_name, found.pod_uid) == ("n-label", "p-label", "u-label")
    await client.close()
    await server.stop()


async def test_the_first_socket_that_answers_is_used_and_another_when_it_goes(folder: Path) -> None:
    paths = [folder / f"{n}.sock" for n in range(3)]
    client = CriClient(paths)
    nothing = await client.version()
    assert isinstance(nothing, Unavailable)
    assert all(str(path) in nothing.reason for path in paths)
    last, first = at(paths[2], Runtime("last")), at(paths[0], Runtime("first"))
    await last.serve()
    assert await client.version() == "last v2"
    await first.serve()
    assert await client.version() == "last v2", "kept while it answers"
    await last.stop()
    assert await client.version() == "first v2"
    await client.close()
    await first.stop()


async def test_a_runtime_that_dies_and_comes_back_is_unavailable_only_meanwhile(folder: Path) -> None:
    path = folder / "r.sock"
    client = CriClient([path])
    for _ in range(2):
        server = at(path, Runtime())
        await server.serve()
        assert not isinstance(await client.view(), Unavailable)
        await server.stop()
        assert isinstance(await client.view(), Unavailable)
    await client.close()


async def test_a_runtime_is_expected_where_one_is_configured_was_found_or_has_a_socket(folder: Path) -> None:
    path = folder / "r.sock"
    assert CriClient([path], configured=True).expected
    client, stranger = CriClient([path]), CriClient([path])
    assert not client.expected and isinstance(await client.version(), Unavailable) and not client.expected
    server = at(path, Runtime())
    await server.serve()
    assert stranger.expected, "a socket that nobody has asked yet"
    assert not isinstance(await client.version(), Unavailable)
    await server.stop()
    assert not path.exists() and client.expected and not stranger.expected
    await client.close()
