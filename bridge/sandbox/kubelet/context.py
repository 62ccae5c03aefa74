"""What the kubelet's parts share: the node's name, its paths, the way to the API server, the times that things take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.objects import ApiProblem, Object, label_of, name_of, namespace_of, now, uid_of
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.resources import Profile
from bridge.sandbox.observe import Observations
from bridge.sandbox.paths import Paths

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things take, in seconds. The defaults are quick; `real()` are a kubelet's own."""

    node_status: float = 0.1
    watcher_retry: float = 0.1
    watcher_retry_most: float = 2.0
    pod_retry: float = 0.1
    pod_retry_most: float = 1.0
    reconcile: float = 0.5
    wipe_delay: float = 30.0
    endpoint_grace: float = 300.0
    health_reconnect: float = 0.2
    prepare_timeout: float = 45.0
    pod_sync: float = 0.2
    dial: float = 10.0

    @staticmethod
    def real() -> Timings:
        """Return a kubelet's own times."""
        return Timings(10.0, 0.5, 122.0, 10.0, 10.0, 60.0, 30.0, 300.0, 5.0, 45.0, 60.0, 10.0)


class Context:
    """The surroundings of one kubelet."""

    def __init__(
        self, node_name: str, paths: Paths, server: ApiServer, observe: Observations, timings: Timings
    ) -> None:
        self.node_name, self.paths, self.observe, self.timings = node_name, paths, observe, timings
        self.server = server

    @property
    def profile(self) -> Profile:
        """The release that is simulated."""
        return self.server.registry.profile

    @property
    def api(self) -> Registry:
        """The API server, as a client has it.

        Raises:
            ApiProblem: 503 while it is away.
        """
        if not self.server.up:
            raise ApiProblem(503, "ServiceUnavailable", "the API server cannot be reached")
        return self.server.registry

    def tell(self, what: str, about: str, **facts: object) -> None:
        """Record an observation of the kubelet."""
        self.observe.tell("kubelet", what, about, **facts)

    def event(self, pod: Object, kind: str, reason: str, message: str) -> None:
        """Write a Kubernetes event about a pod; lost while the API server is away, as best-effort events are."""
        self.tell(f"Event{reason}", label_of(pod), message=message)
        try:
            self.api.create(
                "events",
                {
                    "metadata": {"generateName": f"{name_of(pod)}.", "namespace": namespace_of(pod)},
                    "involvedObject": {
                        "kind": "Pod",
                        "namespace": namespace_of(pod),
                        "name": name_of(pod),
                        "uid": uid_of(pod),
                    },
                    "type": kind,
                    "reason": reason,
                    "message": message,
                    "source": {"component": "kubelet", "host": self.node_name},
                    "firstTimestamp": now(),
                    "lastTimestamp": now(),
                    "count": 1,
                },
                namespace_of(pod),
            )
        except ApiProblem as problem:
            self.tell("EventLost", label_of(pod), reason=reason, error=problem.message)


_CODES = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}


def rpc_text(error: grpc.aio.AioRpcError) -> str:
    """Write a gRPC error as Go does, since that is what ends up in pod status and events."""
    return f"rpc error: code = {_CODES[error.code().name]} desc = {error.details()}"


class ConnectionClosing(Exception):
    """A call was under way when its connection was closed on this side; the text is Go's."""


async def answered(call: Awaitable[T]) -> T:
    """Wait for a call's answer.

    gRPC for Python cancels whoever waits for a call on a channel that is closed; a kubelet sees an error instead
    and goes on.

    Raises:
        ConnectionClosing: the channel was closed meanwhile.
    """
    try:
        return await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        text = "rpc error: code = Canceled desc = grpc: the client connection is closing"
        raise ConnectionClosing(text) from None


def dial(socket: str) -> grpc.aio.Channel:
    """Open a channel to a unix socket as a Go client does: plain, authority `localhost`."""
    options = (
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", 16 * 2**20),
        # Channels of one process share connections by default; a kubelet dials each plugin anew.
        ("grpc.use_local_subchannel_pool", 1),
    )
    return grpc.aio.insecure_channel(f"unix://{socket}", options=options)
