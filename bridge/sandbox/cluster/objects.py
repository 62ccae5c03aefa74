"""Kubernetes objects as JSON, the error a server answers with, and the questions everybody asks of them."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as its JSON says it: the server is schema-less but for what it validates."""

_DOMAIN_LIMIT, _NAME_LIMIT = 253, 63
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


class ApiProblem(Exception):
    """An answer that is not success, as a real API server's Status object says it."""

    def __init__(self, status: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.details = status, reason, message, details or {}

    def as_status(self) -> Object:
        """Return the Status object of the answer's body."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.status,
        }


class Unserved(ApiProblem):
    """A path that the server does not know at all: it answers that in plain text."""


def not_found(plural: str, name: str) -> ApiProblem:
    """404 for a missing object."""
    return ApiProblem(404, "NotFound", f'{plural} "{name}" not found', {"name": name, "kind": plural})


def conflict(plural: str, name: str, why: str) -> ApiProblem:
    """409 for a write that lost against another."""
    message = f'Operation cannot be fulfilled on {plural} "{name}": {why}'
    return ApiProblem(409, "Conflict", message, {"name": name, "kind": plural})


def invalid(kind: str, name: str, causes: list[str]) -> ApiProblem:
    """422 with every cause."""
    text = causes[0] if len(causes) == 1 else "[" + ", ".join(causes) + "]"
    details = {"name": name, "kind": kind, "causes": [{"message": cause} for cause in causes]}
    return ApiProblem(422, "Invalid", f'{kind} "{name}" is invalid: {text}', details)


def now() -> str:
    """Return the time as Kubernetes writes it: UTC, whole seconds."""
    return stamp(datetime.datetime.now(datetime.UTC))


def stamp(when: datetime.datetime) -> str:
    """Write a point in time as Kubernetes does."""
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dig(obj: Mapping[str, Any] | None, path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, or `default` where any step is missing or null."""
    at: Any = obj
    for step in path.split("."):
        if not isinstance(at, dict) or (at := at.get(step)) is None:
            return default
    return at


def clone(obj: Object) -> Object:
    """Copy an object so that no two holders share a part of it."""
    copied: Object = _clone(obj)
    return copied


def _clone(value: Any) -> Any:
    # JSON is trees of few types: this is several times quicker than copy.deepcopy, and lists are long.
    if isinstance(value, dict):
        return {key: _clone(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clone(item) for item in value]
    return value


def meta(obj: Object) -> Object:
    """Return the metadata, made if missing."""
    found: Object = obj.setdefault("metadata", {})
    return found


def name_of(obj: Object) -> str:
    """Return metadata.name."""
    return str(dig(obj, "metadata.name", ""))


def namespace_of(obj: Object) -> str:
    """Return metadata.namespace; empty for cluster-scoped objects."""
    return str(dig(obj, "metadata.namespace", ""))


def uid_of(obj: Object) -> str:
    """Return metadata.uid."""
    return str(dig(obj, "metadata.uid", ""))


def label_of(obj: Object) -> str:
    """Return `namespace/name`, or the name alone for cluster-scoped objects: how people call it."""
    namespace = namespace_of(obj)
    return f"{namespace}/{name_of(obj)}" if namespace else name_of(obj)


def terminal(pod: Object) -> bool:
    """Say whether the pod has ended for good."""
    return dig(pod, "status.phase") in ("Failed", "Succeeded")


def containers(pod: Object) -> list[Object]:
    """Return the app containers."""
    found: list[Object] = dig(pod, "spec.containers", [])
    return found


def init_containers(pod: Object) -> list[Object]:
    """Return the init containers, sidecars included."""
    found: list[Object] = dig(pod, "spec.initContainers", [])
    return found


def sidecar(container: Object) -> bool:
    """Say whether an init container is a restartable one."""
    return container.get("restartPolicy") == "Always"


def extended_limits(container: Object) -> dict[str, int]:
    """Return the extended resources that a container asks for: name to whole number."""
    limits: Mapping[str, Any] = dig(container, "resources.limits", {})
    return {name: int(value) for name, value in limits.items() if is_extended(name)}


@functools.lru_cache(1024)
def is_extended(name: str) -> bool:
    """Say whether a name in a container's limits is an extended resource, DRA's own included (KEP-5004)."""
    return name.startswith("deviceclass.resource.kubernetes.io/") or may_register(name)


def may_register(name: str) -> bool:
    """Say whether a device plugin may register a resource of that name (A.2: IsExtendedResourceName)."""
    if "/" not in name or "kubernetes.io/" in name or name.startswith("requests."):
        return False
    domain, _, rest = name.partition("/")
    domain = f"requests.{domain}"  # as its quota would be called, which has to be a qualified name too
    good_domain = len(domain) <= _DOMAIN_LIMIT and all(_LABEL.fullmatch(part) for part in domain.split("."))
    return good_domain and len(rest) <= _NAME_LIMIT and _NAME.fullmatch(rest) is not None


def owner_reference(api_version: str, kind: str, owner: Object) -> Object:
    """Return a controlling owner reference."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
    }
