"""The kubelet: its parts put together, the loop over the node's pods, and its deaths and returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    dig,
    label_of,
    terminal,
    uid_of,
)
from bridge.sandbox.cluster.store import Change
from bridge.sandbox.kubelet.admission import Admission, Rejected
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.devices import DeviceManager, RegistrationRefused
from bridge.sandbox.kubelet.dra import DraManager
from bridge.sandbox.kubelet.dra_plugins import DraPlugins
from bridge.sandbox.kubelet.endpoint import EndpointError
from bridge.sandbox.kubelet.legacy import LegacyRegistration
from bridge.sandbox.kubelet.podresources import PodResources
from bridge.sandbox.kubelet.pods import Parts, PodWorker
from bridge.sandbox.kubelet.runtime import Runtime
from bridge.sandbox.kubelet.status import NodeStatus, StatusWriter
from bridge.sandbox.kubelet.watcher import Handler, PluginRefused, PluginWatcher
from bridge.sandbox.tasks import spawn


class _DevicePlugins:
    """The watcher's handler for type `DevicePlugin`."""

    def __init__(self, manager: DeviceManager) -> None:
        self._manager = manager

    def validate(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        try:
            self._manager.validate_watched(name, versions)
        except RegistrationRefused as error:
            raise PluginRefused(str(error)) from error

    async def register(self, name: str, endpoint: str, versions: Sequence[str]) -> None:
        try:
            await self._manager.register(name, endpoint, versions)
        except (RegistrationRefused, EndpointError) as error:
            raise PluginRefused(str(error)) from error

    async def deregister(self, name: str, endpoint: str) -> None:
        await self._manager.deregister(name, endpoint)


class Kubelet:
    """One node's kubelet. It may be killed and started again; the runtime's containers live on.

    Attributes:
        running: whether it is started.
        devices, dra, plugins: its managers, new ones at each start.
    """

    def __init__(self, context: Context, runtime: Runtime) -> None:
        self._context, self._runtime = context, runtime
        self.running = False
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unlisten: Callable[[], None] = lambda: None
        self._assemble()

    def _assemble(self) -> None:
        """Make all parts anew: nothing but files survives a kubelet's death."""
        context = self._context
        self._known: dict[str, Object] = {}
        self._rejected: set[str] = set()
        self._workers: dict[str, PodWorker] = {}
        self.devices = DeviceManager(context, lambda: {uid_of(pod) for pod in self.active_pods()})
        self.devices.on_health = lambda resource: self._report_all()
        self.admission = Admission(self.devices)
        self.plugins = DraPlugins(context)
        self.plugins.health.on_change = lambda driver: self._report_all()
        self.dra = DraManager(context, self.plugins)
        self._status = StatusWriter(context)
        self._parts = Parts(context, self._runtime, self.devices, self.admission, self.dra, self._status)
        handlers: dict[str, Handler] = {"DevicePlugin": _DevicePlugins(self.devices)}
        if context.profile.dra_services:
            handlers["DRAPlugin"] = self.plugins
        self._watcher = PluginWatcher(context, handlers)
        self._legacy = LegacyRegistration(context, self.devices)
        self._pod_resources = PodResources(context, self.devices, self.dra, self.active_pods)
        self.node_status = NodeStatus(context, self.devices)

    # -- life

    async def start(self) -> None:
        """Start: checkpoints read, slices of the node deleted, sockets wiped, plugins found again, pods admitted.

        Raises:
            CheckpointCorrupt: for a damaged claim checkpoint, which a real kubelet does not start with either.
        """
        self.devices.restore()
        self.dra.cache.load()
        running = {(c.pod_uid, c.name) for c in self._runtime.containers.values() if c.running}
        self.admission.started(running)
        self._runtime.on_exit = lambda container: self._wake.set()
        self.plugins.wipe_all()
        await self._legacy.start()
        await self._pod_resources.start()
        await self._watcher.start()
        self._unlisten = self._context.server.registry.store.listen(self._heard)
        self._wake.set()
        runs = (self._pods, self._housekeeping, self.node_status.run)
        self._tasks = [spawn(self._context.observe, f"kubelet {run.__name__}", run()) for run in runs]
        self.running = True
        self._context.tell("KubeletStarted", self._context.node_name)

    async def kill(self) -> None:
        """Die: connections break, nobody is told, containers run on."""
        self.running = False
        self._unlisten()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for worker in self._workers.values():
            await worker.abandon()
        await self._watcher.stop()
        await self.devices.abandon()
        await self.plugins.close()
        await self._legacy.stop()
        await self._pod_resources.stop()
        self._context.tell("KubeletKilled", self._context.node_name)
        self._assemble()

    async def restart(self) -> None:
        """Die and start again at once."""
        await self.kill()
        await self.start()

    # -- pods

    def active_pods(self) -> list[Object]:
        """Return the pods that count: known, not ended, not in deletion with all containers stopped.

        A force-deleted pod is not among them, though its containers may still run (H9).
        """
        return [pod for uid, pod in self._known.items() if self._active(uid, pod)]

    def _active(self, uid: str, pod: Object) -> bool:
        worker = self._workers.get(uid)
        if worker is not None and worker.finished:
            return False
        status = self._status.told.get(uid, {})
        if terminal(pod) or status.get("phase") in ("Failed", "Succeeded") or uid in self._rejected:
            return False
        deleted = dig(pod, "metadata.deletionTimestamp") is not None
        return not (deleted and not self._runtime.running(uid))

    def _heard(self, change: Change) -> None:
        if change.resource.plural == "pods":
            self._wake.set()

    def _report_all(self) -> None:
        for worker in self._workers.values():
            worker.report()

    async def _pods(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                fields = f"spec.nodeName={self._context.node_name}"
                now = {uid_of(pod): pod for pod in self._context.api.peek("pods", fields=fields)}
            except ApiProblem:
                await asyncio.sleep(self._context.timings.pod_retry)
                self._wake.set()
                continue
            await self._sync(now)
            if not self.devices.sources_ready:
                self.devices.sources_ready = True
                self._context.tell("KubeletSynced", self._context.node_name, pods=len(now))

    async def _sync(self, now: dict[str, Object]) -> None:
        for uid in set(self._known) - set(now):
            gone = self._known.pop(uid)
            self._rejected.discard(uid)
            if (worker := self._workers.get(uid)) is not None:
                worker.end(None)
            self._context.tell("PodGone", label_of(gone), uid=uid)
        for uid in [
            uid for uid, worker in self._workers.items() if worker.finished and uid not in self._known
        ]:
            del self._workers[uid]
        for uid, pod in sorted(now.items(), key=lambda item: int(item[1]["metadata"]["resourceVersion"])):
            fresh = uid not in self._known
            self._known[uid] = pod
            if fresh:
                await self._add(uid, pod)
            elif uid in self._workers:
                self._update(uid, pod)

    def _update(self, uid: str, pod: Object) -> None:
        worker = self._workers[uid]
        if dig(pod, "metadata.deletionTimestamp"):
            worker.end(pod)
        else:
            worker.pod = pod

    async def _add(self, uid: str, pod: Object) -> None:
        """Take a new pod: admit it, then give it a worker; one after the other, as the real sync loop."""
        if terminal(pod):
            return
        if dig(pod, "metadata.deletionTimestamp"):
            self._workers[uid] = PodWorker(self._parts, pod)
            self._workers[uid].end(pod)
            return
        try:
            others = [other for other in self.active_pods() if uid_of(other) != uid]
            await self.admission.admit(pod, others)
        except Rejected as error:
            self._rejected.add(uid)
            status = {
                "phase": "Failed",
                "reason": error.reason,
                "message": f"Pod was rejected: {error.message}",
            }
            self._context.event(pod, "Warning", error.reason, error.message)
            self._status.set(pod, status)
            for container in self._runtime.running(uid):
                await self._runtime.stop(container, 0)
            return
        self._context.tell("PodAdmitted", label_of(pod))
        self._workers[uid] = PodWorker(self._parts, pod)

    async def _housekeeping(self) -> None:
        """Write late status, unprepare claims of pods that are gone, kill containers that belong to no pod."""
        while True:
            await asyncio.sleep(self._context.timings.reconcile)
            self._status.flush()
            if not self.devices.sources_ready:
                continue
            await self.dra.reconcile(self._live_uids)
            for container in list(self._runtime.containers.values()):
                if container.running and container.pod_uid not in self._live_uids():
                    await self._runtime.stop(container, 30)

    def _live_uids(self) -> set[str]:
        """Return the pods whose claims are in use: active ones, and those whose worker has not finished."""
        working = {uid for uid, worker in self._workers.items() if not worker.finished}
        return working | {uid_of(pod) for pod in self.active_pods()}
