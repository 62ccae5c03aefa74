"""Notes what a sandbox shows: the journal for the judge, and the counts for the summary.

The runtime of the sandbox stands for the kernel: of two containers that have one device, the second is told that it
is busy, unless both opened it to share it (a claim that several pods name).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bridge.sandbox.cluster.objects import Object, dig, name_of, uid_of
from bridge.sandbox.cluster.store import Change
from bridge.sandbox.node import Sandbox
from bridge.sandbox.observe import Observation
from tests.campaign.journal import (
    Busy,
    Close,
    Fault,
    Line,
    Open,
    Presence,
    claim_line,
    content,
    node_line,
    pod_line,
    slice_line,
)
from tests.campaign.summary import Counts

SHARED = "campaign/shared"
"""Annotation of pods that open their devices together with others."""


class Witness:
    """Listens to one sandbox.

    Args:
        box: the sandbox, started.
        note: takes each line.

    Attributes:
        counts: operations so far.
        alive: names of the pods that have not ended, by UID.
        ended: names of the pods that have ended and are still there.
    """

    def __init__(self, box: Sandbox, note: Callable[[Line], None], counts: Counts) -> None:
        self._box, self._note = box, note
        self.counts = counts
        self.alive: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self._open: dict[str, dict[str, bool]] = {}
        self._containers: dict[str, list[str]] = {}
        self._shared: set[str] = set()
        self._planes: dict[str, str] = {}
        self._claims: dict[str, list[str]] = {}
        self._quiet: dict[str, set[str]] = {}
        self._last: dict[tuple[str, str], object] = {}
        self._faults = 0
        box.api.registry.store.listen(self._changed)
        box.observe.listen(self._seen)
        self._hear: dict[str, Callable[[Observation], None]] = {
            "ContainerStarted": self._started,
            "ContainerExited": self._exited,
            "DeviceAdded": lambda seen: self._present(seen, True),
            "DeviceRemoved": lambda seen: self._present(seen, False),
            "AllocateAsked": self._allocate,
            "PrepareAsked": self._prepare,
            "UnprepareAsked": lambda seen: self.counts.operation("Unprepare", "dra"),
            "AllocateRefused": lambda seen: self.counts.refused("Allocate"),
            "EventFailedPrepareDynamicResources": self._prepare_failed,
            "PodEnded": self._pod_ended,
            "PodGone": self._pod_gone,
        }

    @staticmethod
    def now() -> float:
        """The journal's clock."""
        return time.monotonic()

    def fault(self, sort: str) -> Callable[[], None]:
        """Note that a disturbance begins; call what is returned when it ends."""
        self._faults += 1
        number = str(self._faults)
        self.counts.fault(sort)
        self._note(Fault(self.now(), number, sort, True))
        return lambda: self._note(Fault(self.now(), number, sort, False))

    # -- the API server

    def _changed(self, change: Change) -> None:
        plural, obj, gone = change.resource.plural, change.object, change.after is None
        t = self.now()
        line: Line
        match plural:
            case "pods":
                line = pod_line(t, obj, gone=gone)
                self._follow(obj, line.ended)
                if gone:
                    self.ended.pop(line.uid, None)
            case "resourceclaims":
                line = claim_line(t, obj, gone=gone)
                self._wanted_by(line.uid, {} if gone else obj)
            case "resourceslices":
                line = slice_line(t, obj, gone=gone)
            case "nodes":
                line = node_line(t, obj)
            case _:
                return
        told = content(line)
        key = (plural, uid_of(obj))
        if self._last.get(key) != told:
            self._last[key] = told
            self._note(line)
        if gone:
            self._last.pop(key, None)

    def _follow(self, pod: Object, ended: bool) -> None:
        uid = uid_of(pod)
        if SHARED in dig(pod, "metadata.annotations", {}):
            self._shared.add(uid)
        self._planes[uid] = "dra" if dig(pod, "spec.resourceClaims") else "device-plugin"
        if ended:
            self.alive.pop(uid, None)
            self.ended[uid] = name_of(pod)
        else:
            self.alive[uid] = name_of(pod)

    # -- the runtime

    def _seen(self, seen: Observation) -> None:
        if (hear := self._hear.get(seen.what)) is not None:
            hear(seen)

    def _started(self, seen: Observation) -> None:
        container, pod, paths = str(seen.facts["id"]), str(seen.facts["pod"]), seen.facts["devices"]
        assert isinstance(paths, list)
        self._containers[container] = []
        for device in sorted({Path(path).name for path in paths}):
            users = self._open.setdefault(device, {})
            exclusive = pod not in self._shared
            if users and (exclusive or any(users.values())):
                self._note(Busy(self.now(), device, container, pod))
                continue
            users[container] = exclusive
            self._containers[container].append(device)
            self._note(Open(self.now(), device, container, pod))

    def _exited(self, seen: Observation) -> None:
        container = str(seen.facts["id"])
        for device in self._containers.pop(container, ()):
            del self._open[device][container]
            self._note(Close(self.now(), device, container))

    def _present(self, seen: Observation, present: bool) -> None:
        self._note(Presence(self.now(), Path(seen.about).name, present))

    # -- operations: an Allocate or a Prepare is contended if the other plane wants one of its devices as long as it
    # does itself, a pod from its Allocate to its end, a claim from its allocation to its deallocation

    def _allocate(self, seen: Observation) -> None:
        ids = seen.facts["ids"]
        assert isinstance(ids, list)
        wanted = {name for names in self._claims.values() for name in names}
        contended = not wanted.isdisjoint(ids)
        self.counts.operation("Allocate", "device-plugin", contended=contended)
        for name in ids:
            self._quiet[name] = set() if contended else set(ids)

    def _prepare(self, seen: Observation) -> None:
        uids = seen.facts["claims"]
        assert isinstance(uids, list)
        wanted = {name for uid in uids for name in self._claims.get(uid, ())}
        self.counts.operation("Prepare", "dra", contended=not wanted.isdisjoint(self._allocated()))

    def _wanted_by(self, claim: str, obj: Object) -> None:
        """A claim was allocated, or no longer is: an Allocate that nobody contended may be contended now."""
        results = dig(obj, "status.allocation.devices.results", [])
        names = [str(result["device"]) for result in results]
        new = set(names).difference(self._claims.pop(claim, ()))
        if names:
            self._claims[claim] = names
        for name in sorted(new & self._allocated()):
            if together := self._quiet.get(name):
                self.counts.contended += 1
                for one in tuple(together):
                    self._quiet[one] = set()

    def _allocated(self) -> set[str]:
        """What the kubelet has given to pods, or is about to."""
        return {one for ids in self._box.kubelet.devices.allocated.values() for one in ids}

    def _prepare_failed(self, seen: Observation) -> None:
        if "NodePrepareResources failed" in str(seen.facts["message"]):
            self.counts.refused("Prepare")

    def _pod_ended(self, seen: Observation) -> None:
        uid = str(seen.facts["uid"])
        self.counts.operation("pod end", self._planes.pop(uid, "device-plugin"))

    def _pod_gone(self, seen: Observation) -> None:
        self._shared.discard(str(seen.facts["uid"]))
