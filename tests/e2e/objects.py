"""Manifests of what the tests make, in the shape of each served version of DRA.

Values only: nothing here speaks to a cluster. The namespace is filled in by who applies them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.cluster import PROBE

Manifest = dict[str, Any]

JOURNAL_FOLDER = "/run/e2e-journal"
"""On the node; containers that keep a journal see it at `/journal`."""

_GRACE_S = 2


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a claim for `count` devices of a class.

    Attributes:
        name: of the request.
        device_class: the DeviceClass.
        count: how many devices.
        admin: whether it asks for admin access.
        selector: a CEL expression; empty for any device of the class.
    """

    name: str
    device_class: str
    count: int = 1
    admin: bool = False
    selector: str = ""

    def body(self, version: str) -> Manifest:
        """As a version of `resource.k8s.io` has it: v1beta1 knows no `exactly`."""
        exactly: Manifest = {"deviceClassName": self.device_class, "count": self.count}
        if self.admin:
            exactly["adminAccess"] = True
        if self.selector:
            exactly["selectors"] = [{"cel": {"expression": self.selector}}]
        flat = version == "v1beta1"
        return {"name": self.name, **exactly} if flat else {"name": self.name, "exactly": exactly}


@dataclass(frozen=True, slots=True)
class FirstAvailable:
    """A request that the first alternative which can be had satisfies (KEP 4816; from v1 here)."""

    name: str
    alternatives: tuple[Request, ...]

    def body(self, version: str) -> Manifest:
        """As v1 has it."""
        assert version == "v1", f"prioritized lists are not served by {version} here"
        below = [{"name": a.name, "deviceClassName": a.device_class} for a in self.alternatives]
        return {"name": self.name, "firstAvailable": below}


@dataclass(frozen=True, slots=True)
class Opaque:
    """Parameters of a driver, in a class or a claim; `requests` is for claims."""

    driver: str
    parameters: Manifest
    requests: tuple[str, ...] = ()

    def body(self) -> Manifest:
        """As all versions have it."""
        of = {"requests": list(self.requests)} if self.requests else {}
        return {**of, "opaque": {"driver": self.driver, "parameters": self.parameters}}


@dataclass(frozen=True, slots=True)
class Dra:
    """Builds the objects of `resource.k8s.io` for the version that a cluster serves."""

    version: str

    def device_class(
        self, name: str, expression: str, *config: Opaque, extended_resource: str = ""
    ) -> Manifest:
        """A class of the devices that a CEL expression selects; `extended_resource` needs 1.36 (KEP 5004)."""
        spec: Manifest = {"selectors": [{"cel": {"expression": expression}}]}
        if config:
            spec["config"] = [one.body() for one in config]
        if extended_resource:
            spec["extendedResourceName"] = extended_resource
        return self._object("DeviceClass", name, spec)

    def claim(
        self, name: str, *requests: Request | FirstAvailable, config: Sequence[Opaque] = ()
    ) -> Manifest:
        """A ResourceClaim."""
        return self._object("ResourceClaim", name, self._claim_spec(requests, config))

    def template(
        self, name: str, *requests: Request | FirstAvailable, config: Sequence[Opaque] = ()
    ) -> Manifest:
        """A ResourceClaimTemplate."""
        return self._object("ResourceClaimTemplate", name, {"spec": self._claim_spec(requests, config)})

    def _claim_spec(self, requests: Sequence[Request | FirstAvailable], config: Sequence[Opaque]) -> Manifest:
        devices: Manifest = {"requests": [request.body(self.version) for request in requests]}
        if config:
            devices["config"] = [one.body() for one in config]
        return {"devices": devices}

    def _object(self, kind: str, name: str, spec: Manifest) -> Manifest:
        return {
            "apiVersion": f"resource.k8s.io/{self.version}",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }


@dataclass(frozen=True, slots=True)
class Container:
    """One container.

    Attributes:
        command: a shell script, or the words of a command.
        name: of the container.
        resources: extended resources by name.
        claims: names of the pod's claims that it uses.
        user: the user it runs as; None for the image's, which is root.
        sidecar: for an init container that runs on beside the others.
    """

    command: str | Sequence[str]
    name: str = "main"
    resources: Mapping[str, int] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    user: int | None = None
    sidecar: bool = False

    def body(self) -> Manifest:
        """As a pod has it; its journal's folder is mounted, `POD_NAME` set."""
        script = isinstance(self.command, str)
        amounts = {name: str(count) for name, count in self.resources.items()}
        body: Manifest = {
            "name": self.name,
            "image": PROBE,
            "command": ["sh", "-c", self.command] if script else list(self.command),
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [{"name": "journal", "mountPath": "/journal"}],
            "resources": {
                "limits": amounts,
                "requests": amounts,
                "claims": [{"name": name} for name in self.claims],
            },
        }
        if self.user is not None:
            body["securityContext"] = {"runAsUser": self.user, "runAsGroup": self.user}
        if self.sidecar:
            body["restartPolicy"] = "Always"
        return body


@dataclass(frozen=True, slots=True)
class PodClaim:
    """A claim of a pod: one that exists, or one that is made from a template."""

    name: str
    template: str = ""
    claim: str = ""

    def body(self) -> Manifest:
        """As a pod has it."""
        if self.template:
            return {"name": self.name, "resourceClaimTemplateName": self.template}
        return {"name": self.name, "resourceClaimName": self.claim}


def pod(
    name: str,
    *containers: Container,
    claims: Sequence[PodClaim] = (),
    init: Sequence[Container] = (),
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    """A pod that is not restarted."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": _pod_spec(containers, claims, init),
    }


def job(
    name: str,
    *containers: Container,
    claims: Sequence[PodClaim] = (),
    labels: Mapping[str, str] | None = None,
    backoff_limit: int = 100,
) -> Manifest:
    """A Job of one pod, begun anew each time it fails."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {
            "backoffLimit": backoff_limit,
            "template": {
                "metadata": {"labels": dict(labels or {})},
                "spec": _pod_spec(containers, claims, ()),
            },
        },
    }


def _pod_spec(
    containers: Sequence[Container], claims: Sequence[PodClaim], init: Sequence[Container]
) -> Manifest:
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "automountServiceAccountToken": False,
        "initContainers": [container.body() for container in init],
        "containers": [container.body() for container in containers],
        "resourceClaims": [claim.body() for claim in claims],
        "volumes": [{"name": "journal", "hostPath": {"path": JOURNAL_FOLDER, "type": "DirectoryOrCreate"}}],
    }
