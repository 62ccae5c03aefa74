"""What `bridge plan` has found in a cluster, as values; `surveying` finds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.cli.fleet.states import State

Object = Mapping[str, Any]
Right = tuple[str, str, str, str]
"""API group, resource with subresource, verb, and what for."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """What could not be looked at, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether the API server keeps fields that feature gates stand before."""

    extended_resource_name: bool | Unknown
    binding_conditions: bool | Unknown
    taints: bool | Unknown


@dataclass(frozen=True, slots=True)
class Survey:
    """A cluster, as far as it matters for a switch.

    Attributes:
        nodes: those that are to be switched.
        states: of all nodes, by name; Unknown without the NodeBridge kind.
        daemons: pods, by node.
        server: version of the API server.
        served: versions of resource.k8s.io that it serves and the bridge speaks, best first.
        workloads: by kind.
        lacking: rights that a daemon's account does not have.
        everywhere: all Nodes of the cluster.
    """

    nodes: Sequence[Object]
    everywhere: Sequence[Object]
    states: Mapping[str, State] | Unknown
    daemons: Mapping[str, Object] | Unknown
    server: str
    served: Sequence[str]
    classes: Sequence[Object] | Unknown
    slices: Sequence[Object] | Unknown
    quotas: Sequence[Object] | Unknown
    workloads: Mapping[str, Sequence[Object]] | Unknown
    kept: Kept
    lacking: Sequence[Right] | Unknown
