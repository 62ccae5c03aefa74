"""Which containers exist for which pods, from the container runtime itself, read only.

The one witness for a pod that the kubelet has forgotten while its containers still run (kubelet-contract A.8, H9).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from bridge.platform.api import cri_pb2 as pb
from bridge.platform.api import cri_pb2_grpc as pb_grpc
from bridge.platform.endpoint import Unavailable, UnixEndpoint
from dra_v1.folders import identity_of

TIMEOUT = 5.0
"""Seconds for one call."""

USUAL_SOCKETS = (
    Path("/run/containerd/containerd.sock"),
    Path("/run/crio/crio.sock"),
    Path("/run/k3s/containerd/containerd.sock"),
    Path("/run/cri-dockerd.sock"),
)
"""Where runtimes listen if nobody says otherwise, the most frequent first."""

_POD_UID = "io.kubernetes.pod.uid"
_POD_NAME = "io.kubernetes.pod.name"
_POD_NAMESPACE = "io.kubernetes.pod.namespace"


class ContainerState(enum.Enum):
    """How far a container has come. UNKNOWN is the runtime's own word for what it cannot tell."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


_STATES = {
    pb.CONTAINER_CREATED: ContainerState.CREATED,
    pb.CONTAINER_RUNNING: ContainerState.RUNNING,
    pb.CONTAINER_EXITED: ContainerState.EXITED,
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod as the runtime knows it; `ready` while it runs."""

    id: str
    pod_uid: str
    pod_namespace: str
    pod_name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Container:
    """One container and its pod."""

    id: str
    name: str
    pod_uid: str
    pod_namespace: str
    pod_name: str
    state: ContainerState

    @property
    def may_use_devices(self) -> bool:
        """Anything but exited: a created one is about to start, of an unknown one nobody can say that it ended."""
        return self.state is not ContainerState.EXITED


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """All pods and containers of the node, one listing after the other, so not one instant."""

    sandboxes: tuple[Sandbox, ...]
    containers: tuple[Container, ...]


def sockets(configured: str) -> Sequence[Path]:
    """Where to look for the runtime: where the configuration says, else at the usual places."""
    return (Path(configured),) if configured else USUAL_SOCKETS


class CriClient:
    """Asks the container runtime; finds it first where no socket is given."""

    def __init__(self, sockets: Sequence[Path] = USUAL_SOCKETS, *, configured: bool = False) -> None:
        """The sockets are tried in order; the first one that answers is kept until it fails.

        `configured` says that they are not a guess.
        """
        self._known = configured
        self._sockets = tuple(sockets)
        self._endpoint: UnixEndpoint | None = None
        self._looking = asyncio.Lock()

    @property
    def expected(self) -> bool:
        """Whether a runtime ought to answer: one was found before, or there is a socket, or should be one."""
        return self._known or any(identity_of(socket) is not None for socket in self._sockets)

    async def version(self) -> str | Unavailable:
        """Name and version of the runtime, for people."""
        endpoint = await self._runtime()
        if isinstance(endpoint, Unavailable):
            return endpoint
        answer = await _version(endpoint)
        return (
            answer if isinstance(answer, Unavailable) else f"{answer.runtime_name} {answer.runtime_version}"
        )

    async def info(self) -> Mapping[str, str] | Unavailable:
        """What the runtime tells of itself in a verbose Status; which keys there are is its own choice."""
        endpoint = await self._runtime()
        if isinstance(endpoint, Unavailable):
            return endpoint
        answer = await endpoint.call("ask the container runtime for its status", _status)
        return answer if isinstance(answer, Unavailable) else dict(answer.info)

    async def view(self) -> RuntimeView | Unavailable:
        """All pods and containers.

        Containers are listed first: the sandbox of each is then still there to name its pod, unless it was removed in
        between, and then the labels that the kubelet put on the container say the same.
        """
        endpoint = await self._runtime()
        if isinstance(endpoint, Unavailable):
            return endpoint
        containers = await endpoint.call("list containers", _list_containers)
        sandboxes = await endpoint.call("list pod sandboxes", _list_sandboxes)
        if isinstance(containers, Unavailable):
            return await self._lost(containers)
        if isinstance(sandboxes, Unavailable):
            return await self._lost(sandboxes)
        return _view(containers, sandboxes)

    async def containers_of(self, pod_uid: str, within: float) -> tuple[Container, ...] | Unavailable:
        """The containers of one pod, asked for by the label that the kubelet puts on them; `within` seconds."""
        asked = pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector={_POD_UID: pod_uid}))
        try:
            async with asyncio.timeout(within):
                endpoint = await self._runtime()
                if isinstance(endpoint, Unavailable):
                    return endpoint
                answer = await endpoint.call(
                    "list a pod's containers",
                    lambda channel: pb_grpc.RuntimeServiceStub(channel).ListContainers(asked, timeout=within),
                )
        except TimeoutError:
            return Unavailable(f"the container runtime did not answer within {within * 1000:.0f} ms")
        if isinstance(answer, Unavailable):
            return answer
        # A runtime that does not know the filter lists them all.
        found = (_container(one, None) for one in answer.containers)
        return tuple(one for one in found if one.pod_uid == pod_uid)

    async def _lost(self, answer: Unavailable) -> Unavailable:
        """Look for a runtime afresh the next time."""
        await self.close()
        return answer

    async def close(self) -> None:
        """Close the channel. The next call opens another."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            await endpoint.close()

    async def _runtime(self) -> UnixEndpoint | Unavailable:
        async with self._looking:
            if self._endpoint is not None and self._endpoint.socket.exists():
                return self._endpoint
            await self.close()
            return await self._find()

    async def _find(self) -> UnixEndpoint | Unavailable:
        reasons = []
        for socket in self._sockets:
            endpoint = UnixEndpoint(socket)
            try:
                answer = await _version(endpoint)
            except BaseException:
                await endpoint.close()
                raise
            if not isinstance(answer, Unavailable):
                self._endpoint = endpoint
                self._known = True
                return endpoint
            await endpoint.close()
            reasons.append(answer.reason)
        return Unavailable("no container runtime answers: " + "; ".join(reasons))


async def _list_containers(channel: grpc.aio.Channel) -> pb.ListContainersResponse:
    stub = pb_grpc.RuntimeServiceStub(channel)
    return await stub.ListContainers(pb.ListContainersRequest(), timeout=TIMEOUT)


async def _list_sandboxes(channel: grpc.aio.Channel) -> pb.ListPodSandboxResponse:
    stub = pb_grpc.RuntimeServiceStub(channel)
    return await stub.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=TIMEOUT)


