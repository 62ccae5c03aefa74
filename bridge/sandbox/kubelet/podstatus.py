"""A pod's status from what its containers, devices and claims are now: reads, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bridge.sandbox.cluster.objects import Object, containers, dig, init_containers, uid_of
from bridge.sandbox.kubelet.runtime import Container

if TYPE_CHECKING:
    from bridge.sandbox.kubelet.pods import Parts

Waiting = Mapping[str, tuple[str, str]]
"""Per container that cannot start: reason and message."""


def status_of(parts: Parts, pod: Object, waiting: Waiting, *, ended: bool = False) -> Object:
    """Return the status to write: phase and container statuses."""
    latest = {c["name"]: parts.runtime.latest(uid_of(pod), c["name"]) for c in _all(pod)}
    return {
        "phase": _phase(pod, latest, ended),
        "containerStatuses": [_container(parts, pod, c, latest[c["name"]], waiting) for c in containers(pod)],
        "initContainerStatuses": [
            _container(parts, pod, c, latest[c["name"]], waiting) for c in init_containers(pod)
        ],
    }


def _all(pod: Object) -> list[Object]:
    return [*init_containers(pod), *containers(pod)]


def _phase(pod: Object, latest: Mapping[str, Container | None], ended: bool) -> str:
    apps = [latest[c["name"]] for c in containers(pod)]
    if ended:
        good = all(app is not None and not app.running and app.exit_code == 0 for app in apps)
        return "Succeeded" if good else "Failed"
    return "Running" if all(app is not None for app in apps) else "Pending"


def _container(
    parts: Parts, pod: Object, container: Object, now: Container | None, waiting: Waiting
) -> Object:
    name = container["name"]
    state: Object
    if name in waiting:
        reason, message = waiting[name]
        state = {"waiting": {"reason": reason, "message": message}}
    elif now is None:
        state = {"waiting": {"reason": "ContainerCreating"}}
    elif now.running:
        state = {"running": {}}
    else:
        reason = "Completed" if now.exit_code == 0 else "Error"
        state = {"terminated": {"exitCode": now.exit_code, "reason": reason}}
    status: Object = {
        "name": name,
        "ready": now is not None and now.running and name not in waiting,
        "restartCount": now.attempt if now is not None else 0,
        "state": state,
        "containerID": f"sandbox://{now.id}" if now is not None else "",
    }
    if parts.context.profile.has("ResourceHealthStatus") and (health := _health(parts, pod, container)):
        status["allocatedResourcesStatus"] = health
    return status


def _health(parts: Parts, pod: Object, container: Object) -> list[Object]:
    """Return allocatedResourcesStatus: device plugin ids by resource, DRA devices by claim and request."""
    found: list[Object] = []
    for resource, grant in parts.devices.allocations.of(uid_of(pod), container["name"]).items():
        healthy = parts.devices.healthy.get(resource, set())
        listed = parts.devices.listed.get(resource, {})
        words = {
            one: "Healthy" if one in healthy else "Unhealthy" if one in listed else "Unknown"
            for one in grant.ids
        }
        devices = [{"resourceID": one, "health": words[one]} for one in sorted(grant.ids)]
        found.append({"name": resource, "resources": devices})
    by_name = {entry["name"]: entry for entry in dig(pod, "spec.resourceClaims", [])}
    for inside, info, request in parts.dra.infos(pod, container):
        if inside not in by_name:
            continue
        resources = []
        for driver, device in info.devices(request):
            health = parts.dra.health_of(driver, device.pool, device.device)
            entry: Object = {
                "resourceID": device.cdi_ids[0]
                if device.cdi_ids
                else f"{driver}/{device.pool}/{device.device}",
                "health": health.word if health is not None else "Unknown",
            }
            if health is not None and health.message:
                entry["message"] = health.message
            resources.append(entry)
        name = f"claim:{inside}/{request}" if request else f"claim:{inside}"
        found.append({"name": name, "resources": resources})
    return found
