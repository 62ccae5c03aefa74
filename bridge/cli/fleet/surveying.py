"""Looks at a cluster for `bridge plan`. Reads, and creations that are dry runs: nothing is touched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from bridge.cli.fleet.cluster import Cluster, ClusterError, Object
from bridge.cli.fleet.nodes import chosen, daemons, name_of
from bridge.cli.fleet.states import NO_CRD, State
from bridge.cli.fleet.survey import Kept, Right, Survey, Unknown
from bridge.cli.fleet.watching import Bridges, NoBridges
from bridge.cli.fleet.workloads import KINDS

DRA = "resource.k8s.io"
VERSIONS = ("v1", "v1beta2", "v1beta1")
"""What the bridge speaks, best first."""

T = TypeVar("T")


def look(cluster: Cluster, names: Sequence[str], selector: str, rights: Collection[Right]) -> Survey:
    """Look at a cluster; `rights` are those that a daemon needs.

    Raises:
        Problem: the nodes cannot be chosen, or the cluster cannot be asked at all.
    """
    everywhere = chosen(cluster, (), "")
    states, pods = _states(cluster), _try(lambda: daemons(cluster))
    picked = chosen(cluster, names, selector) if names or selector else everywhere
    if not (names or selector):
        known = {
            *(states if isinstance(states, Mapping) else ()),
            *(pods if isinstance(pods, Mapping) else ()),
        }
        picked = [one for one in picked if name_of(one) in known]
    served = _served(cluster)
    path = f"/apis/{DRA}/{served[0]}" if served else ""
    return Survey(
        nodes=picked,
        everywhere=everywhere,
        states=states,
        daemons=pods,
        server=str(cluster.get("/version").get("gitVersion", "unknown")),
        served=served,
        classes=_all(cluster, f"{path}/deviceclasses") if path else (),
        slices=_all(cluster, f"{path}/resourceslices") if path else (),
        quotas=_all(cluster, "/api/v1/resourcequotas"),
        workloads=_workloads(cluster),
        kept=_kept(cluster, served, [name_of(one) for one in picked]),
        lacking=_lacking(cluster, pods, rights),
    )


def _try(look_at: Callable[[], T]) -> T | Unknown:
    """A thing, or why it could not be looked at; a cluster that does not answer at all is an error."""
    try:
        return look_at()
    except ClusterError as error:
        if error.status == 0:
            raise
        return Unknown(error.said)


def _all(cluster: Cluster, path: str) -> Sequence[Object] | Unknown:
    return _try(lambda: cluster.all(path).items)


def _states(cluster: Cluster) -> Mapping[str, State] | Unknown:
    try:
        return _try(lambda: Bridges(cluster).read())
    except NoBridges:
        return Unknown(NO_CRD)


def _served(cluster: Cluster) -> list[str]:
    found = (cluster.find(f"/apis/{DRA}") or {}).get("versions") or []
    versions = {str(one.get("version")) for one in found}
    return [version for version in VERSIONS if version in versions]


def _workloads(cluster: Cluster) -> Mapping[str, Sequence[Object]] | Unknown:
    found: dict[str, Sequence[Object]] = {}
    for kind, path in KINDS.items():
        listed = _all(cluster, path)
        if isinstance(listed, Unknown):
            return listed
        found[kind] = listed
    return found


def _kept(cluster: Cluster, served: Sequence[str], nodes: Sequence[str]) -> Kept:
    if not served:
        nothing = Unknown(f"{DRA} is not served")
        return Kept(nothing, nothing, nothing)
    version = served[0]
    name = _probe(cluster, version, "deviceclasses", _class())
    device = _probe(cluster, version, "resourceslices", _slice(version, nodes[0] if nodes else "plan"))
    if not isinstance(device, Unknown):
        first = (device["spec"].get("devices") or [{}])[0]
        device = first.get("basic", first)
    return Kept(
        name if isinstance(name, Unknown) else "extendedResourceName" in name["spec"],
        device if isinstance(device, Unknown) else bool(device.get("bindingConditions")),
        device if isinstance(device, Unknown) else bool(device.get("taints")),
    )


def _probe(cluster: Cluster, version: str, plural: str, body: Object) -> Object | Unknown:
    """What the server would make of an object."""
    body = {"apiVersion": f"{DRA}/{version}", **body}
    return _try(lambda: cluster.create(f"/apis/{DRA}/{version}/{plural}", body, dry_run=True))


def _class() -> Object:
    return {
        "kind": "DeviceClass",
        "metadata": {"generateName": "device-bridge-plan-"},
        "spec": {"extendedResourceName": "device-bridge.io/plan-probe"},
    }


def _slice(version: str, node: str) -> Object:
    driver = "plan.device-bridge.io"
    fields: Object = {
        "bindsToNode": True,
        "bindingConditions": [f"{driver}/probe"],
        "bindingFailureConditions": [f"{driver}/probe-failed"],
        "taints": [{"key": f"{driver}/probe", "effect": "NoExecute"}],
    }
    device = {"name": "probe", **({"basic": fields} if version == "v1beta1" else fields)}
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    return {
        "kind": "ResourceSlice",
        "metadata": {"generateName": "device-bridge-plan-"},
        "spec": {"driver": driver, "nodeName": node, "pool": pool, "devices": [device]},
    }


def _lacking(
    cluster: Cluster, pods: Mapping[str, Object] | Unknown, rights: Collection[Right]
) -> Sequence[Right] | Unknown:
    """Rights that some daemon's account lacks, asked of the API server about the accounts that their pods have."""
    if isinstance(pods, Unknown):
        return pods
    accounts = {
        (str(p["metadata"]["namespace"]), str(p["spec"].get("serviceAccountName", "default")))
        for p in pods.values()
    }
    if not accounts:
        return Unknown("no daemon runs in a pod, whose account would be asked about")
    return _try(
        lambda: [r for r in rights if not all(_may(cluster, *account, r) for account in sorted(accounts))]
    )


def _may(cluster: Cluster, namespace: str, account: str, right: Right) -> bool:
    group, resource, verb, _ = right
    plain, _, sub = resource.partition("/")
    wanted = {"group": group, "resource": plain, "subresource": sub, "verb": verb}
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    body: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": groups,
            "resourceAttributes": {key: value for key, value in wanted.items() if value},
        },
    }
    answer = cluster.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
    return bool((answer.get("status") or {}).get("allowed"))
