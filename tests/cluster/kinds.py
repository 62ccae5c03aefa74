"""Which API version a kind is usually read from, so that tests need not say it."""

from __future__ import annotations

_GROUPS = {
    "apps/v1": ("DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"),
    "batch/v1": ("CronJob", "Job"),
    "rbac.authorization.k8s.io/v1": ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    "apiextensions.k8s.io/v1": ("CustomResourceDefinition",),
}
_RESOURCE = ("DeviceClass", "DeviceTaintRule", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice")


def usual_version(kind: str, resource_api: str) -> str:
    """Give the API version of a kind; one that is not known here is taken for a core kind.

    Args:
        kind: such as `Pod`.
        resource_api: the version of `resource.k8s.io` that the cluster serves.
    """
    if kind in _RESOURCE:
        return f"resource.k8s.io/{resource_api}"
    return next((version for version, kinds in _GROUPS.items() if kind in kinds), "v1")
