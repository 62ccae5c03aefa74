"""Which nodes a command is about, and which daemon serves on each."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.cli.fleet.cluster import Cluster, ClusterError, Object
from bridge.cli.fleet.rollout import NODES
from bridge.cli.problems import Problem

DAEMONS = "app.kubernetes.io/name=device-bridge"
"""The label of the daemons' pods, as kustomize/base has it."""

PODS = "/api/v1/pods"

_BAD_REQUEST = 400


def name_of(one: Object) -> str:
    """An object's name."""
    return str(one["metadata"]["name"])


def chosen(cluster: Cluster, names: Sequence[str], selector: str) -> list[Object]:
    """The Nodes of these names, those that a label selector admits, or all; ordered by name, numbers as numbers.

    Raises:
        Problem: there is no such node, or both ways of choosing are used.
    """
    from bridge.devices.model import natural_key

    if names and selector:
        raise Problem("choose nodes by --node or by --selector, not by both", 2)
    unique = dict.fromkeys(names)
    found = [_named(cluster, name) for name in unique] if unique else _selected(cluster, selector)
    return sorted(found, key=lambda one: natural_key(name_of(one)))


def _named(cluster: Cluster, name: str) -> Object:
    found = cluster.find(f"{NODES}/{name}")
    if found is None:
        raise Problem(f"there is no node {name}; `kubectl get nodes` lists them", 2)
    return found


def _selected(cluster: Cluster, selector: str) -> list[Object]:
    try:
        found = list(cluster.all(NODES, labels=selector).items)
    except ClusterError as error:
        if error.status == _BAD_REQUEST and selector:
            raise Problem(f"--selector {selector!r} is no label selector: {error}", 2) from error
        raise
    if selector and not found:
        raise Problem(f"no node has the labels {selector!r}", 2)
    return found


def daemons(cluster: Cluster, node: str = "") -> dict[str, Object]:
    """The daemon's pod of each node that has one, or of one node; where there are two, as in an update, the one that
    runs."""
    found: dict[str, Object] = {}
    fields = f"spec.nodeName={node}" if node else ""
    for pod in cluster.all(PODS, labels=DAEMONS, fields=fields).items:
        at = (pod.get("spec") or {}).get("nodeName")
        if at and (at not in found or serves(pod)):
            found[at] = pod
    return found


def serves(pod: Object) -> bool:
    """Whether a pod is Ready and stays."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def runs(pod: Object) -> bool:
    """Whether a program can be run in a pod."""
    return (pod.get("status") or {}).get("phase") == "Running" and not pod["metadata"].get(
        "deletionTimestamp"
    )
