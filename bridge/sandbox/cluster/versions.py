"""Objects as a release sees them: bodies of older versions, and gated fields that it drops in silence.

Stored form is the v1 shape; v1beta1 is converted at the edge (kubelet-contract C.6).
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.sandbox.cluster.objects import Object, clone, dig
from bridge.sandbox.cluster.resources import DRA_GROUP, Profile, Resource

_DEVICE_BODY = (
    "attributes",
    "capacity",
    "taints",
    "consumesCounters",
    "bindsToNode",
    "bindingConditions",
    "bindingFailureConditions",
    "allowMultipleAllocations",
    "nodeName",
    "nodeSelector",
    "allNodes",
)
_SLICE = (
    "driver",
    "pool",
    "nodeName",
    "nodeSelector",
    "allNodes",
    "perDeviceNodeSelection",
    "devices",
    "sharedCounters",
)
"""All fields there are: a server drops unknown ones as it drops gated ones."""

_REQUEST_BODY = (
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "tolerations",
    "capacity",
)


def to_stored(resource: Resource, version: str, obj: Object) -> Object:
    """Convert a body received in `version` to the stored shape."""
    stored = clone(obj)
    stored["apiVersion"] = resource.api_version(version)
    stored["kind"] = resource.kind
    if resource.group == DRA_GROUP:
        stored["apiVersion"] = f"{DRA_GROUP}/v1"
        if version == "v1beta1":
            _each_body(resource, stored, _unwrap_device, _nest_request)
    return stored


def to_served(resource: Resource, version: str, obj: Object) -> Object:
    """Convert a stored object to the shape of `version`."""
    served = clone(obj)
    served["apiVersion"] = resource.api_version(version)
    served["kind"] = resource.kind
    if resource.group == DRA_GROUP and version == "v1beta1":
        _each_body(resource, served, _wrap_device, _flatten_request)
    return served


def _each_body(
    resource: Resource, obj: Object, device: Callable[[Object], Object], request: Callable[[Object], Object]
) -> None:
    match resource.plural:
        case "resourceslices":
            if devices := dig(obj, "spec.devices"):
                obj["spec"]["devices"] = [device(item) for item in devices]
        case "resourceclaims":
            if requests := dig(obj, "spec.devices.requests"):
                obj["spec"]["devices"]["requests"] = [request(item) for item in requests]
        case "resourceclaimtemplates":
            if requests := dig(obj, "spec.spec.devices.requests"):
                obj["spec"]["spec"]["devices"]["requests"] = [request(item) for item in requests]


def _wrap_device(device: Object) -> Object:
    basic = {key: device[key] for key in _DEVICE_BODY if key in device}
    return {"name": device.get("name"), "basic": basic}


def _unwrap_device(device: Object) -> Object:
    return {"name": device.get("name"), **(device.get("basic") or {})}


def _flatten_request(request: Object) -> Object:
    flat = {key: value for key, value in request.items() if key != "exactly"}
    return {**flat, **(request.get("exactly") or {})}


def _nest_request(request: Object) -> Object:
    body = {key: request[key] for key in _REQUEST_BODY if key in request}
    nested = {key: value for key, value in request.items() if key not in _REQUEST_BODY}
    return {**nested, "exactly": body} if body else nested


def drop_gated(profile: Profile, resource: Resource, obj: Object) -> Object:
    """Return the object without the fields whose feature gate is off, as a server does: without a word."""
    kept = clone(obj)
    match resource.plural:
        case "resourceslices":
            _drop_slice(profile, kept)
        case "resourceclaims":
            _drop_requests(profile, dig(kept, "spec.devices.requests", []))
            _drop_results(profile, kept)
        case "resourceclaimtemplates":
            _drop_requests(profile, dig(kept, "spec.spec.devices.requests", []))
        case "deviceclasses" if not profile.has("DRAExtendedResource"):
            (kept.get("spec") or {}).pop("extendedResourceName", None)
        case "pods":
            _drop_pod(profile, kept)
    return kept


def _pop(obj: Object, *keys: str) -> None:
    for key in keys:
        obj.pop(key, None)


def _keep(obj: Object, known: tuple[str, ...]) -> None:
    _pop(obj, *(set(obj) - set(known)))


def _drop_slice(profile: Profile, kept: Object) -> None:
    spec = kept.get("spec") or {}
    _keep(spec, _SLICE)
    for device in spec.get("devices") or []:
        _keep(device, ("name", *_DEVICE_BODY))
    if not profile.has("DRAPartitionableDevices"):
        _pop(spec, "sharedCounters", "perDeviceNodeSelection")
    for device in spec.get("devices") or []:
        if not profile.has("DRADeviceTaints"):
            _pop(device, "taints")
        if not profile.has("DRAPartitionableDevices"):
            _pop(device, "consumesCounters", "nodeName", "nodeSelector", "allNodes")
        if not profile.has("DRADeviceBindingConditions"):
            _pop(device, "bindsToNode", "bindingConditions", "bindingFailureConditions")
        if not profile.has("DRAConsumableCapacity"):
            _pop(device, "allowMultipleAllocations")
            for capacity in (device.get("capacity") or {}).values():
                _pop(capacity, "requestPolicy")


def _drop_requests(profile: Profile, requests: list[Object]) -> None:
    for request in requests:
        if not profile.has("DRAPrioritizedList"):
            _pop(request, "firstAvailable")
        for body in [request.get("exactly") or {}, *(request.get("firstAvailable") or [])]:
            if not profile.has("DRADeviceTaints"):
                _pop(body, "tolerations")
            if not profile.has("DRAAdminAccess"):
                _pop(body, "adminAccess")
            if not profile.has("DRAConsumableCapacity"):
                _pop(body, "capacity")


def _drop_results(profile: Profile, kept: Object) -> None:
    if not profile.has("DRAResourceClaimDeviceStatus"):
        (kept.get("status") or {}).pop("devices", None)
    for result in dig(kept, "status.allocation.devices.results", []):
        if not profile.has("DRAConsumableCapacity"):
            _pop(result, "shareID", "consumedCapacity")
        if not profile.has("DRADeviceBindingConditions"):
            _pop(result, "bindingConditions", "bindingFailureConditions")


def _drop_pod(profile: Profile, kept: Object) -> None:
    status = kept.get("status") or {}
    if not profile.has("DRAExtendedResource"):
        _pop(status, "extendedResourceClaimStatus")
    if not profile.has("ResourceHealthStatus"):
        for container in status.get("containerStatuses") or []:
            _pop(container, "allocatedResourcesStatus")
