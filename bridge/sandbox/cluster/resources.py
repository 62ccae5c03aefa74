"""Which resources the API server serves, in which versions, and which fields may be selected on.

`Profile` is one Kubernetes release as far as a node can tell it from another: served versions, feature gates
that keep or drop fields (kubelet-contract C.6, D), kubelet abilities.
"""

from __future__ import annotations

from dataclasses import dataclass

DRA_GROUP = "resource.k8s.io"

BUILT_IN = ("", "apps", "batch", DRA_GROUP)
"""Groups whose objects may be replaced without a resourceVersion; custom resources may not."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource type.

    Attributes:
        group, plural, kind: its names; the core group is empty.
        versions: served versions; the first is the storage's.
        namespaced: whether objects live in a namespace.
        status: whether `/status` is a subresource of its own.
        fields: field selectors beyond metadata.name and metadata.namespace.
    """

    group: str
    plural: str
    kind: str
    versions: tuple[str, ...] = ("v1",)
    namespaced: bool = True
    status: bool = False
    fields: tuple[str, ...] = ()

    def api_version(self, version: str) -> str:
        """Return the apiVersion of an object served in `version`."""
        return f"{self.group}/{version}" if self.group else version


CORE = (
    Resource("", "nodes", "Node", namespaced=False, status=True),
    Resource(
        "",
        "pods",
        "Pod",
        status=True,
        fields=("spec.nodeName", "status.phase", "status.nominatedNodeName", "spec.schedulerName"),
    ),
    Resource("", "namespaces", "Namespace", namespaced=False, status=True),
    Resource("", "serviceaccounts", "ServiceAccount"),
    Resource("", "configmaps", "ConfigMap"),
    Resource(
        "",
        "events",
        "Event",
        fields=("involvedObject.kind", "involvedObject.name", "involvedObject.uid", "reason", "type"),
    ),
    Resource("", "resourcequotas", "ResourceQuota", status=True),
    Resource("apps", "daemonsets", "DaemonSet", status=True),
    Resource("apps", "deployments", "Deployment", status=True),
    Resource("apps", "replicasets", "ReplicaSet", status=True),
    Resource("apps", "statefulsets", "StatefulSet", status=True),
    Resource("batch", "jobs", "Job", status=True),
    Resource("batch", "cronjobs", "CronJob", status=True),
)
"""Stored, and no more: nobody here makes pods of a workload, or counts against a quota."""

NODE_BRIDGES = Resource(
    "device-bridge.io", "nodebridges", "NodeBridge", ("v1alpha1",), namespaced=False, status=True
)
"""What the CustomResourceDefinition of kustomize/base adds, served from the start: `registry.withdraw` takes it out."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one Kubernetes release does differently from another.

    Attributes:
        name: the minor release.
        git_version: what `/version` says.
        resource_versions: served versions of resource.k8s.io.
        features: feature gates that are on; the fields of the others are dropped in silence.
        dra_services: DRA versions that the kubelet supports.
        wipe_at_once: whether slices go without a delay when a driver's last instance does (before 1.33).
        retries_registration: whether the plugin watcher comes again where a handler failed to take a plugin that it
            had found good; before, only a new socket brings it back.
        many_endpoints: whether a resource's plugins are known apart, so that the end of one leaves another alone;
            before, the end of a replaced plugin also ended its successor (kubernetes#121994).
        skips_dra_extended: whether the device manager leaves a DRA-backed extended resource alone.
    """

    name: str
    git_version: str
    resource_versions: tuple[str, ...]
    features: frozenset[str]
    dra_services: tuple[str, ...] = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
    wipe_at_once: bool = False
    skips_dra_extended: bool = True
    retries_registration: bool = True
    many_endpoints: bool = True

    @property
    def old_dra(self) -> bool:
        """Whether the kubelet's DRA manager is that of 1.32: other words, claims entered before they are checked."""
        return "v1.DRAPlugin" not in self.dra_services

    def has(self, feature: str) -> bool:
        """Say whether a feature gate is on."""
        return feature in self.features

    def resources(self) -> tuple[Resource, ...]:
        """Return everything served."""
        versions = self.resource_versions
        if not versions:
            return (*CORE, NODE_BRIDGES)
        return (
            *CORE,
            NODE_BRIDGES,
            Resource(
                DRA_GROUP,
                "resourceslices",
                "ResourceSlice",
                versions,
                namespaced=False,
                fields=("spec.nodeName", "spec.driver"),
            ),
            Resource(DRA_GROUP, "resourceclaims", "ResourceClaim", versions, status=True),
            Resource(DRA_GROUP, "resourceclaimtemplates", "ResourceClaimTemplate", versions),
            Resource(DRA_GROUP, "deviceclasses", "DeviceClass", versions, namespaced=False),
        )


_1_34 = frozenset({"DRAPrioritizedList", "DRAResourceClaimDeviceStatus", "DRAAdminAccess", "PodResourcesDRA"})
_1_37 = _1_34 | {
    "DRAExtendedResource",
    "DRADeviceTaints",
    "DRAConsumableCapacity",
    "DRAPartitionableDevices",
    "DRADeviceBindingConditions",
    "ResourceHealthStatus",
    "DRAResourceClaimGranularStatusAuthorization",
}

PROFILES = {
    "1.37": Profile("1.37", "v1.37.1", ("v1",), _1_37),
    "1.34": Profile(
        "1.34",
        "v1.34.4",
        ("v1",),
        _1_34,
        skips_dra_extended=False,
        retries_registration=False,
        many_endpoints=False,
    ),
    "1.32": Profile(
        "1.32",
        "v1.32.2",
        ("v1beta1",),
        frozenset(),
        dra_services=("v1beta1.DRAPlugin",),
        wipe_at_once=True,
        skips_dra_extended=False,
        retries_registration=False,
        many_endpoints=False,
    ),
    "1.31": Profile("1.31", "v1.31.0", (), frozenset(), dra_services=(), skips_dra_extended=False),
}
