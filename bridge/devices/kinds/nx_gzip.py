"""Kind `nx-gzip`: the gzip accelerator of Power10 and later, shared by credits.

The device is there when both of its faces are: the node `/dev/crypto/nx-gzip` and the capability files in
sysfs. One credit is one open VAS window; a hold takes one share, a share stands for one credit. Totals
change with DLPAR and live migration, so they are read anew at every scan. How many are in use is no part of
the inventory (it would change with every job): `used_credits` tells it to whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from bridge.devices.kinds.base import Found, Kind, ParameterErrors, Watches
from bridge.devices.kinds.options import MOST_SHARES, OwnerOptions, Permissions
from bridge.devices.model import (
    AttributeValue,
    ContainerEdits,
    Device,
    DeviceNode,
    Health,
    Problem,
)
from bridge.devices.nodes import Missing, Node, Unusable, read_node, read_number
from bridge.devices.schema import Invalid, between, decode
from bridge.platform.roots import Roots

NODE = "/dev/crypto/nx-gzip"
CAPABILITIES = "/sys/devices/vio/ibm,compression-v1/nx_gzip_caps"
CREDITS = "/sys/devices/virtual/misc/vas/vas0/gzip/default_capabilities"

DEFAULT_CREDITS = 20
"""`credits: auto` where sysfs tells no total: what firmware gives for one dedicated processor."""

_ATTRIBUTES = {
    "minCompressLen": "min_compress_len",
    "minDecompressLen": "min_decompress_len",
    "reqMaxProcessedLen": "req_max_processed_len",
}


@dataclass(frozen=True, slots=True)
class NxGzipOptions:
    """Options of a group of kind `nx-gzip`.

    Attributes:
        credits: how many holders at once; `auto`: as many as the partition has.
        permissions: any of `r`, `w`, `m` (mknod).
        owner: owner and mode of the node inside the container.
        require_capabilities: false on bare metal (PowerNV), which has the node and no capability files.
    """

    credits: Annotated[int, between(1, MOST_SHARES)] | Literal["auto"] = "auto"
    permissions: Permissions = "rw"
    owner: OwnerOptions | None = None
    require_capabilities: bool = True


@dataclass(frozen=True, slots=True)
class TimeSlicingConfig:
    """How long one user keeps the accelerator."""

    interval: Literal["Default", "Short", "Medium", "Long"] = "Default"


@dataclass(frozen=True, slots=True)
class SpacePartitioningConfig:
    """Into how many pieces the accelerator is divided."""

    partition_count: Annotated[int, between(0)] = 1


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the users of one accelerator share it."""

    strategy: Literal["TimeSlicing", "SpacePartitioning"] = "TimeSlicing"
    time_slicing_config: TimeSlicingConfig | None = None
    space_partitioning_config: SpacePartitioningConfig | None = None

    def __post_init__(self) -> None:
        if self.strategy != "SpacePartitioning" and self.space_partitioning_config is not None:
            raise ValueError("spacePartitioningConfig belongs to strategy SpacePartitioning")
        if self.strategy != "TimeSlicing" and self.time_slicing_config is not None:
            raise ValueError("timeSlicingConfig belongs to strategy TimeSlicing")


@dataclass(frozen=True, slots=True)
class NxConfig:
    """Opaque parameters of a claim or class, as the existing driver for Power defines them."""

    api_version: Literal["device.power.ibm.com/v1alpha1"]
    kind: Literal["NxConfig"]
    sharing: Sharing = Sharing()


