"""What the API server would refuse, said beforehand, per device and field (kubelet-contract C.1).

One refused device would keep the whole slice, and with it every device, from being published. So a device
that breaks a rule is left out and reported, and the rest goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dra_v1.slices import Attribute, Capacity, CounterSet, Pool, RequestPolicy, SliceDevice, Version, quantity

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-((0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?"
)

DRIVER_NAME_LIMIT = 63
ATTRIBUTE_LIMIT = 32
STRING_LIMIT = 64
TAINT_LIMIT = 16
CONDITION_LIMIT = 4
CONSUMED_SETS_LIMIT = 2
COUNTER_LIMIT = 32
VALID_VALUES_LIMIT = 10
_NAME_LIMIT = 253


class PublishError(ValueError):
    """Something cannot be published as it is.

    Attributes:
        pool: its pool.
        device: the device, or empty when it concerns the pool.
        field: where in the device, `attributes[numa]`.
    """

    def __init__(self, pool: str, device: str, field: str, message: str) -> None:
        subject = f"device {device} of pool {pool}" if device else f"pool {pool}"
        super().__init__(f"{subject} cannot be published: {field}: {message}")
        self.pool = pool
        self.device = device
        self.field = field


@dataclass(frozen=True, slots=True)
class Checked:
    """A pool of valid devices only, and what was left out."""

    pool: Pool
    rejected: tuple[PublishError, ...]


Fault = tuple[str, str]
"""(field, message)"""


def check_driver_name(name: str) -> None:
    """A driver name is a lowercase DNS subdomain of at most 63 characters. Raises ValueError."""
    if len(name) > DRIVER_NAME_LIMIT or not _SUBDOMAIN.fullmatch(name):
        raise ValueError(
            f"{name!r} is no driver name: it has to be a lowercase DNS name of at most 63 characters"
        )


def check_pool(pool: Pool, good_before: Mapping[str, SliceDevice] | None = None) -> Checked:
    """Leave out what the API server would refuse.

    Args:
        pool: devices and counters.
        good_before: by name; devices that are these very objects are not looked at again, unless they consume
            counters, which may have changed.

    Raises:
        PublishError: the pool itself, its name or its counter sets, cannot be published.
    """
    if len(pool.name) > _NAME_LIMIT or not all(_SUBDOMAIN.fullmatch(part) for part in pool.name.split("/")):
        raise PublishError(pool.name, "", "name", "has to be DNS names joined by /, at most 253 characters")
    sets = _counter_sets(pool)
    seen: set[str] = set()
    good: list[SliceDevice] = []
    rejected: list[PublishError] = []
    for device in pool.devices:
        again = good_before is not None and good_before.get(device.name) is device
        faults = [] if again and not device.consumes_counters else list(_device(device, sets))
        if device.name in seen:
            faults.append(("name", "another device of the pool has the same name"))
        if faults:
            rejected.extend(PublishError(pool.name, device.name, where, what) for where, what in faults)
        else:
            seen.add(device.name)
            good.append(device)
    return Checked(Pool(pool.name, tuple(good), tuple(pool.shared_counters)), tuple(rejected))


def _counter_sets(pool: Pool) -> Mapping[str, CounterSet]:
    sets: dict[str, CounterSet] = {}
    for counters in pool.shared_counters:
        where = f"shared_counters[{counters.name}]"
        if counters.name in sets:
            raise PublishError(pool.name, "", where, "two counter sets of the pool have this name")
        for _, message in (*_name("name", counters.name), *_counters(where, counters)):
            raise PublishError(pool.name, "", where, message)
        sets[counters.name] = counters
    return sets


def _device(device: SliceDevice, sets: Mapping[str, CounterSet]) -> Iterator[Fault]:
    yield from _name("name", device.name)
    if len(device.attributes) + len(device.capacity) > ATTRIBUTE_LIMIT:
        yield "attributes", f"more than {ATTRIBUTE_LIMIT} attributes and capacities together"
    for key, value in device.attributes.items():
        yield from _key(f"attributes[{key}]", key)
        yield from _value(f"attributes[{key}]", value)
    for key, capacity in device.capacity.items():
        yield from _key(f"capacity[{key}]", key)
        yield from _capacity(f"capacity[{key}]", capacity, device.allow_multiple)
    yield from _taints(device)
    yield from _consumed(device, sets)
    for field in ("binding_conditions", "binding_failure_conditions"):
        conditions: tuple[str, ...] = getattr(device, field)
        if len(conditions) > CONDITION_LIMIT:
            yield field, f"more than {CONDITION_LIMIT}"
        yield from (fault for name in conditions for fault in _qualified(f"{field}[{name}]", name))
    names = device.binding_conditions + device.binding_failure_conditions
    if len(set(names)) < len(names):
        yield "binding_conditions", "a condition is named twice"
    if bool(device.binding_conditions) != bool(device.binding_failure_conditions):
        yield "binding_conditions", "binding conditions and binding failure conditions need each other"


def _name(field: str, name: str) -> Iterator[Fault]:
    if not _LABEL.fullmatch(name):
        yield field, f"{name!r} is no DNS label (lowercase letters, digits and -, at most 63 characters)"


def _key(field: str, key: str) -> Iterator[Fault]:
    domain, slash, identifier = key.rpartition("/")
    if slash and (len(domain) > DRIVER_NAME_LIMIT or not _SUBDOMAIN.fullmatch(domain)):
        yield field, f"the domain {domain!r} is no lowercase DNS name of at most 63 characters"
    if not _IDENTIFIER.fullmatch(identifier):
        yield field, f"{identifier!r} is no C identifier of at most 32 characters"


def _value(field: str, value: Attribute) -> Iterator[Fault]:
    match value:
        case int() if not -(2**63) <= value < 2**63:
            yield field, "does not fit into 64 bits"
        case str() if len(value.encode()) > STRING_LIMIT:
            yield field, f"is longer than {STRING_LIMIT} bytes"
        case Version(text) if len(text) > STRING_LIMIT or not _SEMVER.fullmatch(text):
            yield field, f"{text!r} is no semantic version (2.0.0) of at most {STRING_LIMIT} characters"
        case _:
            pass


def _capacity(field: str, capacity: Capacity | str, multiple: bool) -> Iterator[Fault]:
    plain = Capacity(capacity) if isinstance(capacity, str) else capacity
    faults = list(_quantities({field: plain.value}))
    yield from faults
    if plain.policy is None or faults:
        return
    if not multiple:
        yield field, "a request policy needs allow_multiple"
    yield from _policy(field, plain.policy, plain.value)


def _policy(field: str, policy: RequestPolicy, capacity: str) -> Iterator[Fault]:
    texts = {"default": policy.default, "min": policy.minimum, "max": policy.maximum, "step": policy.step}
    amounts = {f"{field}.policy.{key}": text for key, text in texts.items() if text is not None}
    amounts |= {f"{field}.policy.validValues[{i}]": text for i, text in enumerate(policy.valid_values)}
    faults = list(_quantities(amounts))
    yield from faults
    if faults:
        return
    rules: Sequence[Callable[[str, RequestPolicy, str], Iterator[Fault]]] = (_valid_values, _valid_range)
    for rule in rules:
        yield from rule(f"{field}.policy", policy, capacity)
    over = [where for where, text in amounts.items() if quantity(text) > quantity(capacity)]
    yield from ((where, f"exceeds the capacity of {capacity}") for where in over)


def _valid_values(field: str, policy: RequestPolicy, capacity: str) -> Iterator[Fault]:
    values = [quantity(text) for text in policy.valid_values]
    if len(values) > VALID_VALUES_LIMIT or values != sorted(set(values)):
        yield field, f"valid values have to be ascending, different, and at most {VALID_VALUES_LIMIT}"
    if values and policy.minimum is not None:
        yield field, "valid values and a range exclude each other"
    if values and quantity(policy.default) not in values:
        yield field, "the default is none of the valid values"


def _valid_range(field: str, policy: RequestPolicy, capacity: str) -> Iterator[Fault]:
    if policy.minimum is None:
        if policy.maximum is not None or policy.step is not None:
            yield field, "a range needs its minimum"
        return
    low = quantity(policy.minimum)
    high = quantity(policy.maximum if policy.maximum is not None else capacity)
    if not low <= quantity(policy.default) <= high:
        yield field, "the default is outside the range"
    yield from _step(field, policy, capacity)


def _step(field: str, policy: RequestPolicy, capacity: str) -> Iterator[Fault]:
    """A range has room for at least one step, and its default and maximum lie on steps."""
    if policy.step is None or policy.minimum is None:
        return
    step, low = quantity(policy.step), quantity(policy.minimum)
    if step <= 0:
        yield field, "the step has to be above 0"
        return
    if low + step > quantity(capacity):
        yield field, f"one step above the minimum exceeds the capacity of {capacity}; leave the step out"
    for name, text in (("default", policy.default), ("maximum", policy.maximum)):
        if text is not None and (quantity(text) - low) % step:
            yield field, f"the {name} {text} is no multiple of the step {policy.step} above {policy.minimum}"


def _taints(device: SliceDevice) -> Iterator[Fault]:
    if len(device.taints) > TAINT_LIMIT:
        yield "taints", f"more than {TAINT_LIMIT}"
    for taint in device.taints:
        yield from _qualified(f"taints[{taint.key}]", taint.key)
        if not _LABEL_VALUE.fullmatch(taint.value):
            yield f"taints[{taint.key}]", f"the value {taint.value!r} is no label value"
    if len({(taint.key, taint.effect) for taint in device.taints}) < len(device.taints):
        yield "taints", "two taints have the same key and effect"


def _qualified(field: str, key: str) -> Iterator[Fault]:
    domain, slash, name = key.rpartition("/")
    if slash and (len(domain) > _NAME_LIMIT or not _SUBDOMAIN.fullmatch(domain)):
        yield field, f"the prefix {domain!r} is no DNS name"
    if not name or not _LABEL_VALUE.fullmatch(name):
        yield field, f"{key!r} is no qualified name, as example.com/fault is"


def _consumed(device: SliceDevice, sets: Mapping[str, CounterSet]) -> Iterator[Fault]:
    if len(device.consumes_counters) > CONSUMED_SETS_LIMIT:
        yield "consumes_counters", f"more than {CONSUMED_SETS_LIMIT} counter sets"
    for used in device.consumes_counters:
        where = f"consumes_counters[{used.name}]"
        yield from _counters(where, used)
        there = sets.get(used.name)
        if there is None:
            yield where, "the pool has no counter set of this name"
        else:
            missing = sorted(used.counters.keys() - there.counters.keys())
            yield from ((where, f"the counter set has no counter {name!r}") for name in missing)


def _counters(field: str, counters: CounterSet) -> Iterator[Fault]:
    if not 0 < len(counters.counters) <= COUNTER_LIMIT:
        yield field, f"needs 1 to {COUNTER_LIMIT} counters"
    for name in counters.counters:
        yield from _name(f"{field}.{name}", name)
    yield from _quantities({f"{field}.{name}": text for name, text in counters.counters.items()})


def _quantities(texts: Mapping[str, str]) -> Iterator[Fault]:
    for field, text in texts.items():
        try:
            if quantity(text) < 0:
                yield field, f"{text!r} is below 0"
        except ValueError as error:
            yield field, str(error)
