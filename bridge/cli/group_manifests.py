"""What the groups of a configuration need in the cluster beside the daemon itself. Pure: values in, values out.

As `kustomize/base` has it for its one group. The admission policy is not among it: it goes by the daemon's account and
its node, and names no group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.config import Config, Group
from bridge.convert.versions import ApiVersion

ACCOUNT = "device-bridge"
"""ServiceAccount of the daemon; the admission policy goes by this name, so it cannot be another."""

NAMESPACE = "device-bridge"

_ROLE = f"{ACCOUNT}-drivers"
_LABELS = {"app.kubernetes.io/name": ACCOUNT}
_RBAC = "rbac.authorization.k8s.io"

Object = dict[str, Any]


def manifests(
    config: Config, namespace: str = NAMESPACE, version: ApiVersion = ApiVersion.V1
) -> Iterator[Object]:
    """A DeviceClass for each group, and the right to set conditions on devices of their drivers.

    Args:
        config: the configuration.
        namespace: where the daemon's ServiceAccount is.
        version: of `resource.k8s.io`. Before v1 a class carries no resource name, see `without_name`.
    """
    for group in config.groups:
        yield _device_class(group, version)
    yield from _rights([group.driver_name for group in config.groups], namespace)


def without_name(config: Config, version: ApiVersion) -> Sequence[Group]:
    """The groups that are to keep their resource name, and cannot with this version of the API."""
    return [] if version is ApiVersion.V1 else [group for group in config.groups if group.keep_resource_name]


def _device_class(group: Group, version: ApiVersion) -> Object:
    carries = group.keep_resource_name and version is ApiVersion.V1
    return _object(
        f"resource.k8s.io/{version}",
        "DeviceClass",
        group.driver_name,
        spec={
            "selectors": [{"cel": {"expression": f"device.driver == '{group.driver_name}'"}}],
            **({"extendedResourceName": group.resource_name} if carries else {}),
        },
    )


def _rights(drivers: Sequence[str], namespace: str) -> Iterator[Object]:
    rule = {
        "apiGroups": ["resource.k8s.io"],
        "resources": ["resourceclaims/driver"],
        "resourceNames": list(drivers),
        "verbs": ["associated-node:patch"],
    }
    yield _object(f"{_RBAC}/v1", "ClusterRole", _ROLE, rules=[rule])
    yield _object(
        f"{_RBAC}/v1",
        "ClusterRoleBinding",
        _ROLE,
        roleRef={"apiGroup": _RBAC, "kind": "ClusterRole", "name": _ROLE},
        subjects=[{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    )


def _object(version: str, kind: str, name: str, **more: object) -> Object:
    metadata: Mapping[str, object] = {"name": name, "labels": dict(_LABELS)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}
