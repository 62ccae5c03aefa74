"""The judge: reads a journal and says what was used twice, what was lost, and who was stuck.

Pure, and shares no code with the bridge: the containers' own notes, the API server's objects and the node's status
are all that it knows (`journal`). Bounds are counted only while no disturbance is open, from the last one's end on.

- *Double use*: a device that more holders have open at one instant than it has room for. A holder is a claim, for
  all containers of the pods that it is reserved for, or a single container.
- *Lost*: a device that is plugged in, that no container has open, no claim is allocated and no pod that waits for
  devices can have been given, is missing from the slices, or from the node's allocatable, for longer than a bound.
- *Stuck*: a pod that does not run though what it asks for is free (or allocated to it and used by nobody else), or
  one that does not end after its deletion or its containers' end, for longer than a bound.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.campaign.journal import (
    DEVICE_PLUGIN,
    DRA,
    Busy,
    Claim,
    Close,
    Device,
    Fault,
    Line,
    Node,
    Open,
    Pod,
    Presence,
    Slice,
)

DOUBLE_USE, LOST, STUCK = "double use", "lost capacity", "stuck pod"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long things may take once nothing disturbs them, in seconds.

    Attributes:
        offered: from the moment a device is free to its being offered on both planes.
        runs: from the moment a pod can have what it asks for to its running.
        ends: from a pod's last container's end, or its grace after a deletion, to its end.
    """

    offered: float
    runs: float
    ends: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that may not be.

    Attributes:
        what: DOUBLE_USE, LOST or STUCK.
        t: when it was certain.
        about: the device or the pod.
        text: who and since when, for people.
    """

    what: str
    t: float
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.what} at {self.t:.3f}: {self.text}"


@dataclass(slots=True)
class _Use:
    """A container that has a device open; `holder` tells whom it may share it with."""

    holder: str
    pod: str
    since: float


_Key = tuple[str, str, str]
"""What is wrong (LOST, STUCK), with whom, and how."""


class Checker:
    """Judges line by line.

    Attributes:
        findings: so far, in order.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self.findings: list[Finding] = []
        self._devices: dict[str, Device] = {}
        self._named: dict[tuple[str, str, str], str] = {}
        self._absent: set[str] = set()
        self._uses: defaultdict[str, dict[str, _Use]] = defaultdict(dict)
        self._using: Counter[str] = Counter()
        self._opened: set[str] = set()
        self._pods: dict[str, Pod] = {}
        self._alive: dict[str, Pod] = {}
        self._claims: dict[str, Claim] = {}
        self._claim_named: dict[tuple[str, str], str] = {}
        self._sharers: defaultdict[str, set[str]] = defaultdict(set)
        self._claimed: defaultdict[str, set[str]] = defaultdict(set)
        self._slices: dict[str, Slice] = {}
        self._allocatable: dict[str, int] = {}
        self._faults: set[str] = set()
        self._calm_since = 0.0
        self._wrong: dict[_Key, float] = {}
        self._told: set[_Key] = set()
        self._judged = 0.0

    @property
    def standing(self) -> list[str]:
        """What is wrong now, and has not been so for too long yet."""
        return [" ".join(key) for key in self._wrong]

    @property
    def content(self) -> bool:
        """Whether nothing is wrong now and nothing disturbs."""
        return not self._wrong and not self._faults

    # -- lines in

    def feed(self, line: Line) -> None:
        """Take the next line."""
        self.until(line.t)
        match line:
            case Device():
                self._devices[line.device] = line
                self._named[line.driver, line.pool, line.name] = line.device
            case Presence():
                (self._absent.discard if line.present else self._absent.add)(line.device)
            case Open() | Busy() | Close():
                self._used(line)
            case Pod():
                self._pod(line)
            case Claim():
                self._claim(line)
            case Slice():
                self._slices.pop(line.name, None)
                if not line.gone:
                    self._slices[line.name] = line
            case Node():
                self._allocatable = dict(line.allocatable)
            case Fault():
                (self._faults.add if line.begins else self._faults.discard)(line.id)
                self._calm_since = line.t
        self._review(line.t)

    def until(self, t: float) -> None:
        """Judge what has lasted until `t`; to be called at the end of a journal, too."""
        self._judged = max(self._judged, t)
        if self._faults:
            return
        for key, since in list(self._wrong.items()):
            begun = max(since, self._calm_since)
            if key not in self._told and self._judged - begun > self._bound(key):
                self._told.add(key)
                self.findings.append(
                    Finding(key[0], self._judged, key[1], self._describe(key, self._judged - begun))
                )

    def _used(self, line: Open | Busy | Close) -> None:
        uses = self._uses[line.device]
        if isinstance(line, Close):
            if (ended := uses.pop(line.container, None)) is not None:
                self._using[ended.pod] -= 1
            return
        self._opened.add(line.pod)
        mine = _Use(self._holder(line), line.pod, line.t)
        others = {one.holder: one for one in uses.values() if one.holder != mine.holder}
        capacity = self._devices[line.device].capacity
        if len(others) + 1 > capacity or (isinstance(line, Busy) and not uses):
            self._double(line, mine, list(others.values()))
        if isinstance(line, Open):
            if line.container not in uses:
                self._using[line.pod] += 1
            uses[line.container] = mine

    def _holder(self, line: Open | Busy) -> str:
        """The claim by which a pod has a device, else the container itself."""
        for uid in sorted(self._claimed[line.device]):
            if line.pod in self._sharers[uid]:
                return uid
        return line.container

    def _double(self, line: Open | Busy, mine: _Use, others: list[_Use]) -> None:
        with_whom = " and ".join(f"{self._name(o.pod)} (since {o.since:.3f})" for o in others)
        what = "opened" if isinstance(line, Open) else "was given"
        text = f"{self._name(line.pod)} {what} {line.device} while {with_whom or 'somebody unknown'} had it"
        self.findings.append(Finding(DOUBLE_USE, line.t, line.device, text))

    def _pod(self, line: Pod) -> None:
        self._pods[line.uid] = line
        if line.ended:
            self._alive.pop(line.uid, None)
        else:
            self._alive[line.uid] = line

    def _claim(self, line: Claim) -> None:
        old = self._claims.pop(line.uid, None)
        for result in old.devices if old else ():
            self._claimed[self._named.get(result, "")].discard(line.uid)
        key = (line.namespace, line.name)
        if line.gone:
            if self._claim_named.get(key) == line.uid:
                del self._claim_named[key]
            return
        self._claims[line.uid], self._claim_named[key] = line, line.uid
        self._sharers[line.uid].update(line.users)
        for result in line.devices:
            self._claimed[self._named.get(result, "")].add(line.uid)

    # -- what is wrong now

    def _review(self, t: float) -> None:
        """Note since when each thing has been wrong that may be so for a while."""
        free = [device for device in self._devices.values() if self._free(device)]
        now = {*self._lost(free), *self._stuck(free)}
        for key in self._wrong.keys() - now:
            del self._wrong[key]
            self._told.discard(key)
        for key in now - self._wrong.keys():
            self._wrong[key] = t

    def _taken(self, device: str) -> set[str]:
        return {use.holder for use in self._uses[device].values()} | self._claimed[device]

    def _free(self, device: Device) -> bool:
        return device.device not in self._absent and len(self._taken(device.device)) < device.capacity

    def _lost(self, free: list[Device]) -> Iterator[_Key]:
        sliced = {(s.driver, s.pool, name) for s in self._slices.values() for name in s.devices}
        waiting = self._waiting_for()
        expected: defaultdict[str, int] = defaultdict(int)
        for device in free:
            shown = (device.driver, device.pool, device.name) in sliced or waiting.get(device.resource)
            if DRA in device.planes and not shown:
                yield (LOST, device.device, DRA)
        for device in self._devices.values():
            if DEVICE_PLUGIN in device.planes and device.device not in self._absent:
                expected[device.resource] += device.capacity - len(self._by_dra(device.device))
        for resource, count in expected.items():
            if self._allocatable.get(resource, 0) < count:
                yield (LOST, resource, DEVICE_PLUGIN)

    def _by_dra(self, device: str) -> set[str]:
        """The claims that have a device, still allocated or only still in use."""
        uses = {use.holder for use in self._uses[device].values() if use.holder in self._sharers}
        return uses | self._claimed[device]

    def _waiting_for(self) -> dict[str, int]:
        """Devices that pods may have been given, by resource, that no container has open yet, or any longer."""
        waiting: defaultdict[str, int] = defaultdict(int)
        for pod in self._alive.values():
            if pod.wants and pod.node and not self._using[pod.uid]:
                for resource, count in pod.wants.items():
                    waiting[resource] += count
        return waiting

    def _stuck(self, free: list[Device]) -> Iterator[_Key]:
        for uid, pod in self._alive.items():
            if not (pod.wants or pod.claims or pod.unmade) or self._using[uid]:
                continue
            if pod.deleting is not None:
                yield (STUCK, uid, "does not end")
            elif uid in self._opened and pod.phase == "Running":
                yield (STUCK, uid, "does not end or start again")
            elif self._can_run(pod, free):
                yield (STUCK, uid, "does not run")

    def _can_run(self, pod: Pod, free: list[Device]) -> bool:
        """Whether all that a pod asks for is free, or its own and used by nobody else."""
        for resource, count in pod.wants.items():
            if sum(d.capacity - len(self._taken(d.device)) for d in free if d.resource == resource) < count:
                return False
        return pod.unmade == 0 and all(self._can_have(pod, name, free) for name in pod.claims)

    def _can_have(self, pod: Pod, name: str, free: list[Device]) -> bool:
        claim = self._claims.get(self._claim_named.get((pod.namespace, name), ""))
        if claim is None:
            return False
        if not claim.devices:
            by_driver = [sum(d.driver == driver for d in free) for driver in {d.driver for d in free}]
            # What class it asks for is not in the journal: it can have it if it could have it of any driver.
            drivers = {d.driver for d in self._devices.values()}
            return len(by_driver) == len(drivers) and min(by_driver) >= claim.asks
        for result in claim.devices:
            device = self._devices.get(self._named.get(result, ""))
            if device is None or device.device in self._absent:
                return False
            if len(self._taken(device.device) | {claim.uid}) > device.capacity:
                return False
        return True

    # -- words

    def _bound(self, key: _Key) -> float:
        if key[0] == LOST:
            return self._bounds.offered
        if key[2] == "does not run":
            return self._bounds.runs
        return self._bounds.ends + (self._pods[key[1]].deleting or 0)

    def _describe(self, key: _Key, lasted: float) -> str:
        what, about, how = key
        if what == LOST and how == DRA:
            return f"{about} has been free and in no slice for {lasted:.1f} s"
        if what == LOST:
            have = self._allocatable.get(about, 0)
            return (
                f"{about}: allocatable has been {have}, less than is free or held by it, for {lasted:.1f} s"
            )
        return f"{self._name(about)} {how}, for {lasted:.1f} s; {self._pods[about]}"

    def _name(self, uid: str) -> str:
        pod = self._pods.get(uid)
        return f"{pod.namespace}/{pod.name}" if pod else f"pod {uid}"


def check(lines: Iterable[Line], bounds: Bounds) -> list[Finding]:
    """Judge a whole journal."""
    checker = Checker(bounds)
    for line in lines:
        checker.feed(line)
    return checker.findings