class NxGzipKind(Kind[NxGzipOptions]):
    """Discovery of the accelerator; a machine has one, or none."""

    name = "nx-gzip"
    options = NxGzipOptions
    claim_unit = "credits"

    def discover(self, group: str, options: NxGzipOptions, roots: Roots) -> Found:
        """The accelerator: healthy with both faces, unhealthy with one, absent with none."""
        node, complaint = _read_node(roots)
        capable = roots.look(CAPABILITIES).is_dir()
        if node is None and not capable:
            return Found(problems=(Problem(group, NODE, complaint),) if complaint else ())
        reason = _reason(node, complaint, capable or not options.require_capabilities)
        shares, doubt = _shares(options, roots)
        problems = [Problem(group, NODE, text) for text in (reason, doubt) if text]
        health = Health(False, reason) if reason else _credit_health(roots)
        device = Device(
            group=group,
            name=self.name,
            kind=self.name,
            edits=_edits(node, options, roots),
            attributes=_attributes(roots),
            health=health,
            parts={NODE: 1},
            shares=shares,
            share_unit=self.claim_unit,
        )
        identities = {NODE: node.identity} if node is not None and node.identity is not None else {}
        return Found((device,), {NODE: shares}, tuple(problems), identities)

    def watches(self, options: NxGzipOptions, roots: Roots) -> Watches:
        """The node's directory, the accelerator, and the processors: credits follow their number."""
        return Watches(frozenset({"/dev/crypto"}), frozenset({"vio", "cpu", "misc", "nx-gzip"}))

    def parameters(self, raw: Mapping[str, object]) -> NxConfig:
        """Decode an `NxConfig` strictly.

        Raises:
            ParameterErrors: it is none, or holds what is not known.
        """
        try:
            return decode(NxConfig, raw)
        except Invalid as error:
            raise ParameterErrors(error.errors) from error

    def claim_edits(self, device: Device, parameters: Sequence[object]) -> ContainerEdits:
        """Tell the container what its claim's configuration asked for.

        The last configuration counts, whole. `NX_DEVICE`, `NX_DEVICE_SHARING_STRATEGY`, and by strategy
        `NX_DEVICE_TIMESLICE_INTERVAL` or `NX_DEVICE_PARTITION_COUNT`. The existing driver spells the last one
        `Nx_DEVICE_PARTITION_COUNT`, but none of them ever reached a container there, so no program depends
        on it.
        """
        configs = [config for config in parameters if isinstance(config, NxConfig)]
        if not configs:
            return ContainerEdits()
        sharing = configs[-1].sharing
        env = [("NX_DEVICE", device.name), ("NX_DEVICE_SHARING_STRATEGY", sharing.strategy)]
        if sharing.strategy == "TimeSlicing":
            slicing = sharing.time_slicing_config or TimeSlicingConfig()
            env.append(("NX_DEVICE_TIMESLICE_INTERVAL", slicing.interval))
        else:
            partitioning = sharing.space_partitioning_config or SpacePartitioningConfig()
            env.append(("NX_DEVICE_PARTITION_COUNT", str(partitioning.partition_count)))
        return ContainerEdits(env=tuple(env))

    def in_use(self, device: Device, roots: Roots) -> bool | None:
        """Whether any credit is in use, by a container or not."""
        used = used_credits(roots)
        return None if used is None else used > 0


def total_credits(roots: Roots) -> int | None:
    """Credits of the default pool; None where sysfs does not tell."""
    return read_number(f"{CREDITS}/nr_total_credits", roots)


def used_credits(roots: Roots) -> int | None:
    """Credits in use now, by whomever, containers or not; None where sysfs does not tell."""
    return read_number(f"{CREDITS}/nr_used_credits", roots)


def _read_node(roots: Roots) -> tuple[Node | None, str]:
    """The node, or None and what is wrong (nothing, where it is merely absent)."""
    try:
        return read_node(NODE, roots), ""
    except Missing:
        return None, ""
    except Unusable as error:
        return None, str(error)


def _reason(node: Node | None, complaint: str, capable: bool) -> str:
    if node is None:
        return complaint or f"{NODE} does not exist: is the nx-compress-pseries driver loaded?"
    if not capable:
        return (
            f"{CAPABILITIES} does not exist, so nothing says that gzip works here; "
            "on bare metal set requireCapabilities: false"
        )
    return ""


def _shares(options: NxGzipOptions, roots: Roots) -> tuple[int, str]:
    """How many holders at once, and what is doubtful about it."""
    total = total_credits(roots)
    if options.credits == "auto":
        return min(max(1, DEFAULT_CREDITS if total is None else total), MOST_SHARES), ""
    if total is not None and options.credits > total > 0:
        return total, f"credits: {options.credits} is more than the {total} there are; {total} are offered"
    return options.credits, ""


def _credit_health(roots: Roots) -> Health:
    if total_credits(roots) == 0:
        return Health(False, "the partition has no gzip credits (nr_total_credits is 0)")
    return Health()


def _attributes(roots: Roots) -> Mapping[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"path": NODE}
    for name, file in _ATTRIBUTES.items():
        value = read_number(f"{CAPABILITIES}/{file}", roots)
        if value is not None:
            attributes[name] = value
    return attributes


def _edits(node: Node | None, options: NxGzipOptions, roots: Roots) -> ContainerEdits:
    """The node, and the variable by which programs for the existing driver see that they have it."""
    return ContainerEdits(
        (
            DeviceNode(
                host_path=roots.on_host(node.path if node else NODE),
                container_path=NODE,
                permissions=options.permissions,
                type=node.type if node else None,
                major=node.major if node else None,
                minor=node.minor if node else None,
                owner=options.owner.owner() if options.owner else None,
            ),
        ),
        (("NX_DEVICE_CLAIM", "added"),),
    )
