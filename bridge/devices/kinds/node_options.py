"""Options of the kind `device-node`: which nodes, as how many devices, and how a container gets them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from bridge.devices.kinds.options import MOST_SHARES, ContainerPath, OwnerOptions, Permissions, fill
from bridge.devices.model import NAME_LIMIT, SHARE_SEPARATOR
from bridge.devices.schema import NOT_EMPTY, Check, between, matching

TOGETHER = "all"
"""Name of the one device that all matching nodes make."""


def _host_path(value: str) -> str:
    pieces = value.split("/")
    if pieces[:2] != ["", "dev"] or len(pieces) < 3 or {"", ".", ".."} & set(pieces[2:]):
        raise ValueError(f"must be a path below /dev, written plainly (no '.', '..' or '//'), not {value!r}")
    return value


def _glob(value: str) -> str:
    _host_path(value)
    if "**" in value:
        raise ValueError(f"** is not known here: name each level, as in /dev/*/acc*, not {value!r}")
    if "{" in value or "}" in value:
        raise ValueError(f"braces are not known here: write one pattern for each of {value!r}")
    return value


def _plain_path(value: str) -> str:
    _host_path(value)
    if re.search(r"[*?\[]", value):
        raise ValueError(f"must be one path, not the pattern {value!r}; patterns belong in include")
    return value


def _not_reserved(name: str) -> str:
    if SHARE_SEPARATOR in name or name.startswith("claim-"):
        raise ValueError(
            f"'{SHARE_SEPARATOR}' and names that begin with 'claim-' are the bridge's own: {name!r}"
        )
    return name


Glob = Annotated[str, Check(_glob)]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """One node of a device that is written out.

    Attributes:
        path: below `/dev`, one path and no pattern.
        container_path: path inside the container; without it the same. `{name}` is the device's name, `{basename}` the
            last piece of `path`.
        permissions: as the group's, for this node; without it the group's.
        owner: as the group's, for this node; without it the group's.
        optional: whether the device is offered without it.
    """

    path: Annotated[str, Check(_plain_path)]
    container_path: ContainerPath | None = None
    permissions: Permissions | None = None
    owner: OwnerOptions | None = None
    optional: bool = False

    def inside(self, device: str) -> str:
        """Its path in a container."""
        return fill(self.container_path or self.path, name=device, path=self.path)


@dataclass(frozen=True, slots=True)
class NamedDevice:
    """A device that is written out.

    Attributes:
        name: DNS label; unique in the group.
        nodes: what a container gets, all of it.
    """

    name: Annotated[str, matching("[a-z0-9]([-a-z0-9]*[a-z0-9])?", longest=NAME_LIMIT), Check(_not_reserved)]
    nodes: Annotated[tuple[NodeOptions, ...], NOT_EMPTY]

    def __post_init__(self) -> None:
        inside = [node.inside(self.name) for node in self.nodes]
        twice = {path for path in inside if inside.count(path) > 1}
        if twice:
            raise ValueError(f"several nodes would be {', '.join(sorted(twice))} inside the container")


def _names_differ(devices: tuple[NamedDevice, ...]) -> tuple[NamedDevice, ...]:
    names = [device.name for device in devices]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several devices are called {', '.join(sorted(twice))}")
    return devices


@dataclass(frozen=True, slots=True)
class DeviceNodeOptions:
    """Options of a group of kind `device-node`.

    Attributes:
        include: patterns of paths below `/dev`, as in a shell, without `**` and braces; each match is a device.
        exclude: patterns of what stays out, under every name: links to it and other nodes of its numbers too.
        type: narrows what `include` matches to block or to character devices.
        spare: narrows what `include` matches to disks that the node does not use itself.
        together: one device of all that `include` matches: a holder gets the nodes that there are when its container
            starts.
        devices: devices that are written out, of one node or several.
        container_path: path inside the container; without it the same. `{name}` is the device's name, `{basename}` the
            last piece of its path.
        as_matched: where the path that a pattern matched is a link, containers get the node at that path, not at the
            one that the link leads to.
        permissions: any of `r`, `w`, `m` (mknod).
        replicas: how many holders a device may have at once.
        owner: owner and mode of the node inside the container.
    """

    include: tuple[Glob, ...] = ()
    exclude: tuple[Glob, ...] = ()
    type: Literal["block", "char"] | None = None
    spare: bool = False
    together: bool = False
    devices: Annotated[tuple[NamedDevice, ...], Check(_names_differ)] = ()
    container_path: ContainerPath | None = None
    as_matched: bool = False
    permissions: Permissions = "rw"
    replicas: Annotated[int, between(1, MOST_SHARES)] = 1
    owner: OwnerOptions | None = None

    def __post_init__(self) -> None:
        if not self.include and not self.devices:
            raise ValueError("names no device: give include (patterns) or devices (written out)")
        if self.spare and self.type == "char":
            raise ValueError("spare is of disks, which are no character devices: leave type out, or spare")
        if self.as_matched and self.container_path is not None:
            raise ValueError("asMatched and containerPath both say where the node is inside: leave one out")
        if self.together:
            self._check_together()

    def _check_together(self) -> None:
        if not self.include:
            raise ValueError("together makes one device of what include matches: give include")
        if any(device.name == TOGETHER for device in self.devices):
            raise ValueError(f"with together the name {TOGETHER!r} is that of what include matches")
        if self.container_path is not None and "{basename}" not in self.container_path:
            raise ValueError("together has several nodes: containerPath needs {basename} to tell them apart")
