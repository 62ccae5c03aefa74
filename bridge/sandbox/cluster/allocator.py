"""DRA allocation for one node, as the scheduler does it: slices, classes and claims in, results out (B.6, C).

Pure. Of CEL only `device.driver == "..."` is understood; what is not understood is an error, never a guess.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bridge.sandbox.cluster.objects import Object, dig, name_of
from bridge.sandbox.cluster.validation import quantity

DeviceKey = tuple[str, str, str]
"""Driver, pool, device."""

RESULTS = 32

_DRIVER = re.compile(r"""\s*device\.driver\s*==\s*(?P<quote>["'])(?P<driver>[^"']+)(?P=quote)\s*""")


class Unschedulable(Exception):
    """Why no node suits; the pod waits for a change."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that a slice offers, in allocation order."""

    driver: str
    pool: str
    body: Object

    @property
    def key(self) -> DeviceKey:
        """Its identity."""
        return self.driver, self.pool, self.body["name"]

    @property
    def shared(self) -> bool:
        """Whether it may be allocated many times."""
        return bool(self.body.get("allowMultipleAllocations"))


@dataclass(slots=True)
class Usage:
    """What claims hold: exclusive devices, and capacity consumed by shares."""

    taken: set[DeviceKey] = field(default_factory=set)
    consumed: dict[DeviceKey, dict[str, float]] = field(default_factory=dict)

    def add(self, result: Object) -> None:
        """Count one allocation result; admin access counts for nothing."""
        if result.get("adminAccess"):
            return
        key = (result["driver"], result["pool"], result["device"])
        if result.get("shareID"):
            used = self.consumed.setdefault(key, {})
            for name, amount in (result.get("consumedCapacity") or {}).items():
                used[name] = used.get(name, 0) + quantity(amount)
        else:
            self.taken.add(key)


def usage_of(claims: Iterable[Object]) -> Usage:
    """Count what all claims hold."""
    usage = Usage()
    for claim in claims:
        for result in dig(claim, "status.allocation.devices.results", []):
            usage.add(result)
    return usage


@dataclass(frozen=True, slots=True)
class Offers:
    """The devices of one node.

    Attributes:
        devices: of complete pools, in allocation order.
        counters: counter sets by (driver, pool, set name): counter to amount.
        broken: pools that are incomplete or name a device twice.
    """

    devices: tuple[Candidate, ...]
    counters: Mapping[tuple[str, str, str], Mapping[str, float]]
    broken: frozenset[tuple[str, str]]


def offers_of(slices: Iterable[Object], node: str) -> Offers:
    """Read a node's slices: highest generation, complete pools, ordered by pool, slice and list."""
    pools: dict[tuple[str, str], list[Object]] = {}
    for piece in slices:
        if dig(piece, "spec.nodeName") == node or dig(piece, "spec.allNodes"):
            pools.setdefault((piece["spec"]["driver"], piece["spec"]["pool"]["name"]), []).append(piece)
    ready: list[Candidate] = []
    late: list[Candidate] = []
    broken: set[tuple[str, str]] = set()
    counters: dict[tuple[str, str, str], dict[str, float]] = {}
    for (driver, pool), pieces in sorted(pools.items(), key=lambda item: item[0][1]):
        newest = max(dig(p, "spec.pool.generation", 0) for p in pieces)
        current = sorted((p for p in pieces if dig(p, "spec.pool.generation", 0) == newest), key=name_of)
        found = [Candidate(driver, pool, body) for p in current for body in dig(p, "spec.devices", [])]
        complete = len(current) == dig(current[0], "spec.pool.resourceSliceCount")
        if not complete or len({c.key for c in found}) != len(found):
            broken.add((driver, pool))
            continue
        for piece in current:
            for entry in dig(piece, "spec.sharedCounters", []):
                amounts = {name: quantity(c["value"]) for name, c in entry["counters"].items()}
                counters[(driver, pool, entry["name"])] = amounts
        (late if any(c.body.get("bindingConditions") for c in found) else ready).extend(found)
    return Offers((*ready, *late), counters, frozenset(broken))


def allocate(claim: Object, classes: Mapping[str, Object], offers: Offers, usage: Usage, node: str) -> Object:
    """Allocate a claim on a node: first fit, request by request; `usage` is counted up.

    Returns:
        `status.allocation`.

    Raises:
        Unschedulable: with the reason.
        ValueError: for claims that the sandbox's scheduler does not understand.
    """
    devices = dig(claim, "spec.devices", {})
    if devices.get("constraints"):
        raise ValueError(f"claim {name_of(claim)}: constraints are not understood by the sandbox's scheduler")
    results: list[Object] = []
    config: list[Object] = []
    for request in devices.get("requests") or []:
        found, used_class, label = _request(request, classes, offers, usage)
        results += found
        own: list[Object] = dig(used_class, "spec.config", [])
        config += [{"source": "FromClass", "requests": [label], **entry} for entry in own]
    if len(results) > RESULTS:
        raise Unschedulable(
            f"claim {name_of(claim)} needs {len(results)} devices, at most {RESULTS} are possible"
        )
    config += [{"source": "FromClaim", **entry} for entry in devices.get("config") or []]
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    allocation: Object = {"devices": {"results": results}, "nodeSelector": {"nodeSelectorTerms": [term]}}
    if config:
        allocation["devices"]["config"] = config
    return allocation


def _request(
    request: Object, classes: Mapping[str, Object], offers: Offers, usage: Usage
) -> tuple[list[Object], Object, str]:
    """Serve one request; of `firstAvailable` the first that can be had. Return results, class and full name."""
    if request.get("exactly"):
        return (*_body(request["name"], request["exactly"], classes, offers, usage), request["name"])
    reasons = []
    for body in request.get("firstAvailable") or []:
        label = f"{request['name']}/{body['name']}"
        try:
            return (*_body(label, body, classes, offers, usage), label)
        except Unschedulable as reason:
            reasons.append(str(reason))
    raise Unschedulable("; ".join(reasons) or f"request {request['name']} asks for nothing")


def _body(
    label: str, body: Object, classes: Mapping[str, Object], offers: Offers, usage: Usage
) -> tuple[list[Object], Object]:
    used_class = classes.get(body["deviceClassName"])
    if used_class is None:
        raise Unschedulable(f"request {label}: device class {body['deviceClassName']} does not exist")
    selectors = [*dig(used_class, "spec.selectors", []), *(body.get("selectors") or [])]
    drivers = {_driver_of(selector, label) for selector in selectors}
    fitting = [c for c in offers.devices if drivers <= {c.driver}]
    everything = body.get("allocationMode") == "All"
    if everything and any(driver in drivers or not drivers for driver, _ in offers.broken):
        raise Unschedulable(f"request {label}: a pool is not complete, and all devices are asked for")
    wanted = len(fitting) if everything else body.get("count", 1)
    before = (set(usage.taken), {key: dict(used) for key, used in usage.consumed.items()})
    results: list[Object] = []
    for candidate in _free(fitting, body, offers, usage):
        if len(results) == wanted:
            break
        results.append(_take(label, candidate, body, usage))
    if len(results) < wanted or not results:
        usage.taken, usage.consumed = before
        raise Unschedulable(
            f"request {label}: cannot allocate all claims: {len(results)} of {wanted or 1} devices"
        )
    return results, used_class


def _driver_of(selector: Object, label: str) -> str:
    expression = dig(selector, "cel.expression", "")
    if (found := _DRIVER.fullmatch(expression)) is None:
        raise ValueError(
            f'request {label}: the sandbox understands only device.driver == "...", not {expression!r}'
        )
    return found["driver"]


def _free(fitting: Iterable[Candidate], body: Object, offers: Offers, usage: Usage) -> Iterator[Candidate]:
    admin = bool(body.get("adminAccess"))
    for candidate in fitting:
        tolerated = all(_tolerated(taint, body) for taint in candidate.body.get("taints") or [])
        if not tolerated:
            continue
        if admin or (candidate.shared and _consumption(candidate, body, usage) is not None):
            yield candidate
            continue
        free = not candidate.shared and candidate.key not in usage.taken and _has_capacity(candidate, body)
        if free and _counters_suffice(candidate, offers, usage):
            yield candidate


def _tolerated(taint: Object, body: Object) -> bool:
    return taint["effect"] == "None" or any(tolerates(t, taint) for t in body.get("tolerations") or [])


def tolerates(toleration: Object, taint: Object) -> bool:
    """Say whether a toleration covers a taint."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(
        toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")
    )


def _take(label: str, candidate: Candidate, body: Object, usage: Usage) -> Object:
    driver, pool, device = candidate.key
    result: Object = {"request": label, "driver": driver, "pool": pool, "device": device}
    if body.get("adminAccess"):
        result["adminAccess"] = True
    elif candidate.shared:
        consumed = _consumption(candidate, body, usage) or {}
        result["shareID"] = str(uuid.uuid4())
        result["consumedCapacity"] = {name: _text(amount) for name, amount in consumed.items()}
    if body.get("tolerations"):
        result["tolerations"] = body["tolerations"]
    for key in ("bindingConditions", "bindingFailureConditions"):
        if candidate.body.get(key):
            result[key] = candidate.body[key]
    usage.add(result)
    return result


def _text(amount: float) -> str:
    return str(int(amount)) if amount == int(amount) else f"{round(amount * 1000)}m"


def _asked(body: Object) -> Mapping[str, str]:
    asked: Mapping[str, str] = dig(body, "capacity.requests", {})
    return asked


def _has_capacity(candidate: Candidate, body: Object) -> bool:
    capacity: Object = candidate.body.get("capacity") or {}
    return all(
        n in capacity and quantity(capacity[n]["value"]) >= quantity(a) for n, a in _asked(body).items()
    )


def _consumption(candidate: Candidate, body: Object, usage: Usage) -> dict[str, float] | None:
    """Return what a new share of a device would consume; None if it does not fit (KEP-5075)."""
    capacity: Object = candidate.body.get("capacity") or {}
    asked = _asked(body)
    if set(asked) - set(capacity):
        return None
    used = usage.consumed.get(candidate.key, {})
    consumed = {}
    for name, entry in capacity.items():
        amount = _rounded(entry, asked.get(name))
        if amount is None or used.get(name, 0) + amount > quantity(entry["value"]):
            return None
        consumed[name] = amount
    return consumed


def _rounded(entry: Object, asked: str | None) -> float | None:
    """Apply a request policy: default, rounding up to valid values or steps; None if it cannot be met."""
    policy: Object = entry.get("requestPolicy") or {}
    if asked is None:
        return quantity(policy.get("default", entry["value"]))
    amount = quantity(asked)
    if valid := policy.get("validValues"):
        return next((quantity(v) for v in valid if quantity(v) >= amount), None)
    if span := policy.get("validRange"):
        least = quantity(span["min"])
        amount = max(amount, least)
        if step := quantity(span.get("step", 0)):
            amount = least + -(-(amount - least) // step) * step
        return None if "max" in span and amount > quantity(span["max"]) else amount
    return amount if policy else quantity(entry["value"])


def _counters_suffice(candidate: Candidate, offers: Offers, usage: Usage) -> bool:
    """Say whether the counters that a device consumes have enough left (KEP-4815)."""
    for need in candidate.body.get("consumesCounters") or []:
        left = dict(offers.counters.get((candidate.driver, candidate.pool, need["counterSet"]), {}))
        for other in offers.devices:
            if other.key in usage.taken and (other.driver, other.pool) == (candidate.driver, candidate.pool):
                for used in other.body.get("consumesCounters") or []:
                    if used["counterSet"] == need["counterSet"]:
                        for name, counter in used["counters"].items():
                            left[name] = left.get(name, 0) - quantity(counter["value"])
        if any(quantity(c["value"]) > left.get(name, 0) for name, c in need["counters"].items()):
            return False
    return True
