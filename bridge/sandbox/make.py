"""Objects that a tour or a test makes: pods, claims, templates, classes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.sandbox.cluster.objects import Object
from bridge.sandbox.kubelet.runtime import EXIT_CODE, RUN_SECONDS, STOP_SECONDS


def container(
    name: str = "main",
    *,
    limits: Mapping[str, int] | None = None,
    claims: Sequence[str] = (),
    always: bool = False,
) -> Object:
    """Return a container.

    Args:
        name: its name.
        limits: extended resources, name to count.
        claims: names of the pod's claims, each also as `name/request`.
        always: for an init container: a sidecar.
    """
    resources: Object = {}
    if limits:
        amounts = {resource: str(count) for resource, count in limits.items()}
        resources |= {"limits": amounts, "requests": amounts}
    if claims:
        parts = [claim.partition("/") for claim in claims]
        resources["claims"] = [{"name": n, "request": r} if r else {"name": n} for n, _, r in parts]
    made: Object = {"name": name, "image": "sandbox", "resources": resources}
    return {**made, "restartPolicy": "Always"} if always else made


def pod(
    name: str,
    *,
    limits: Mapping[str, int] | None = None,
    claims: Mapping[str, str] | None = None,
    templates: Mapping[str, str] | None = None,
    containers: Sequence[Object] = (),
    init: Sequence[Object] = (),
    run_seconds: float | None = None,
    exit_code: int = 0,
    stop_seconds: float = 0,
    restart: str = "Never",
    grace: int = 30,
    node: str = "",
    namespace: str = "default",
) -> Object:
    """Return a pod; without `containers` it has one, `main`, with all limits and claims.

    Args:
        name: its name.
        limits: extended resources of `main`.
        claims: name inside the pod to the ResourceClaim's name.
        templates: name inside the pod to the ResourceClaimTemplate's name.
        containers, init: its containers, where `main` is not enough.
        run_seconds: how long containers run; None: until stopped.
        exit_code: of containers that end by themselves.
        stop_seconds: how long containers take to obey.
        restart: restartPolicy.
        grace: terminationGracePeriodSeconds.
        node: preset nodeName, past the scheduler (H32).
        namespace: its namespace.
    """
    entries: list[Object] = [{"name": n, "resourceClaimName": c} for n, c in (claims or {}).items()]
    entries += [{"name": n, "resourceClaimTemplateName": t} for n, t in (templates or {}).items()]
    annotations = {EXIT_CODE: str(exit_code), STOP_SECONDS: str(stop_seconds)}
    if run_seconds is not None:
        annotations[RUN_SECONDS] = str(run_seconds)
    spec: Object = {
        "containers": list(containers) or [container(limits=limits, claims=[e["name"] for e in entries])],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": grace,
    }
    if init:
        spec["initContainers"] = list(init)
    if entries:
        spec["resourceClaims"] = entries
    if node:
        spec["nodeName"] = node
    return {"metadata": {"name": name, "namespace": namespace, "annotations": annotations}, "spec": spec}


def request(
    device_class: str,
    name: str = "req",
    *,
    count: int = 1,
    all_devices: bool = False,
    admin: bool = False,
    tolerations: Sequence[Object] = (),
    capacity: Mapping[str, str] | None = None,
) -> Object:
    """Return one device request."""
    body: Object = {"deviceClassName": device_class, "allocationMode": "All" if all_devices else "ExactCount"}
    if not all_devices:
        body["count"] = count
    if admin:
        body["adminAccess"] = True
    if tolerations:
        body["tolerations"] = list(tolerations)
    if capacity:
        body["capacity"] = {"requests": dict(capacity)}
    return {"name": name, "exactly": body}


def _opaque(driver: str, parameters: Object, requests: Sequence[str]) -> Object:
    entry: Object = {"opaque": {"driver": driver, "parameters": parameters}}
    return {**entry, "requests": list(requests)} if requests else entry


def claim_spec(*requests: Object, driver: str = "", parameters: Object | None = None) -> Object:
    """Return a claim's spec, with opaque parameters for all requests if given."""
    devices: Object = {"requests": list(requests)}
    if parameters is not None:
        devices["config"] = [_opaque(driver, parameters, ())]
    return {"devices": devices}


def claim(name: str, spec: Object, namespace: str = "default") -> Object:
    """Return a ResourceClaim."""
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def template(name: str, spec: Object, namespace: str = "default") -> Object:
    """Return a ResourceClaimTemplate."""
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"spec": spec}}


def device_class(name: str, driver: str, *, extended: str = "", parameters: Object | None = None) -> Object:
    """Return a DeviceClass of all devices of a driver."""
    spec: Object = {"selectors": [{"cel": {"expression": f'device.driver == "{driver}"'}}]}
    if extended:
        spec["extendedResourceName"] = extended
    if parameters is not None:
        spec["config"] = [_opaque(driver, parameters, ())]
    return {"metadata": {"name": name}, "spec": spec}
