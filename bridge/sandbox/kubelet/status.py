"""What the kubelet writes to the API server: node capacity, pod status; kept and tried again while it is away."""

from __future__ import annotations

import asyncio

from bridge.sandbox.cluster.objects import ApiProblem, Object, label_of, name_of, namespace_of, uid_of
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.devices import DeviceManager


class StatusWriter:
    """Pod status on its way to the API server.

    Attributes:
        told: the newest status of each pod, written or not.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._unwritten: dict[str, Object] = {}
        self.told: dict[str, Object] = {}

    def set(self, pod: Object, status: Object) -> None:
        """Take a pod's new status and try to write it now."""
        self.told[uid_of(pod)] = status
        self._unwritten[uid_of(pod)] = pod
        self.flush()

    def forget(self, pod_uid: str) -> None:
        """Drop what is kept of a pod that is gone."""
        self.told.pop(pod_uid, None)
        self._unwritten.pop(pod_uid, None)

    def flush(self) -> None:
        """Write what is not written yet."""
        for uid, pod in list(self._unwritten.items()):
            try:
                stored = self._context.api.find_one("pods", name_of(pod), namespace_of(pod))
                if stored is not None and uid_of(stored) == uid:
                    self._context.api.patch(
                        "pods",
                        name_of(pod),
                        {"status": self.told[uid]},
                        namespace=namespace_of(pod),
                        kind="merge",
                        subresource="status",
                    )
                    self._context.tell("PodStatus", label_of(pod), phase=self.told[uid].get("phase"))
            except ApiProblem as problem:
                if problem.status == 503:
                    return
                self._context.tell("PodStatusLost", label_of(pod), error=problem.message)
            del self._unwritten[uid]


class NodeStatus:
    """Writes extended resources into Node.status as the device manager counts them."""

    def __init__(self, context: Context, manager: DeviceManager) -> None:
        self._context, self._manager = context, manager
        self._gone: set[str] = set()

    async def run(self) -> None:
        """Write for ever: at most every `node_status` seconds, only what differs."""
        while True:
            self.write()
            await asyncio.sleep(self._context.timings.node_status)

    def write(self) -> None:
        """Write capacity and allocatable now, if the API server is there."""
        capacity, allocatable, gone = self._manager.capacity()
        self._gone = (self._gone | gone) - set(capacity)
        try:
            node = self._context.api.get("nodes", self._context.node_name)
            status = node.setdefault("status", {})
            old = (dict(status.get("capacity", {})), dict(status.get("allocatable", {})))
            for key, numbers in (("capacity", capacity), ("allocatable", allocatable)):
                told = status.setdefault(key, {})
                told.update({name: str(count) for name, count in numbers.items()})
                told.update(dict.fromkeys(self._gone, "0"))
            if old != (status["capacity"], status["allocatable"]):
                self._context.api.replace("nodes", node, "status")
                extended = {name: int(n) for name, n in status["allocatable"].items() if "/" in name}
                self._context.tell("NodeStatus", self._context.node_name, allocatable=extended)
        except ApiProblem as problem:
            self._context.tell("NodeStatusLost", self._context.node_name, error=problem.message)
