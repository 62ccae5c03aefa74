"""Who asks for an extended resource: workloads by owner, and their pods. Pure: objects in, uses out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
Key = tuple[str, str, str]
"""Kind, namespace and name."""

KINDS = {
    "Deployment": "/apis/apps/v1/deployments",
    "StatefulSet": "/apis/apps/v1/statefulsets",
    "DaemonSet": "/apis/apps/v1/daemonsets",
    "ReplicaSet": "/apis/apps/v1/replicasets",
    "Job": "/apis/batch/v1/jobs",
    "CronJob": "/apis/batch/v1/cronjobs",
    "Pod": "/api/v1/pods",
}
"""What is looked through, pods last: other controllers show by their pods."""

_OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Use:
    """A workload that asks for an extended resource.

    Attributes:
        each: devices for one of its pods.
        pods: that it has now; 0 for one that is scaled down, or a CronJob between runs.
    """

    kind: str
    namespace: str
    name: str
    each: int
    pods: int

    def __str__(self) -> str:
        count = "no pods now" if not self.pods else "1 pod" if self.pods == 1 else f"{self.pods} pods"
        alone = self.kind == "Pod"
        return f"{self.kind} {self.namespace}/{self.name}" + ("" if alone else f" ({count})")


def uses(objects: Mapping[str, Iterable[Object]], resource: str) -> list[Use]:
    """Every owner that asks for a resource, itself or by a pod of it; `objects` by kind."""
    parents = dict(_parents(objects))
    asked: dict[Key, int] = {}
    pods: Counter[Key] = Counter()
    for kind in KINDS:
        for one in objects.get(kind, ()):
            each = _asked(_pod_spec(kind, one), resource)
            if not each:
                continue
            root = _root(_key(kind, one), parents)
            asked[root] = max(each, asked.get(root, 0))
            if kind == "Pod" and (one.get("status") or {}).get("phase") not in _OVER:
                pods[root] += 1
    # A pod or a Job that has ended asks for nothing any more.
    alive = {
        key: each for key, each in asked.items() if key[0] not in ("Pod", "Job", "ReplicaSet") or pods[key]
    }
    return [Use(*key, each, pods[key]) for key, each in sorted(alive.items())]


def _parents(objects: Mapping[str, Iterable[Object]]) -> Iterator[tuple[Key, Key]]:
    """Who controls whom."""
    for kind in KINDS:
        for one in objects.get(kind, ()):
            for owner in one["metadata"].get("ownerReferences") or ():
                if owner.get("controller"):
                    key = _key(kind, one)
                    yield key, (str(owner["kind"]), key[1], str(owner["name"]))


def _root(key: Key, parents: Mapping[Key, Key]) -> Key:
    while key in parents:
        key = parents[key]
    return key


def _key(kind: str, one: Object) -> Key:
    return kind, str(one["metadata"].get("namespace", "")), str(one["metadata"]["name"])


def _pod_spec(kind: str, one: Object) -> Object:
    spec: Object = one.get("spec") or {}
    if kind == "Pod":
        return spec
    if kind == "CronJob":
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    return (spec.get("template") or {}).get("spec") or {}


def _asked(spec: Object, resource: str) -> int:
    """Devices that one pod asks for; its init containers run before the others, sidecars beside them."""
    together = sum(_of(one, resource) for one in spec.get("containers") or ())
    first = 0
    for one in spec.get("initContainers") or ():
        if one.get("restartPolicy") == "Always":
            together += _of(one, resource)
        else:
            first = max(first, _of(one, resource))
    return max(together, first)


def _of(container: Object, resource: str) -> int:
    asked = container.get("resources") or {}
    said = (asked.get("limits") or {}).get(resource, (asked.get("requests") or {}).get(resource, 0))
    try:
        return int(said)
    except ValueError:
        return 1  # `1k`: how many does not matter here, that it asks does
