"""What a campaign notes: one JSON object a line, who could touch what and when, and what the cluster showed.

Three witnesses write it, none of them the daemon: the containers themselves (`open`, `busy`, `close`), the API
server's audit log (`pod`, `claim`, `slice`, `node`), and whoever runs the campaign (`device`, `presence`, `fault`).
All times are seconds of one monotonic clock; lines stand in the order of their times.

    device    a device that the node can have, told once, before anything else
    presence  it was plugged in or out
    open      a container has the device open
    busy      a container was given the device, and the kernel (or the runtime) says that another has it open
    close     a container no longer has it open: closed, ended, killed
    pod       a pod as the API server has it now
    claim     a ResourceClaim as it is now
    slice     a ResourceSlice as it is now
    node      Node.status.allocatable as it is now
    fault     a disturbance begins or ends; bounds are counted only where none is open
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TextIO

DEVICE_PLUGIN, DRA = "device-plugin", "dra"
ENDED = ("Succeeded", "Failed")

Object = Mapping[str, Any]
"""A Kubernetes object as its JSON says it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that the node can have; it is there until a `presence` says otherwise.

    Attributes:
        device: what `open`, `busy` and `close` call it: the same silicon has one name.
        resource: the extended resource that it is counted in.
        driver, pool, name: how slices and allocations call it.
        capacity: how many holders it may have at once.
        planes: where it is offered while it is free.
    """

    kind: ClassVar[str] = "device"
    t: float
    device: str
    resource: str
    driver: str
    pool: str
    name: str
    capacity: int = 1
    planes: tuple[str, ...] = (DEVICE_PLUGIN, DRA)


@dataclass(frozen=True, slots=True)
class Presence:
    """A device was plugged in or out."""

    kind: ClassVar[str] = "presence"
    t: float
    device: str
    present: bool


@dataclass(frozen=True, slots=True)
class Open:
    """A container has a device open; `container` is unique to this run of it, `pod` is the pod's UID."""

    kind: ClassVar[str] = "open"
    t: float
    device: str
    container: str
    pod: str


@dataclass(frozen=True, slots=True)
class Busy:
    """A container was given a device that somebody else has open exclusively."""

    kind: ClassVar[str] = "busy"
    t: float
    device: str
    container: str
    pod: str


@dataclass(frozen=True, slots=True)
class Close:
    """A container no longer has a device open."""

    kind: ClassVar[str] = "close"
    t: float
    device: str
    container: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as it is now.

    Attributes:
        node: where it is bound; empty while it is not.
        phase: as in its status.
        deleting: seconds of grace that it was given when it was deleted; None while it is not.
        gone: whether the object is removed.
        wants: extended resources that it asks for.
        claims: names of its ResourceClaims, those made from templates included once they are made.
        unmade: how many claims are still to be made from templates.
    """

    kind: ClassVar[str] = "pod"
    t: float
    uid: str
    namespace: str
    name: str
    node: str = ""
    phase: str = "Pending"
    deleting: float | None = None
    gone: bool = False
    wants: Mapping[str, int] = dataclasses.field(default_factory=dict)
    claims: tuple[str, ...] = ()
    unmade: int = 0

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.gone or self.phase in ENDED


@dataclass(frozen=True, slots=True)
class Claim:
    """A ResourceClaim as it is now.

    Attributes:
        devices: (driver, pool, device) of each result that takes something: admin access does not.
        users: UIDs of the pods that it is reserved for.
        asks: how many devices it asks for.
    """

    kind: ClassVar[str] = "claim"
    t: float
    uid: str
    namespace: str
    name: str
    devices: tuple[tuple[str, str, str], ...] = ()
    users: tuple[str, ...] = ()
    asks: int = 1
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """A ResourceSlice as it is now: the devices that a scheduler may pick; tainted ones are not among them."""

    kind: ClassVar[str] = "slice"
    t: float
    name: str
    driver: str
    pool: str
    devices: tuple[str, ...] = ()
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """What the node's status says is allocatable, by extended resource."""

    kind: ClassVar[str] = "node"
    t: float
    name: str
    allocatable: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """A disturbance begins or ends. `id` pairs the two; one that is an instant is told as both."""

    kind: ClassVar[str] = "fault"
    t: float
    id: str
    sort: str
    begins: bool


Line = Device | Presence | Open | Busy | Close | Pod | Claim | Slice | Node | Fault

_KINDS: dict[str, type[Line]] = {
    k.kind: k for k in (Device, Presence, Open, Busy, Close, Pod, Claim, Slice, Node, Fault)
}