async def _version(endpoint: UnixEndpoint) -> pb.VersionResponse | Unavailable:
    return await endpoint.call(
        "ask the container runtime for its version",
        lambda channel: pb_grpc.RuntimeServiceStub(channel).Version(pb.VersionRequest(), timeout=TIMEOUT),
    )


async def _status(channel: grpc.aio.Channel) -> pb.StatusResponse:
    stub = pb_grpc.RuntimeServiceStub(channel)
    return await stub.Status(pb.StatusRequest(verbose=True), timeout=TIMEOUT)


def _view(containers: pb.ListContainersResponse, sandboxes: pb.ListPodSandboxResponse) -> RuntimeView:
    pods = {one.id: _sandbox(one) for one in sandboxes.items}
    return RuntimeView(
        sandboxes=tuple(pods.values()),
        containers=tuple(_container(one, pods.get(one.pod_sandbox_id)) for one in containers.containers),
    )


def _sandbox(one: pb.PodSandbox) -> Sandbox:
    pod = one.metadata
    return Sandbox(one.id, pod.uid, pod.namespace, pod.name, one.state == pb.SANDBOX_READY)


def _container(one: pb.Container, pod: Sandbox | None) -> Container:
    return Container(
        id=one.id,
        name=one.metadata.name,
        pod_uid=pod.pod_uid if pod else one.labels.get(_POD_UID, ""),
        pod_namespace=pod.pod_namespace if pod else one.labels.get(_POD_NAMESPACE, ""),
        pod_name=pod.pod_name if pod else one.labels.get(_POD_NAME, ""),
        state=_STATES.get(one.state, ContainerState.UNKNOWN),
    )
