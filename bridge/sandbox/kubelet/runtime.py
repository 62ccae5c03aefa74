"""The container runtime: simulated containers that run, exit and are stopped, and outlive a kubelet restart.

What a container does is written on its pod as annotations: `sandbox/run-seconds` (absent: until stopped),
`sandbox/exit-code`, `sandbox/stop-seconds` (how long it takes to obey), each also as `<key>.<container>`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from bridge.sandbox.cdi import CdiError, Edits, Node, Specs
from bridge.sandbox.cluster.objects import Object, dig, label_of, name_of, namespace_of, uid_of
from bridge.sandbox.observe import Observations
from bridge.sandbox.tree import Tree

RUN_SECONDS, EXIT_CODE, STOP_SECONDS = "sandbox/run-seconds", "sandbox/exit-code", "sandbox/stop-seconds"


class StartError(Exception):
    """A container that could not be created."""


class State(Enum):
    """A container's life."""

    RUNNING = "running"
    EXITED = "exited"


@dataclass(eq=False, slots=True)
class Container:
    """One container that was started.

    Attributes:
        got: devices, environment and mounts that it was given.
        exit_code: once it has exited.
    """

    id: str
    pod_uid: str
    pod_name: str
    namespace: str
    name: str
    attempt: int
    got: Edits
    created: int = field(default_factory=time.time_ns)
    state: State = State.RUNNING
    exit_code: int = 0
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    _timer: asyncio.Task[None] | None = None
    _stop_seconds: float = 0

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.state is State.RUNNING


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the kubelet asks a container to be given: merged answers of all plugins."""

    edits: Edits
    cdi_names: tuple[str, ...]


def _script(pod: Object, container: str, key: str, default: str) -> str:
    annotations: Object = dig(pod, "metadata.annotations", {})
    return str(annotations.get(f"{key}.{container}", annotations.get(key, default)))


class Runtime:
    """All containers of the node.

    Attributes:
        sandboxes: uids of the pods that have one; it outlives the kubelet, but not a reboot.
    """

    def __init__(self, specs: Specs, tree: Tree, observe: Observations) -> None:
        self._specs, self._tree, self._observe = specs, tree, observe
        self._attempts: dict[tuple[str, str], itertools.count[int]] = {}
        self.containers: dict[str, Container] = {}
        self.sandboxes: set[str] = set()
        self.on_exit: Callable[[Container], None] | None = None

    def start(self, pod: Object, name: str, wanted: Wanted) -> Container:
        """Create and start a container.

        Raises:
            StartError: for unresolvable CDI names and for device nodes that the host lacks.
        """
        got = self._inject(wanted)
        key = (uid_of(pod), name)
        attempt = next(self._attempts.setdefault(key, itertools.count()))
        container = Container(
            uuid.uuid4().hex, uid_of(pod), name_of(pod), namespace_of(pod), name, attempt, got
        )
        container._stop_seconds = float(_script(pod, name, STOP_SECONDS, "0"))
        self.containers[container.id] = container
        if (seconds := _script(pod, name, RUN_SECONDS, "")) != "":
            code = int(_script(pod, name, EXIT_CODE, "0"))
            container._timer = asyncio.create_task(self._run(container, float(seconds), code))
        self._observe.tell(
            "runtime",
            "ContainerStarted",
            label_of(pod),
            container=name,
            id=container.id,
            pod=container.pod_uid,
            devices=[node.host_path for node in got.nodes],
            cdi=got.cdi_names,
        )
        return container

    def _inject(self, wanted: Wanted) -> Edits:
        try:
            got = self._specs.resolve(list(wanted.cdi_names))
        except CdiError as error:
            raise StartError(str(error)) from error
        got.env |= wanted.edits.env
        got.mounts += wanted.edits.mounts
        got.annotations |= wanted.edits.annotations
        by_path: dict[str, Node] = {node.container_path: node for node in got.nodes}
        for node in wanted.edits.nodes:
            by_path[node.container_path] = node
        got.nodes = list(by_path.values())
        for node in got.nodes:
            if not self._tree.at(node.host_path).exists():
                raise StartError(
                    f'error gathering device information while adding custom device "{node.host_path}": '
                    "no such file or directory"
                )
        return got

    async def _run(self, container: Container, seconds: float, code: int) -> None:
        await asyncio.sleep(seconds)
        self._end(container, code)

    def _end(self, container: Container, code: int) -> None:
        if not container.running:
            return
        container.state, container.exit_code = State.EXITED, code
        container.exited.set()
        about = f"{container.namespace}/{container.pod_name}"
        self._observe.tell(
            "runtime", "ContainerExited", about, container=container.name, id=container.id, code=code
        )
        if self.on_exit is not None:
            self.on_exit(container)

    def crash(self, container: Container, code: int = 137) -> None:
        """Make a running container die, as an OOM kill does."""
        if container._timer is not None:
            container._timer.cancel()
        self._end(container, code)

    async def stop(self, container: Container, grace: float) -> None:
        """Stop a container: it takes its stop-seconds, at most the grace period, then it is killed."""
        if not container.running:
            return
        late = container._stop_seconds > grace
        waited = min(container._stop_seconds, grace)
        if waited:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.exited.wait(), waited)
        self.crash(container, 137 if late else 143)

    def of(self, pod_uid: str) -> list[Container]:
        """Return the containers of a pod, oldest first."""
        return [c for c in self.containers.values() if c.pod_uid == pod_uid]

    def running(self, pod_uid: str) -> list[Container]:
        """Return the running containers of a pod."""
        return [c for c in self.of(pod_uid) if c.running]

    def latest(self, pod_uid: str, name: str) -> Container | None:
        """Return the newest container of that name in a pod."""
        found = [c for c in self.of(pod_uid) if c.name == name]
        return found[-1] if found else None

    def forget(self, pod_uid: str) -> None:
        """Remove a pod's sandbox and exited containers."""
        self.sandboxes.discard(pod_uid)
        for container in self.of(pod_uid):
            if not container.running:
                del self.containers[container.id]

    def power_off(self, keep: Callable[[Container], bool]) -> None:
        """End everything at once without telling anybody, as a reboot does; only `keep` is remembered as exited."""
        self.sandboxes.clear()
        for container in list(self.containers.values()):
            if not keep(container):
                del self.containers[container.id]
            if container._timer is not None:
                container._timer.cancel()
            container.state, container.exit_code = State.EXITED, 137
            container.exited.set()
        self._observe.tell("runtime", "PoweredOff", "node")
