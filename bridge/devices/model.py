"""What a device is: name, attributes, container edits, health, and the parts it uses.

Values only: nothing here touches a file. Parts are the whole conflict model (design 4): two holds conflict
exactly when the sum over some part would exceed its capacity, whatever plane, group or name they came by.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

NAME_LIMIT = 56
"""Longest device name: a DNS label (63) less room for a share suffix, so all projections are DNS labels."""

SHARE_SEPARATOR = "--"
"""Stands between a device name and a share's number; names never contain it (see `device_name`)."""


@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version as an attribute value (resource.k8s.io has its own type for it)."""

    text: str


AttributeValue = bool | int | str | Version


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner and mode that a device node gets inside the container, for containers that do not run as root."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """One device node as a container sees it.

    Attributes:
        host_path: path on the host, the true one even where discovery looked under another root.
        container_path: path inside the container.
        permissions: any of `r`, `w`, `m`, in this order.
        type: `c` or `b`; None where the node is not a device (a generated tree without root).
        major, minor: device numbers, None as above.
        owner: owner and mode inside the container; None leaves the host's.
    """

    host_path: str
    container_path: str
    permissions: str = "rw"
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """A bind mount that comes with a device."""

    host_path: str
    container_path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerEdits:
    """What a container gets when it holds the device; both planes project the same edits."""

    nodes: tuple[DeviceNode, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()

    def __add__(self, other: ContainerEdits) -> ContainerEdits:
        """Both edits; of an environment variable named twice the later value counts."""
        env = {**dict(self.env), **dict(other.env)}
        return ContainerEdits(
            self.nodes + tuple(n for n in other.nodes if n not in self.nodes),
            tuple(env.items()),
            self.mounts + tuple(m for m in other.mounts if m not in self.mounts),
        )


@dataclass(frozen=True, slots=True)
class Health:
    """Physical health only, never arbitration (H23)."""

    ok: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """One device of one group.

    Attributes:
        group: name of the configured group.
        name: stable DNS label of at most `NAME_LIMIT` characters, unique in the group.
        kind: name of the kind that found it.
        edits: what a container gets.
        attributes: keys as in a ResourceSlice; without a domain they are the driver's.
        capacities: informational amounts, whole units.
        numa_node: NUMA node, None where the machine does not say.
        health: physical health with a reason.
        parts: what ONE hold of one share uses, {part: amount}. Part names are machine-wide: two groups that
            list the same silicon name the same part.
        shares: how many holders at once; above 1 it is a shareable device.
        share_unit: name of the consumable capacity that counts shares (`credits`, `replicas`).
        present: False for a device that is gone and is remembered because it is held (H38).
    """

    group: str
    name: str
    kind: str
    edits: ContainerEdits
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    capacities: Mapping[str, int] = field(default_factory=dict)
    numa_node: int | None = None
    health: Health = Health()
    parts: Mapping[str, int] = field(default_factory=dict)
    shares: int = 1
    share_unit: str = "replicas"
    present: bool = True

    @property
    def shareable(self) -> bool:
        """Whether several holders may have it at once."""
        return self.shares > 1

    def share_names(self) -> tuple[str, ...]:
        """Names of its shares: device plugin IDs, and DRA devices where capacity cannot be consumed."""
        if not self.shareable:
            return (self.name,)
        # Every view and every hold of a share then has the same string.
        return tuple(sys.intern(f"{self.name}{SHARE_SEPARATOR}{i}") for i in range(self.shares))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something discovery could not use: the rest goes on without it.

    Attributes:
        group: the group it concerns.
        subject: the path or object.
        message: what was wrong and what to do.
    """

    group: str
    subject: str
    message: str

    def __str__(self) -> str:
        return self.message if self.subject in self.message else f"{self.subject}: {self.message}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything one scan found.

    Attributes:
        devices: ordered by group, then natural order of name.
        parts: capacity of every part that a device uses.
        problems: what was left out, and why.
    """

    devices: tuple[Device, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def group(self, name: str) -> tuple[Device, ...]:
        """The devices of one group, in order."""
        return tuple(d for d in self.devices if d.group == name)


def base_name(share: str) -> str:
    """The device name of a share name: `nx-gzip--7` -> `nx-gzip`."""
    return share.partition(SHARE_SEPARATOR)[0]


def device_name(text: str) -> str:
    """A stable DNS label for a serial, address or path; the same text always gives the same name.

    A path keeps its name with `-` for `/`; text that does not survive this whole gets a short hash, so that
    two texts never share a name.
    """
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    survives = "-" not in text and label == text.strip("/").replace("/", "-")
    if not survives or not label or len(label) > NAME_LIMIT:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        label = f"{label[: NAME_LIMIT - 9].strip('-')}-{digest}".lstrip("-")
    return label


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which acc2 stands before acc10."""
    return tuple(
        (0, int(piece), "") if piece.isdigit() else (1, 0, piece)
        for piece in re.split(r"(\d+)", name)
        if piece
    )
