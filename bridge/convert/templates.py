"""ResourceClaimTemplates: what is written, and what can be read back as an extended resource."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bridge.convert.model import CONVERTED_FROM, Options, Target
from bridge.convert.shares import Piece
from bridge.convert.values import Value, get
from bridge.convert.versions import ApiVersion

GROUP, KIND = "resource.k8s.io", "ResourceClaimTemplate"
LONGEST_NAME = 253
MOST_REQUESTS = 32
MOST_DEVICES = 32
"""Of one claim (kubelet-contract C.1)."""

_ALSO = re.compile(r"(?P<resource>\S+)(?: \(also in requests: (?P<also>.+)\))?")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a template was made from.

    Attributes:
        resource: the extended resource.
        also: the containers, by name, that had it in `requests` as well as in `limits`.
    """

    resource: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.resource} (also in requests: {', '.join(self.also)})" if self.also else self.resource

    @classmethod
    def of(cls, template: Value) -> Origin | None:
        """Read it from a template's annotation; None where there is none."""
        written = get(template, ("metadata", "annotations", CONVERTED_FROM))
        found = _ALSO.fullmatch(written) if isinstance(written, str) else None
        return found and cls(
            found["resource"], tuple((found["also"] or "").split(", ") if found["also"] else ())
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a template, as far as a device plugin could serve it."""

    name: str
    device_class: str
    amount: int
    unit: str


class NotPlain(ValueError):
    """A template that asks for what the device plugin API has no word for."""


def template(
    name: str, namespace: str, origin: Origin, target: Target, row: Sequence[Piece], options: Options
) -> dict[str, Value]:
    """The object, its requests named as `request_names` says."""
    metadata: dict[str, Value] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata["annotations"] = {CONVERTED_FROM: str(origin)}
    names = request_names(target.stem, row)
    requests: list[Value] = [
        _request(request, target, piece.amount, options) for request, piece in zip(names, row, strict=True)
    ]
    return {
        "apiVersion": f"{GROUP}/{options.api_version}",
        "kind": KIND,
        "metadata": metadata,
        "spec": {"spec": {"devices": {"requests": requests}}},
    }


def request_names(stem: str, row: Sequence[Piece]) -> list[str]:
    """The only request is named after the class; several are numbered."""
    return [stem] if len(row) == 1 else [f"{stem[:60]}-{i}" for i in range(1, len(row) + 1)]


def by_capacity(target: Target, options: Options) -> bool:
    """Whether a claim asks for an amount of one device instead of a number of devices."""
    return bool(target.unit) and options.capacity and options.api_version is ApiVersion.V1


def _request(name: str, target: Target, amount: int, options: Options) -> dict[str, Value]:
    asked: dict[str, Value] = {"deviceClassName": target.device_class}
    if by_capacity(target, options):
        asked["capacity"] = {"requests": {target.unit: str(amount)}}
    elif amount > 1:
        asked["count"] = amount
    flat = options.api_version is ApiVersion.V1BETA1
    return {"name": name, **asked} if flat else {"name": name, "exactly": asked}


def read(written: Mapping[str, Value]) -> tuple[Asked, ...]:
    """The requests of a template.

    Raises:
        NotPlain: it says more than which class and how many.
    """
    spec = get(dict(written), ("spec",))
    extra = get(spec, ("metadata",))
    if extra:
        raise NotPlain("it gives its claims labels or annotations")
    devices = get(spec, ("spec", "devices"))
    if not isinstance(devices, dict):
        raise NotPlain("it asks for no devices")
    for field in ("constraints", "config"):
        if devices.get(field):
            raise NotPlain(f"its {field} cannot be said to a device plugin")
    requests = devices.get("requests")
    return tuple(_requests(requests if isinstance(requests, list) else []))


def _requests(requests: Sequence[Value]) -> Iterator[Asked]:
    for request in requests:
        if not isinstance(request, dict) or not isinstance(request.get("name"), str):
            raise NotPlain("it has a request without a name")
        name = str(request["name"])
        exactly = request.get("exactly")
        rest = {key: value for key, value in request.items() if key not in ("name", "exactly")}
        fields = {**rest, **exactly} if isinstance(exactly, dict) else rest
        device_class = fields.pop("deviceClassName", None)
        count = fields.pop("count", 1)
        mode = fields.pop("allocationMode", "ExactCount")
        unit, amount = _amount(fields.pop("capacity", None), name)
        left = [key for key, value in fields.items() if value]
        if left:
            raise NotPlain(f"request {name} has {', '.join(left)}, which a device plugin does not know")
        if (
            not isinstance(device_class, str)
            or mode != "ExactCount"
            or not isinstance(count, int)
            or count < 1
        ):
            raise NotPlain(f"request {name} asks for no fixed number of devices of one class")
        if unit and count != 1:
            raise NotPlain(f"request {name} asks for an amount of each of {count} devices")
        yield Asked(name, device_class, amount if unit else count, unit)


def _amount(capacity: Value, name: str) -> tuple[str, int]:
    if not capacity:
        return "", 0
    asked = get(capacity, ("requests",))
    if not isinstance(asked, dict) or len(asked) != 1:
        raise NotPlain(f"request {name} does not ask for an amount of one capacity")
    ((unit, amount),) = asked.items()
    if not str(amount).isascii() or not str(amount).isdigit() or int(str(amount)) < 1:
        raise NotPlain(f"request {name} asks for {amount} {unit}, which is not a whole number")
    return unit, int(str(amount))
