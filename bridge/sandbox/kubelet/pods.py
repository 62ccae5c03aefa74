"""One pod's worker: claims prepared, containers started, watched and stopped, claims unprepared, the end told.

The order is the real one's: nothing of DRA is part of admission, and a pod is not reported ended, nor its object
removed, before its claims are unprepared.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from bridge.sandbox.cdi import Edits, Node
from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    containers,
    dig,
    init_containers,
    label_of,
    name_of,
    namespace_of,
    sidecar,
    uid_of,
)
from bridge.sandbox.kubelet.admission import Admission, Rejected
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.devices import DeviceManager
from bridge.sandbox.kubelet.dra import DraManager, PrepareError
from bridge.sandbox.kubelet.endpoint import EndpointError
from bridge.sandbox.kubelet.podstatus import status_of
from bridge.sandbox.kubelet.runtime import Container, Runtime, StartError, Wanted
from bridge.sandbox.kubelet.status import StatusWriter
from bridge.sandbox.tasks import spawn


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with."""

    context: Context
    runtime: Runtime
    devices: DeviceManager
    admission: Admission
    dra: DraManager
    status: StatusWriter


class PodWorker:
    """The life of one admitted pod on the node.

    Attributes:
        pod: the newest object seen.
        finished: whether everything of the pod has ended and its claims are unprepared.
    """

    def __init__(self, parts: Parts, pod: Object) -> None:
        self._parts, self.pod = parts, pod
        self.finished = False
        self._waiting: dict[str, tuple[str, str]] = {}
        self._end_now = asyncio.Event()
        self._grace = 0.0
        self._task = spawn(parts.context.observe, f"worker of {label_of(pod)}", self._run())

    # -- from the kubelet

    def end(self, pod: Object | None) -> None:
        """End the pod: `pod` is the object with its deletion, None if the object is gone already (forced)."""
        if pod is not None:
            self.pod = pod
            seconds = dig(pod, "metadata.deletionGracePeriodSeconds", 30)
        else:
            seconds = dig(self.pod, "spec.terminationGracePeriodSeconds", 30)
        self._grace = max(1.0, float(seconds))
        self._end_now.set()

    async def abandon(self) -> None:
        """Stop working, as when the kubelet dies; containers run on."""
        self._task.cancel()
        await asyncio.wait({self._task})

    def report(self) -> None:
        """Tell the pod's status as it is now."""
        if not self.finished and not self._end_now.is_set():
            self._parts.status.set(self.pod, status_of(self._parts, self.pod, self._waiting))

    # -- the life

    async def _run(self) -> None:
        work = asyncio.create_task(self._live())
        told = asyncio.create_task(self._end_now.wait())
        try:
            await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        if not work.cancelled():
            work.result()
        await self._terminate()

    async def _live(self) -> None:
        self.report()
        # Claims are prepared where a sandbox is made: a pod that has one is not prepared for again after a restart.
        if uid_of(self.pod) not in self._parts.runtime.sandboxes:
            await self._prepare()
            self._parts.runtime.sandboxes.add(uid_of(self.pod))
        sidecars: list[asyncio.Task[int]] = []
        try:
            for container in init_containers(self.pod):
                if sidecar(container):
                    await self._started(container)
                    sidecars.append(asyncio.create_task(self._keep(container, always=True)))
                elif await self._keep(container, always=False) != 0:
                    return
            await asyncio.gather(*(self._keep(container, always=False) for container in containers(self.pod)))
        finally:
            for task in sidecars:
                task.cancel()

    async def _prepare(self) -> None:
        """Prepare the pod's claims until it works, for ever.

        The real one does not call this an error of the pod's worker, so that it comes again at the next look at the
        pod (syncFrequency: a minute, and up to half of it more) and not after ten seconds.
        """
        every = self._parts.context.timings.pod_sync
        while True:
            try:
                await self._parts.dra.prepare(self.pod)
                return
            except PrepareError as error:
                text = f"Failed to prepare dynamic resources: {error}"
                self._parts.context.event(self.pod, "Warning", "FailedPrepareDynamicResources", text)
            await asyncio.sleep(every * (1 + random.random() / 2))  # noqa: S311

    async def _keep(self, container: Object, *, always: bool) -> int:
        """Run a container until it has ended for good; return its exit code."""
        name = container["name"]
        policy = "Always" if always else dig(self.pod, "spec.restartPolicy", "Always")
        is_init = any(c["name"] == name for c in init_containers(self.pod))
        times = self._parts.context.timings
        delay = times.pod_retry
        running = self._parts.runtime.latest(uid_of(self.pod), name) or await self._started(container)
        while True:
            await running.exited.wait()
            self.report()
            failed = running.exit_code != 0
            again = policy == "Always" if not is_init or always else False
            again = again or (failed and policy != "Never")
            if not again:
                return running.exit_code
            if failed:
                await asyncio.sleep(delay)
                delay = min(delay * 2, times.pod_retry_most)
            running = await self._started(container)

    async def _started(self, container: Object) -> Container:
        """Start a container, or try for ever; the pod is not failed by what goes wrong here (A.7)."""
        times, name = self._parts.context.timings, container["name"]
        delay = times.pod_retry
        while True:
            try:
                started = await self._start(container)
                self._waiting.pop(name, None)
                self.report()
                return started
            except (StartError, EndpointError, Rejected) as error:
                reason = (
                    "CreateContainerError" if isinstance(error, StartError) else "CreateContainerConfigError"
                )
                self._waiting[name] = (reason, str(error))
                self._parts.context.event(self.pod, "Warning", "Failed", f"Error: {error}")
                self.report()
            await asyncio.sleep(delay)
            delay = min(delay * 2, times.pod_retry_most)

    async def _start(self, container: Object) -> Container:
        parts, name = self._parts, container["name"]
        await parts.admission.again(self.pod, container)
        grants = parts.devices.allocations.of(uid_of(self.pod), name)
        edits, cdi_names = Edits(), list[str]()
        for resource, grant in grants.items():
            endpoint = parts.devices.endpoints.get(resource)
            if endpoint is not None and endpoint.options.pre_start_required:
                await endpoint.pre_start(sorted(grant.ids))
            answer = grant.response
            edits.env.update(answer.envs)
            edits.annotations.update(answer.annotations)
            edits.nodes += [Node(d.host_path, d.container_path, d.permissions) for d in answer.devices]
            edits.mounts += [
                {"hostPath": m.host_path, "containerPath": m.container_path, "readOnly": m.read_only}
                for m in answer.mounts
            ]
            cdi_names += [device.name for device in answer.cdi_devices]
            for key, value in answer.annotations.items():
                if key.startswith("cdi.k8s.io/"):
                    cdi_names += value.split(",")
        cdi_names += parts.dra.cdi_names(self.pod, container)
        return parts.runtime.start(self.pod, name, Wanted(edits, tuple(dict.fromkeys(cdi_names))))

    # -- the end

    async def _terminate(self) -> None:
        parts, uid = self._parts, uid_of(self.pod)
        grace = self._grace or float(dig(self.pod, "spec.terminationGracePeriodSeconds", 30))
        await asyncio.gather(*(parts.runtime.stop(c, grace) for c in parts.runtime.running(uid)))
        times = parts.context.timings
        delay = times.pod_retry
        while True:
            try:
                await parts.dra.unprepare(self.pod)
                break
            except PrepareError as error:
                # The real one writes no event of this, only its log.
                parts.context.tell("UnprepareFailed", label_of(self.pod), error=str(error))
            await asyncio.sleep(delay)
            delay = min(delay * 2, times.pod_retry_most)
        status = status_of(parts, self.pod, self._waiting, ended=True)
        self.finished = True
        parts.status.set(self.pod, status)
        parts.context.tell("PodEnded", label_of(self.pod), uid=uid, phase=status["phase"])
        await self._remove_object()
        parts.runtime.forget(uid)
        parts.status.forget(uid)

    async def _remove_object(self) -> None:
        """Remove the pod's object once it is marked for deletion; wait for that if the pod ended by itself."""
        await self._end_now.wait()
        while True:
            try:
                self._parts.context.api.delete(
                    "pods",
                    name_of(self.pod),
                    namespace_of(self.pod),
                    grace=0,
                    preconditions={"uid": uid_of(self.pod)},
                )
                return
            except ApiProblem as problem:
                if problem.status != 503:
                    return
            await asyncio.sleep(self._parts.context.timings.pod_retry)
