"""Discovery documents (`/api`, `/apis`, groups, versions, `/version`), and the two names of events."""

from __future__ import annotations

from bridge.sandbox.cluster.objects import Object
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.resources import Resource

_EVENTS = "events.k8s.io"

_AUTHORIZATION = "/apis/authorization.k8s.io/v1"

ACCESS_REVIEWS = {
    f"{_AUTHORIZATION}/selfsubjectaccessreviews": "selfsubjectaccessreviews",
    f"{_AUTHORIZATION}/subjectaccessreviews": "subjectaccessreviews",
}
"""Where a client asks what it, or somebody else, may do; nothing is stored there."""

_EVENT_NAMES = {"note": "message", "regarding": "involvedObject", "reportingController": "reportingComponent"}
"""Fields of events.k8s.io that the core group calls otherwise."""


def storage_group(group: str, plural: str) -> str:
    """Return the group under which a resource is stored: both kinds of events are one."""
    return "" if group == _EVENTS and plural == "events" else group


def rename_event(group: str, obj: Object, *, stored: bool) -> Object:
    """Convert an event of events.k8s.io to the stored (core) names, or back; other objects pass through."""
    if group != _EVENTS:
        return obj
    names = _EVENT_NAMES if stored else {core: name for name, core in _EVENT_NAMES.items()}
    renamed = {names.get(key, key): value for key, value in obj.items()}
    return {**renamed, "apiVersion": "v1" if stored else f"{_EVENTS}/v1"}


def answer(registry: Registry, path: str) -> Object | None:
    """Return the document at a path, or None if the path is none of discovery's."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["version"]:
            major, minor = registry.profile.name.split(".")
            return {"major": major, "minor": minor, "gitVersion": registry.profile.git_version}
        case ["healthz" | "livez" | "readyz"]:
            return {"status": "ok"}
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(registry)}
        case ["apis", group]:
            return next((g for g in _groups(registry) if g["name"] == group), None)
        case ["api", version]:
            return _resources(registry, "", version)
        case ["apis", group, version]:
            return _resources(registry, group, version)
    return None


def _versions(registry: Registry) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {_EVENTS: ["v1"]}
    for resource in registry.resources():
        if resource.group:
            known = versions.setdefault(resource.group, [])
            known += [v for v in resource.versions if v not in known]
    return versions


def _groups(registry: Registry) -> list[Object]:
    groups = []
    for group, versions in sorted(_versions(registry).items()):
        served = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        groups.append(
            {
                "kind": "APIGroup",
                "apiVersion": "v1",
                "name": group,
                "versions": served,
                "preferredVersion": served[0],
            }
        )
    return groups


def _resources(registry: Registry, group: str, version: str) -> Object | None:
    found: list[Object] = []
    for resource in registry.resources():
        if (resource.group == group and version in resource.versions) or (
            group == _EVENTS and resource.plural == "events"
        ):
            found += _entries(resource)
    if not found:
        return None
    served = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": served, "resources": found}


def _entries(resource: Resource) -> list[Object]:
    verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.kind.lower(),
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs,
    }
    if not resource.status:
        return [entry]
    return [entry, {**entry, "name": f"{resource.plural}/status", "verbs": ["get", "patch", "update"]}]
