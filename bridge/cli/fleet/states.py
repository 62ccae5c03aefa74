"""A NodeBridge as the command line reads it: what is so on a node, said by its daemon. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GROUP_VERSION = "device-bridge.io/v1alpha1"
PATH = f"/apis/{GROUP_VERSION}/nodebridges"
SETTLED, REFUSED = "Settled", "Refused"
NO_CRD = (
    "the cluster does not know NodeBridge (no CustomResourceDefinition nodebridges.device-bridge.io), which is how a "
    "daemon says how far it is; apply kustomize/base"
)


@dataclass(frozen=True, slots=True)
class GroupState:
    """One group of a node: names, what is wanted and what is so, and why."""

    name: str
    resource: str
    driver: str
    device_class: str
    wanted: str
    mode: str
    phase: str
    reason: str
    message: str

    @property
    def told(self) -> str:
        """The phase, and why it is that."""
        why = self.message or self.reason
        return f"{self.name}: {self.phase}" + (f" ({why})" if why else "")


@dataclass(frozen=True, slots=True)
class State:
    """One node.

    Attributes:
        version: of the NodeBridge; another one means that the daemon has said something since.
        ready: whether the daemon serves; None: it has not said.
        not_ready: why not.
    """

    node: str
    version: str
    wanted: str
    mode: str
    phase: str
    ready: bool | None
    not_ready: str
    free: Mapping[str, int]
    held: Mapping[str, int]
    refusal: str
    groups: tuple[GroupState, ...]
    conditions: tuple[Mapping[str, Any], ...]

    def group(self, name: str) -> GroupState | None:
        """One group, or None if the node has none of that name."""
        return next((one for one in self.groups if one.name == name), None)


def state(bridge: Mapping[str, Any]) -> State:
    """Read a NodeBridge; what it does not say is empty."""
    meta, status = bridge.get("metadata") or {}, bridge.get("status") or {}
    conditions = tuple(status.get("conditions") or ())
    ready = next((one for one in conditions if one.get("type") == "Ready"), None)
    is_ready = None if ready is None else ready.get("status") == "True"
    why = "its daemon has not said that it is ready" if ready is None else _why(ready)
    return State(
        node=str(meta.get("name", "")),
        version=str(meta.get("resourceVersion", "")),
        wanted=str(status.get("wanted", "")),
        mode=str(status.get("mode", "")),
        phase=str(status.get("phase", "")),
        ready=is_ready,
        not_ready="" if is_ready else why,
        free=status.get("free") or {},
        held=status.get("held") or {},
        refusal=_refusal(status.get("lastRefusal") or {}),
        groups=tuple(_group(one) for one in status.get("groups") or ()),
        conditions=conditions,
    )


def _group(one: Mapping[str, Any]) -> GroupState:
    names = (
        "name",
        "resourceName",
        "driverName",
        "deviceClassName",
        "wanted",
        "mode",
        "phase",
        "reason",
        "message",
    )
    return GroupState(*(str(one.get(name) or "") for name in names))


def _why(condition: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (str(condition.get("reason") or ""), str(condition.get("message") or ""))))


def _refusal(one: Mapping[str, Any]) -> str:
    if not one:
        return ""
    said = one.get("message") or one.get("reason") or ""
    return " ".join(str(part) for part in (one.get("time"), one.get("plane"), said) if part)
