"""Extended resources of a pod on a node: which the device plugin's count serves, which DRA does (A.3, D-5004).

Pure: objects in, decisions out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.sandbox.cluster.allocator import Unschedulable
from bridge.sandbox.cluster.objects import (
    Object,
    containers,
    dig,
    extended_limits,
    init_containers,
    name_of,
    namespace_of,
    owner_reference,
    sidecar,
    terminal,
)
from bridge.sandbox.cluster.resources import Profile

IMPLICIT = "deviceclass.resource.kubernetes.io/"


@dataclass(frozen=True, slots=True)
class Mapping5004:
    """One container's request that DRA serves."""

    container: str
    resource: str
    request: str
    device_class: str
    count: int


@dataclass(frozen=True, slots=True)
class Split:
    """The requests of a pod that go to DRA on some node."""

    mappings: tuple[Mapping5004, ...]

    def status(self, claim: str) -> Object:
        """Return `status.extendedResourceClaimStatus`."""
        mappings = [
            {"containerName": m.container, "resourceName": m.resource, "requestName": m.request}
            for m in self.mappings
        ]
        return {"resourceClaimName": claim, "requestMappings": mappings}


def _wanted(pod: Object) -> Iterable[tuple[int, str, str, int]]:
    for index, container in enumerate([*init_containers(pod), *containers(pod)]):
        for name, count in extended_limits(container).items():
            yield index, container["name"], name, count


def _needs(pod: Object, *, all_of_it: bool = False) -> dict[str, int]:
    """Return what a pod needs at once of each resource, less what DRA already serves for it.

    `all_of_it`: as the scheduler counts the pods of a node, whoever serves them.
    """
    mapped = [] if all_of_it else dig(pod, "status.extendedResourceClaimStatus.requestMappings", [])
    backed = {(m["containerName"], m["resourceName"]) for m in mapped}
    total: dict[str, int] = {}
    ordinary: dict[str, int] = {}
    inits = {c["name"] for c in init_containers(pod) if not sidecar(c)}
    for _, container, name, count in _wanted(pod):
        if (container, name) in backed:
            continue
        if container in inits:
            ordinary[name] = max(ordinary.get(name, 0), count)
        else:
            total[name] = total.get(name, 0) + count
    return {name: max(total.get(name, 0), ordinary.get(name, 0)) for name in {*total, *ordinary}}


def class_for(resource: str, classes: Mapping[str, Object]) -> str | None:
    """Return the device class that an extended resource maps to: the newest, then the first by name."""
    if resource.startswith(IMPLICIT):
        name = resource.removeprefix(IMPLICIT)
        return name if name in classes else None
    mapped = [c for c in classes.values() if dig(c, "spec.extendedResourceName") == resource]
    mapped.sort(key=name_of)
    mapped.sort(key=lambda c: str(dig(c, "metadata.creationTimestamp", "")), reverse=True)
    return name_of(mapped[0]) if mapped else None


def split_requests(
    pod: Object, node: Object, pods: Iterable[Object], classes: Mapping[str, Object], profile: Profile
) -> Split:
    """Decide per resource: allocatable above 0 means the device plugin's count and nothing else; else DRA.

    Raises:
        Unschedulable: there is not enough.
    """
    allocatable = {name: int(n) for name, n in dig(node, "status.allocatable", {}).items() if "/" in name}
    used: dict[str, int] = {}
    for other in pods:
        if dig(other, "spec.nodeName") == name_of(node) and not terminal(other):
            for name, count in _needs(other, all_of_it=True).items():
                used[name] = used.get(name, 0) + count
    by_dra: dict[str, str] = {}
    for name, count in _needs(pod).items():
        there = allocatable.get(name, 0)
        device_class = class_for(name, classes) if profile.has("DRAExtendedResource") else None
        if there > 0 and used.get(name, 0) + count <= there:
            continue
        if there > 0 or device_class is None:
            raise Unschedulable(f"Insufficient {name}")
        by_dra[name] = device_class
    numbers: dict[int, int] = {}
    mappings = []
    for index, container, name, count in _wanted(pod):
        if name in by_dra:
            number = numbers.setdefault(index, 0)
            numbers[index] += 1
            request = f"container-{index}-request-{number}"
            mappings.append(Mapping5004(container, name, request, by_dra[name], count))
    return Split(tuple(mappings))


def extended_claim(pod: Object, split: Split, classes: Mapping[str, Object]) -> Object | None:
    """Return the special claim that serves a pod's extended resources by DRA; None if there are none."""
    if not split.mappings:
        return None
    requests = [
        {"name": m.request, "exactly": {"deviceClassName": m.device_class, "count": m.count}}
        for m in split.mappings
    ]
    return {
        "metadata": {
            "generateName": f"{name_of(pod)}-extended-resources-",
            "namespace": namespace_of(pod),
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [owner_reference("v1", "Pod", pod)],
        },
        "spec": {"devices": {"requests": requests}},
    }
