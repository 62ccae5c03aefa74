"""Devices as a ResourceSlice shows them: values, their JSON in the shape of v1, and when two are the same.

Pure. "The same" means what the API server would store: quantities compare by amount, fields it fills in by
itself (a taint's `timeAdded`) do not count. Which device goes where is
`dra_v1.slice_plan`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal

from dra_v1.kube_errors import Json


@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version (2.0.0) as an attribute; CEL expressions compare it as one."""

    text: str


Attribute = bool | int | str | Version
"""An attribute value; a bool is a bool and not an int."""


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """How a share of a capacity may be asked for (KEP 5075); quantities as text.

    Attributes:
        default: what a claim uses up that asks for nothing.
        valid_values: the amounts allowed, ascending, at most 10; excludes the range.
        minimum, maximum, step: the range allowed; `minimum` starts it.
    """

    default: str
    valid_values: tuple[str, ...] = ()
    minimum: str | None = None
    maximum: str | None = None
    step: str | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """An amount that a device has; a policy makes it consumable on devices with `allow_multiple`."""

    value: str
    policy: RequestPolicy | None = None


@dataclass(frozen=True, slots=True)
class Taint:
    """Keeps claims away that do not tolerate it; `NoExecute` also evicts their pods (KEP 5055)."""

    key: str
    value: str = ""
    effect: Literal["None", "NoSchedule", "NoExecute"] = "NoSchedule"


@dataclass(frozen=True, slots=True)
class CounterSet:
    """Countable silicon that several devices of a pool share (KEP 4815)."""

    name: str
    counters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SliceDevice:
    """One device of a pool.

    Attributes:
        name: DNS label, unique in its pool.
        attributes: `[domain/]identifier` to value; without a domain it is the driver's.
        capacity: amounts by name; plain text stands for a `Capacity` without a policy.
        allow_multiple: several claims may hold it at once (KEP 5075).
        taints: at most 16.
        consumes_counters: what it uses of the pool's counter sets, at most 2 of them.
        binding_conditions, binding_failure_conditions: at most 4 each (KEP 5007).
        binds_to_node: the scheduler pins the claim to this node.
    """

    name: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    capacity: Mapping[str, Capacity | str] = field(default_factory=dict)
    allow_multiple: bool = False
    taints: tuple[Taint, ...] = ()
    consumes_counters: tuple[CounterSet, ...] = ()
    binding_conditions: tuple[str, ...] = ()
    binding_failure_conditions: tuple[str, ...] = ()
    binds_to_node: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of devices of one node; the order of devices is the order in which the scheduler tries them."""

    name: str
    devices: Sequence[SliceDevice] = ()
    shared_counters: Sequence[CounterSet] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A device or counter set in JSON, with what tells whether a stored one is the same.

    Attributes:
        name: name in the pool.
        body: JSON in the shape of v1.
        digest: equal for bodies that the API server would store alike.
        small_slice: a slice that holds it may have 64 devices only (kubelet-contract C.1).
    """

    name: str
    body: Json
    digest: str
    small_slice: bool = False


def encode_device(device: SliceDevice) -> Encoded:
    """One device as JSON in the shape of v1. Validate first: this trusts its input."""
    body: Json = {"name": device.name}
    if device.attributes:
        body["attributes"] = {key: _attribute(value) for key, value in device.attributes.items()}
    if device.capacity:
        body["capacity"] = {key: _capacity(value) for key, value in device.capacity.items()}
    if device.allow_multiple:
        body["allowMultipleAllocations"] = True
    if device.taints:
        body["taints"] = [_taint(taint) for taint in device.taints]
    if device.consumes_counters:
        body["consumesCounters"] = [
            {"counterSet": used.name, "counters": _counters(used.counters)}
            for used in device.consumes_counters
        ]
    if device.binding_conditions:
        body["bindingConditions"] = list(device.binding_conditions)
    if device.binding_failure_conditions:
        body["bindingFailureConditions"] = list(device.binding_failure_conditions)
    if device.binds_to_node:
        body["bindsToNode"] = True
    small = bool(device.taints or device.consumes_counters)
    return Encoded(device.name, body, digest(body), small)


def encode_counters(counters: CounterSet) -> Encoded:
    """One counter set as JSON in the shape of v1."""
    body: Json = {"name": counters.name, "counters": _counters(counters.counters)}
    return Encoded(counters.name, body, digest(body))


