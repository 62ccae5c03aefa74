"""What the API server refuses: the limits of kubelet-contract C.1 and C.2, and what may not change."""

from __future__ import annotations

import re
from typing import Any

from bridge.sandbox.cluster.objects import Object, dig, invalid, name_of
from bridge.sandbox.cluster.resources import Resource

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_NAME = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_SEMVER = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")

DEVICES, DEVICES_WITH_TAINTS = 128, 64
_LIMITS = {"taints": 16, "bindingConditions": 4, "bindingFailureConditions": 4, "consumesCounters": 2}


def _matches(pattern: re.Pattern[str], text: object, limit: int) -> bool:
    return isinstance(text, str) and len(text) <= limit and pattern.fullmatch(text) is not None


def check(resource: Resource, obj: Object, before: Object | None) -> None:
    """Validate an object that is to be stored.

    Raises:
        ApiProblem: 422 with all causes.
    """
    causes: list[str] = []
    if not _matches(_SUBDOMAIN, name_of(obj), 253):
        causes.append(
            f'metadata.name: Invalid value: "{name_of(obj)}": a lowercase RFC 1123 subdomain must be given'
        )
    match resource.plural:
        case "resourceslices":
            causes += _slice(obj, before)
        case "resourceclaims":
            causes += _claim(obj, before)
    if causes:
        raise invalid(resource.kind, name_of(obj), causes)


def _slice(obj: Object, before: Object | None) -> list[str]:
    spec = obj.get("spec") or {}
    causes = [*_slice_identity(spec), *_slice_place(spec), *_slice_devices(spec), *_slice_counters(spec)]
    if before is None:
        return causes
    changed = [p for p in ("driver", "nodeName", "pool.name") if dig(before, f"spec.{p}") != dig(spec, p)]
    return causes + [f"spec.{p}: Invalid value: {dig(spec, p)!r}: field is immutable" for p in changed]


def _slice_identity(spec: Object) -> list[str]:
    causes = []
    if not _matches(_SUBDOMAIN, spec.get("driver"), 63):
        causes.append(
            f"spec.driver: Invalid value: {spec.get('driver')!r}: a DNS subdomain of at most 63 is required"
        )
    pool = dig(spec, "pool.name", "")
    if not pool or len(pool) > 253 or not all(_SUBDOMAIN.fullmatch(part) for part in pool.split("/")):
        causes.append(f"spec.pool.name: Invalid value: {pool!r}: DNS subdomains joined by / are required")
    if dig(spec, "pool.generation", 0) < 0:
        causes.append("spec.pool.generation: Invalid value: must be greater than or equal to 0")
    if dig(spec, "pool.resourceSliceCount", 0) < 1:
        causes.append("spec.pool.resourceSliceCount: Invalid value: must be greater than 0")
    return causes


