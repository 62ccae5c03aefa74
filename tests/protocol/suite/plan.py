"""What a scenario asks a node to run: values that every kind of node turns into its own objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Box:
    """One container.

    Attributes:
        name: its name.
        limits: extended resources, name to count.
        claims: names of the pod's claims that it uses, each also as `name/request`.
        cpu: whole CPUs that it asks for.
        run: seconds after which it ends by itself; None: it runs until it is stopped.
        exit_code: of a container that ends by itself.
        stop: seconds that it takes to obey a stop.
        sidecar: for an init container that runs on beside the others.
    """

    name: str = "main"
    limits: Mapping[str, int] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    cpu: int = 0
    run: float | None = None
    exit_code: int = 0
    stop: int = 0
    sidecar: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod.

    Attributes:
        name: its name, in the scenario's own namespace.
        boxes, init: its containers.
        claims: name inside the pod to the ResourceClaim's name.
        restart: its restart policy.
        grace: seconds that its containers have to stop.
        bound: whether it names the node itself, past the scheduler.
    """

    name: str
    boxes: tuple[Box, ...] = (Box(),)
    init: tuple[Box, ...] = ()
    claims: Mapping[str, str] = field(default_factory=dict)
    restart: str = "Never"
    grace: int = 5
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a claim: `count` devices of a driver."""

    name: str
    driver: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Got:
    """What a container found in itself: environment that begins with `SUITE_`, nodes like `/dev/suite-*`."""

    env: Mapping[str, str]
    nodes: frozenset[str]


def device_container(pod: str, limits: Mapping[str, int], **more: Any) -> Pod:
    """Return a pod of one container with extended resources."""
    return Pod(pod, (Box(limits=limits),), **more)


def claim_pod(name: str, *claims: str, **more: Any) -> Pod:
    """Return a pod of one container that uses claims, each known inside the pod by the claim's own name."""
    return Pod(name, (Box(claims=claims),), claims={claim: claim for claim in claims}, **more)