def digest(body: Json) -> str:
    """A short text, equal for devices or counter sets that the API server would store alike."""
    return _hash(json.dumps(canonical(body), sort_keys=True))


def digest_all(digests: Iterable[str], owner: str) -> str:
    """The same for a whole slice: its devices or counter sets in order, and the UID of its node."""
    return _hash("\n".join((owner, *digests)))


def canonical(body: Json) -> Json:
    """A device or counter set without what the server fills in and with amounts for quantities."""
    out: Json = {}
    for key, value in body.items():
        match key:
            case "capacity":
                out[key] = {name: _canonical_capacity(entry) for name, entry in value.items()}
            case "counters":
                out[key] = {name: amount(str(entry["value"])) for name, entry in value.items()}
            case "consumesCounters":
                out[key] = [canonical(entry) for entry in value]
            case "taints":
                out[key] = [{k: v for k, v in taint.items() if k != "timeAdded" and v} for taint in value]
            case _:
                out[key] = value
    return {key: value for key, value in out.items() if value not in (None, False, [], {})}


def dropped_fields(wanted: Json, stored: Json) -> frozenset[str]:
    """Which fields the API server did not keep, by name; a gate that is off drops in silence (H25)."""
    lost: set[str] = set()
    if wanted.get("sharedCounters") and not stored.get("sharedCounters"):
        lost.add("sharedCounters")
    kept = {str(device["name"]): canonical(device) for device in stored.get("devices") or ()}
    for device in wanted.get("devices") or ():
        ours, theirs = canonical(device), kept.get(str(device["name"]), {})
        lost |= ours.keys() - theirs.keys()
        for name, entry in ours.get("capacity", {}).items():
            there = theirs.get("capacity", {}).get(name, {})
            lost |= {f"capacity.{key}" for key in entry.keys() - there.keys()}
    return frozenset(lost)


_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(1000),
    "M": Decimal(1000**2),
    "G": Decimal(1000**3),
    "T": Decimal(1000**4),
    "P": Decimal(1000**5),
    "E": Decimal(1000**6),
    **{unit: Decimal(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)")


def quantity(text: str) -> Decimal:
    """The amount of a Kubernetes quantity: `2Gi` -> 2147483648. Raises ValueError."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity, as 4, 500m or 2Gi are")
    number, exponent, suffix = match.groups()
    return Decimal(number + exponent) if exponent else Decimal(number) * _SUFFIXES[suffix or ""]


def amount(text: str) -> str:
    """A quantity in the one spelling of its amount: `1000` and `1k` are the same."""
    return str(quantity(text).normalize())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _attribute(value: Attribute) -> Json:
    match value:
        case bool():
            return {"bool": value}
        case int():
            return {"int": value}
        case str():
            return {"string": value}
        case Version(text):
            return {"version": text}


def _capacity(value: Capacity | str) -> Json:
    if isinstance(value, str):
        return {"value": value}
    if value.policy is None:
        return {"value": value.value}
    policy: Json = {"default": value.policy.default}
    if value.policy.valid_values:
        policy["validValues"] = list(value.policy.valid_values)
    if value.policy.minimum is not None:
        limits = {"min": value.policy.minimum, "max": value.policy.maximum, "step": value.policy.step}
        policy["validRange"] = {key: limit for key, limit in limits.items() if limit is not None}
    return {"value": value.value, "requestPolicy": policy}


def _taint(taint: Taint) -> Json:
    body: Json = {"key": taint.key, "effect": taint.effect}
    if taint.value:
        body["value"] = taint.value
    return body


def _counters(counters: Mapping[str, str]) -> Json:
    return {name: {"value": value} for name, value in counters.items()}


def _canonical_capacity(entry: Json) -> Json:
    out: Json = {"value": amount(str(entry["value"]))}
    policy = entry.get("requestPolicy")
    if policy:
        out["requestPolicy"] = _canonical_policy(policy)
    return out


def _canonical_policy(policy: Json) -> Json:
    out: Json = {}
    if policy.get("default") is not None:
        out["default"] = amount(str(policy["default"]))
    if policy.get("validValues"):
        out["validValues"] = [amount(str(value)) for value in policy["validValues"]]
    if policy.get("validRange"):
        out["validRange"] = {key: amount(str(value)) for key, value in policy["validRange"].items()}
    return out