def _slice_place(spec: Object) -> list[str]:
    places = [p for p in ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection") if spec.get(p)]
    if len(places) == 1:
        return []
    wanted = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
    return [f"spec: Invalid value: {places}: {wanted}"]


def _slice_devices(spec: Object) -> list[str]:
    devices: list[Object] = spec.get("devices") or []
    heavy = any(d.get("taints") or d.get("consumesCounters") for d in devices)
    limit = DEVICES_WITH_TAINTS if heavy else DEVICES
    causes = []
    if len(devices) > limit:
        causes.append(f"spec.devices: Too many: {len(devices)}: must have at most {limit} items")
    seen: set[str] = set()
    for index, device in enumerate(devices):
        at = f"spec.devices[{index}]"
        name = device.get("name")
        if not _matches(_LABEL, name, 63):
            causes.append(f"{at}.name: Invalid value: {name!r}: a lowercase RFC 1123 label must be given")
        elif name in seen:
            causes.append(f"{at}.name: Duplicate value: {name!r}")
        seen.add(str(name))
        causes += _device(at, device)
    return causes


def _device(at: str, device: Object) -> list[str]:
    attributes: Object = device.get("attributes") or {}
    capacity: Object = device.get("capacity") or {}
    causes = []
    if len(attributes) + len(capacity) > 32:
        causes.append(
            f"{at}: Too many: {len(attributes) + len(capacity)}: attributes and capacity at most 32"
        )
    for key in [*attributes, *capacity]:
        domain, slash, identifier = key.rpartition("/")
        if not _matches(_IDENTIFIER, identifier, 32) or (slash and not _matches(_SUBDOMAIN, domain, 63)):
            causes.append(f"{at}: Invalid value: {key!r}: must be [domain/]C identifier of at most 32")
    for key, value in attributes.items():
        causes += _attribute(f"{at}.attributes[{key}]", value)
    for key, value in capacity.items():
        causes += _capacity(f"{at}.capacity[{key}]", value, bool(device.get("allowMultipleAllocations")))
    for index, taint in enumerate(device.get("taints") or []):
        causes += _taint(f"{at}.taints[{index}]", taint)
    for key, limit in _LIMITS.items():
        if len(device.get(key) or []) > limit:
            causes.append(f"{at}.{key}: Too many: must have at most {limit} items")
    if bool(device.get("bindingConditions")) != bool(device.get("bindingFailureConditions")):
        causes.append(f"{at}: Invalid value: bindingConditions and bindingFailureConditions go together")
    return causes


def _qualified(key: str) -> bool:
    domain, slash, identifier = key.rpartition("/")
    return _matches(_IDENTIFIER, identifier, 32) and (not slash or _matches(_SUBDOMAIN, domain, 63))


def _attribute(at: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or len(value) != 1:
        return [f"{at}: Invalid value: {value!r}: exactly one value must be specified"]
    ((kind, content),) = value.items()
    wanted: dict[str, bool] = {
        "int": isinstance(content, int) and not isinstance(content, bool),
        "bool": isinstance(content, bool),
        "string": isinstance(content, str) and len(content.encode()) <= 64,
        "version": _matches(_SEMVER, content, 64),
    }
    return [] if wanted.get(kind) else [f"{at}.{kind}: Invalid value: {content!r}"]


def _capacity(at: str, value: Any, multiple: bool) -> list[str]:
    if not isinstance(value, dict) or "value" not in value:
        return [f"{at}.value: Required value"]
    causes = []
    try:
        total = quantity(value["value"])
    except ValueError as error:
        return [f"{at}.value: Invalid value: {error}"]
    policy = value.get("requestPolicy")
    if policy is None:
        return []
    if not multiple:
        causes.append(f"{at}.requestPolicy: Forbidden: allowMultipleAllocations must be true")
    numbers = [policy.get("default"), dig(policy, "validRange.min"), dig(policy, "validRange.max")]
    numbers += dig(policy, "validValues", [])
    if any(number is not None and quantity(number) > total for number in numbers):
        causes.append(f"{at}.requestPolicy: Invalid value: must not exceed the capacity {value['value']}")
    if (policy.get("validValues") or policy.get("validRange")) and policy.get("default") is None:
        causes.append(f"{at}.requestPolicy.default: Required value")
    if not causes and policy.get("validRange"):
        causes += _range(
            f"{at}.requestPolicy.validRange", policy["default"], policy["validRange"], value["value"]
        )
    return causes


def _range(at: str, default: Any, span: Object, total: Any) -> list[str]:
    if span.get("min") is None:
        return [f"{at}.min: Required value: required when validRange is defined"]
    low, step = quantity(span["min"]), span.get("step")
    if step is None:
        return []
    if quantity(step) <= 0:
        return [f"{at}.step: Invalid value: {step!r}: must be greater than zero"]
    causes = []
    if low + quantity(step) > quantity(total):
        above = f"one step {low + quantity(step)} is larger than capacity value: {total}"
        causes.append(f"{at}.step: Invalid value: {step!r}: {above}")
    off = [
        limit for limit in (default, span.get("max")) if limit and (quantity(limit) - low) % quantity(step)
    ]
    return causes + [
        f"{at}.step: Invalid value: {limit!r}: value is not a multiple of a given step ({step}) from ({low})"
        for limit in off
    ]


def _taint(at: str, taint: Object) -> list[str]:
    causes = []
    if not _matches(_LABEL_NAME, taint.get("key"), 317):
        causes.append(f"{at}.key: Invalid value: {taint.get('key')!r}")
    if taint.get("effect") not in ("None", "NoSchedule", "NoExecute"):
        causes.append(f"{at}.effect: Unsupported value: {taint.get('effect')!r}")
    return causes


def _slice_counters(spec: Object) -> list[str]:
    sets: list[Object] = spec.get("sharedCounters") or []
    causes = []
    if sets and spec.get("devices"):
        causes.append("spec: Invalid value: only one of `devices`, `sharedCounters` may be set")
    if len(sets) > 8:
        causes.append(f"spec.sharedCounters: Too many: {len(sets)}: must have at most 8 items")
    causes += [
        f"spec.sharedCounters[{index}].counters: Too many: must have at most 32 items"
        for index, counters in enumerate(sets)
        if len(counters.get("counters") or {}) > 32
    ]
    return causes


def _claim(obj: Object, before: Object | None) -> list[str]:
    causes = []
    if before is not None and before.get("spec") != obj.get("spec"):
        causes.append("spec: Invalid value: field is immutable")
    if len(dig(obj, "status.reservedFor", [])) > 256:
        causes.append("status.reservedFor: Too many: must have at most 256 items")
    results: list[Object] = dig(obj, "status.allocation.devices.results", [])
    if len(results) > 32:
        causes.append("status.allocation.devices.results: Too many: must have at most 32 items")
    if dig(obj, "status.reservedFor") and not dig(obj, "status.allocation"):
        causes.append("status.reservedFor: Forbidden: may not be specified when `allocated` is not set")
    allocated = {(r.get("driver"), r.get("pool"), r.get("device"), r.get("shareID")) for r in results}
    for index, entry in enumerate(dig(obj, "status.devices", [])):
        at = f"status.devices[{index}]"
        if (
            entry.get("driver"),
            entry.get("pool"),
            entry.get("device"),
            entry.get("shareID"),
        ) not in allocated:
            causes.append(f"{at}: Invalid value: must be an allocated device in the claim")
        if len(entry.get("conditions") or []) > 8:
            causes.append(f"{at}.conditions: Too many: must have at most 8 items")
    return causes


_SUFFIX = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?)(m|[kMGT]i?|Ki)?")


def quantity(text: object) -> float:
    """Read a Kubernetes quantity as a number.

    Raises:
        ValueError: if it is none.
    """
    if (found := _QUANTITY.fullmatch(str(text))) is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix = float(found[1]), found[2] or ""
    return number / 1000 if suffix == "m" else number * _SUFFIX[suffix]