def content(line: Line) -> tuple[object, ...]:
    """What a line says, without its time: to tell news from repetition."""
    return tuple(getattr(line, name) for name in line.__slots__ if name != "t")


# -- files


def dump(line: Line) -> str:
    """Write one line, without its end."""
    return json.dumps({"kind": line.kind} | dataclasses.asdict(line), separators=(",", ":"))


def load(text: str) -> Line:
    """Read one line. Raises ValueError, KeyError or TypeError for what no campaign writes."""
    fields = json.loads(text)
    made = _KINDS[fields.pop("kind")]
    for key in ("planes", "claims", "users", "devices"):
        if key in fields:
            fields[key] = tuple(tuple(v) if isinstance(v, list) else v for v in fields[key])
    return made(**fields)


def read(file: TextIO) -> Iterator[Line]:
    """Read a journal."""
    return (load(text) for text in file if text.strip())


def merged(*journals: Iterable[Line]) -> list[Line]:
    """Put what several witnesses noted into the order of time; at one instant, devices first, closes before opens."""
    first = {"device": 0, "fault": 1, "close": 2}
    return sorted((line for one in journals for line in one), key=lambda x: (x.t, first.get(x.kind, 3)))


# -- from Kubernetes objects, as a watch or an audit log shows them


def pod_line(t: float, pod: Object, *, gone: bool = False) -> Pod:
    """Note a pod; `gone` for the last state of one that was removed."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    made = {s["name"]: s.get("resourceClaimName") for s in status.get("resourceClaimStatuses") or ()}
    claims: list[str] = []
    unmade = 0
    for entry in spec.get("resourceClaims") or ():
        if name := entry.get("resourceClaimName") or made.get(entry["name"]):
            claims.append(name)
        elif entry["name"] not in made:
            unmade += 1
    extended = status.get("extendedResourceClaimStatus") or {}
    if extended:
        claims.append(extended["resourceClaimName"])
    by_dra = {(m["containerName"], m["resourceName"]) for m in extended.get("requestMappings") or ()}
    grace = meta.get("deletionGracePeriodSeconds", 0) if meta.get("deletionTimestamp") else None
    return Pod(
        t,
        meta["uid"],
        meta["namespace"],
        meta["name"],
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "Pending",
        deleting=grace,
        gone=gone,
        wants=_wants(spec, by_dra),
        claims=tuple(claims),
        unmade=unmade,
    )


def _wants(spec: Object, by_dra: set[tuple[str, str]]) -> dict[str, int]:
    """Extended resources of a pod: what its containers ask together, or its greediest init container."""
    together: dict[str, int] = {}
    most: dict[str, int] = {}
    for total, containers in ((together, spec["containers"]), (most, spec.get("initContainers") or ())):
        for container in containers:
            limits = (container.get("resources") or {}).get("limits") or {}
            for name, amount in limits.items():
                if "/" not in name or (container["name"], name) in by_dra:
                    continue
                here = int(amount)
                total[name] = max(total.get(name, 0), here) if total is most else total.get(name, 0) + here
    return {name: max(together.get(name, 0), most.get(name, 0)) for name in together | most}


def claim_line(t: float, claim: Object, *, gone: bool = False) -> Claim:
    """Note a claim."""
    meta, status = claim["metadata"], claim.get("status") or {}
    results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or ()
    taken = tuple((r["driver"], r["pool"], r["device"]) for r in results if not r.get("adminAccess"))
    users = tuple(user["uid"] for user in status.get("reservedFor") or ())
    requests = ((claim.get("spec") or {}).get("devices") or {}).get("requests") or ()
    asks = sum(int((r.get("exactly") or r).get("count") or 1) for r in requests)
    return Claim(t, meta["uid"], meta["namespace"], meta["name"], taken, users, asks, gone)


def slice_line(t: float, piece: Object, *, gone: bool = False) -> Slice:
    """Note a slice: of its devices those that no taint keeps pods away from."""
    spec = piece["spec"]
    devices = tuple(d["name"] for d in spec.get("devices") or () if not _tainted(d))
    return Slice(t, piece["metadata"]["name"], spec["driver"], spec["pool"]["name"], devices, gone)


def _tainted(device: Object) -> bool:
    taints = device.get("taints") or (device.get("basic") or {}).get("taints") or ()
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in taints)


def node_line(t: float, node: Object) -> Node:
    """Note a node's status."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return Node(t, node["metadata"]["name"], {name: int(n) for name, n in allocatable.items() if "/" in name})
