"""The container runtime's own API, as far as evidence clients read it: Version, sandboxes, containers."""

from __future__ import annotations

from pathlib import Path

import grpc

from bridge.platform.api import cri_pb2 as pb
from bridge.platform.api.cri_pb2_grpc import RuntimeServiceServicer, add_RuntimeServiceServicer_to_server
from bridge.sandbox.kubelet.runtime import Container, Runtime
from bridge.sandbox.kubelet.sockets import serve

_POD_UID, _POD_NAME = "io.kubernetes.pod.uid", "io.kubernetes.pod.name"
_NAMESPACE, _CONTAINER = "io.kubernetes.pod.namespace", "io.kubernetes.container.name"


class CriServer(RuntimeServiceServicer):
    """The simulated runtime behind a unix socket; a kubelet restart does not touch it."""

    def __init__(self, socket: Path, runtime: Runtime) -> None:
        self._socket, self._runtime = socket, runtime
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = grpc.aio.server()
        add_RuntimeServiceServicer_to_server(self, self._server)
        await serve(self._server, self._socket, self._socket.parent)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Version(
        self,
        request: pb.VersionRequest,
        context: grpc.aio.ServicerContext[pb.VersionRequest, pb.VersionResponse],
    ) -> pb.VersionResponse:
        """Say who this is."""
        return pb.VersionResponse(
            version="0.1.0", runtime_name="sandbox", runtime_version="2.0.0", runtime_api_version="v1"
        )

    async def Status(
        self,
        request: pb.StatusRequest,
        context: grpc.aio.ServicerContext[pb.StatusRequest, pb.StatusResponse],
    ) -> pb.StatusResponse:
        """Say that all is ready."""
        ready = [pb.RuntimeCondition(type=kind, status=True) for kind in ("RuntimeReady", "NetworkReady")]
        return pb.StatusResponse(status=pb.RuntimeStatus(conditions=ready))

    async def ListContainers(
        self,
        request: pb.ListContainersRequest,
        context: grpc.aio.ServicerContext[pb.ListContainersRequest, pb.ListContainersResponse],
    ) -> pb.ListContainersResponse:
        """List containers by id, state, sandbox and labels."""
        wanted = request.filter
        shown = [_shown(container) for container in self._runtime.containers.values()]
        return pb.ListContainersResponse(
            containers=[
                c
                for c in shown
                if wanted.id in ("", c.id)
                and wanted.pod_sandbox_id in ("", c.pod_sandbox_id)
                and (not wanted.HasField("state") or wanted.state.state == c.state)
                and all(c.labels.get(key) == value for key, value in wanted.label_selector.items())
            ]
        )

    async def ListPodSandbox(
        self,
        request: pb.ListPodSandboxRequest,
        context: grpc.aio.ServicerContext[pb.ListPodSandboxRequest, pb.ListPodSandboxResponse],
    ) -> pb.ListPodSandboxResponse:
        """List one sandbox per pod that has containers; ready while any of them runs."""
        wanted = request.filter
        by_pod: dict[str, list[Container]] = {}
        for container in self._runtime.containers.values():
            by_pod.setdefault(container.pod_uid, []).append(container)
        shown = [_sandbox(group) for group in by_pod.values()]
        return pb.ListPodSandboxResponse(
            items=[
                s
                for s in shown
                if wanted.id in ("", s.id)
                and (not wanted.HasField("state") or wanted.state.state == s.state)
                and all(s.labels.get(key) == value for key, value in wanted.label_selector.items())
            ]
        )


def _labels(container: Container) -> dict[str, str]:
    return {
        _POD_UID: container.pod_uid,
        _POD_NAME: container.pod_name,
        _NAMESPACE: container.namespace,
    }


def _shown(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        pod_sandbox_id=f"sandbox-{container.pod_uid}",
        metadata=pb.ContainerMetadata(name=container.name, attempt=container.attempt),
        state=pb.CONTAINER_RUNNING if container.running else pb.CONTAINER_EXITED,
        created_at=container.created,
        labels={**_labels(container), _CONTAINER: container.name},
    )


def _sandbox(group: list[Container]) -> pb.PodSandbox:
    first = group[0]
    ready = any(container.running for container in group)
    return pb.PodSandbox(
        id=f"sandbox-{first.pod_uid}",
        metadata=pb.PodSandboxMetadata(name=first.pod_name, uid=first.pod_uid, namespace=first.namespace),
        state=pb.SANDBOX_READY if ready else pb.SANDBOX_NOTREADY,
        created_at=first.created,
        labels=_labels(first),
    )
