"""Pod specs: where workloads have them, and their containers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from bridge.convert.shares import Role
from bridge.convert.stream import Object
from bridge.convert.values import Path, Value, get

POD_SPECS: Mapping[tuple[str, str], Path] = {
    ("", "Pod"): ("spec",),
    ("apps", "Deployment"): ("spec", "template", "spec"),
    ("apps", "StatefulSet"): ("spec", "template", "spec"),
    ("apps", "DaemonSet"): ("spec", "template", "spec"),
    ("batch", "Job"): ("spec", "template", "spec"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template", "spec"),
}
"""By API group and kind."""

_ROLES = (("initContainers", Role.INIT), ("containers", Role.MAIN))
_NO_LABEL = re.compile(r"[^a-z0-9]+")
_LONGEST_LABEL = 63


def pod_spec(thing: Object) -> Path | None:
    """The path of a workload's pod spec in its object; None for what is no workload or has no spec."""
    path = POD_SPECS.get((thing.group, thing.kind))
    return path if path and isinstance(get(thing.value, path), dict) else None


def containers(spec: Value) -> Iterator[tuple[Path, Role, dict[str, Value]]]:
    """The containers in the order in which they start: path in the pod spec, role, as written."""
    for field, role in _ROLES:
        listed = get(spec, (field,))
        for i, container in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(container, dict):
                sidecar = role is Role.INIT and container.get("restartPolicy") == "Always"
                yield (field, i), Role.SIDECAR if sidecar else role, container


def label(text: str) -> str:
    """A DNS label made of any name."""
    return _NO_LABEL.sub("-", text.lower()).strip("-")[:_LONGEST_LABEL].rstrip("-") or "devices"


def free(name: str, taken: Mapping[str, object] | set[str]) -> str:
    """A name that is not taken: with a number behind it where it must be."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name[: _LONGEST_LABEL - len(str(number)) - 1].rstrip('-')}-{number}"
    return candidate
