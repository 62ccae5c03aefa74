"""The effective configuration: values with every default filled in. Touches no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from bridge.devices.model import natural_key
from bridge.devices.nodes import matches
from bridge.devices.schema import Check, between, plain

API_VERSION = "device-bridge.io/v1alpha1"
KIND = "BridgeConfig"


class Mode(StrEnum):
    """On which planes a free device is offered (design 2)."""

    DEVICE_PLUGIN = "device-plugin"
    DUAL = "dual"
    DRA = "dra"


class Sharing(StrEnum):
    """How the planes of a group in `dual` divide its devices: first taker wins, or a fixed split."""

    SHARED = "shared"
    PARTITION = "partition"


class Binding(StrEnum):
    """Whether DRA pods are bound only after the ledger has reserved their device (Q3); `auto`: in `dual` with
    `shared`, where both planes race for it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Registration(StrEnum):
    """How the device plugin registers: a socket the kubelet finds, or a call to `kubelet.sock`."""

    WATCHER = "watcher"
    LEGACY = "legacy"


@dataclass(frozen=True, slots=True)
class Percent:
    """A share of the devices, in percent, rounded to whole devices (half up)."""

    value: int

    def device_plugin(self, names: Sequence[str]) -> frozenset[str]:
        """The devices of the device-plugin plane; from the end of the natural order, as it picks (Q2)."""
        return Count((len(names) * self.value + 50) // 100).device_plugin(names)

    def written(self) -> str:
        """As in the file."""
        return f"{self.value}%"


@dataclass(frozen=True, slots=True)
class Count:
    """So many devices, or as many as there are."""

    value: int

    def device_plugin(self, names: Sequence[str]) -> frozenset[str]:
        """The devices of the device-plugin plane; from the end of the natural order, as it picks (Q2)."""
        ordered = sorted(names, key=natural_key)
        return frozenset(ordered[max(0, len(ordered) - self.value) :])

    def written(self) -> int:
        """As in the file."""
        return self.value


@dataclass(frozen=True, slots=True)
class Names:
    """The devices with these names; patterns as in a shell."""

    patterns: tuple[str, ...]

    def device_plugin(self, names: Sequence[str]) -> frozenset[str]:
        """The devices of the device-plugin plane."""
        return frozenset(name for name in names if any(matches(name, pattern) for pattern in self.patterns))

    def written(self) -> list[str]:
        """As in the file."""
        return list(self.patterns)


Partition = Percent | Count | Names
"""Which devices of a group the device-plugin plane has; the rest are DRA's."""


@dataclass(frozen=True, slots=True)
class Group:
    """One set of interchangeable devices: one extended resource, one DRA driver, one DeviceClass.

    Attributes:
        name: DNS label that begins with a letter.
        kind: a key of `bridge.devices.kinds.KINDS`.
        resource_name: extended resource of the device-plugin plane.
        driver_name: driver of the DRA plane.
        partition: set exactly when `sharing` is `partition`.
        options: of the kind's options type.
        keep_resource_name: whether the group's DeviceClass, named as its driver, carries `resource_name` as
            `extendedResourceName` (KEP-5004), so that pods which ask for it are served by DRA once the device plugin
            has closed.
    """

    name: str
    kind: str
    resource_name: str
    driver_name: str
    mode: Mode
    sharing: Sharing
    partition: Partition | None
    binding: Binding
    registration: Registration
    options: object
    keep_resource_name: bool = False

    def dump(self) -> dict[str, object]:
        """As in the file, defaults filled in."""
        split = {} if self.partition is None else {"partition": {"devicePlugin": self.partition.written()}}
        return {
            "name": self.name,
            "kind": self.kind,
            "resourceName": self.resource_name,
            "driverName": self.driver_name,
            "mode": self.mode.value,
            "sharing": self.sharing.value,
            **split,
            "binding": self.binding.value,
            "registration": self.registration.value,
            "keepResourceName": self.keep_resource_name,
            "options": plain(self.options),
        }


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path


def _socket_path(value: str) -> str:
    if value and not value.removeprefix("unix://").startswith("/"):
        raise ValueError(f"must be an absolute path (unix:// before it is allowed), or empty, not {value!r}")
    return value.removeprefix("unix://")


def _host_and_port(value: str) -> str:
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = colon and port.isascii() and port.isdigit() and (bracketed or ":" not in host)
    if value and not (well_formed and int(port) < 65536):
        raise ValueError(f"must be HOST:PORT like 127.0.0.1:9464, or empty for no metrics, not {value!r}")
    return value


Folder = Annotated[Path, Check(_absolute)]


@dataclass(frozen=True, slots=True)
class Cdi:
    """Where CDI files go.

    Attributes:
        static_dir: those of groups, which must outlive a reboot.
        dynamic_dir: those of claims, which must not.
    """

    static_dir: Folder = Path("/etc/cdi")
    dynamic_dir: Folder = Path("/var/run/cdi")


@dataclass(frozen=True, slots=True)
class Daemon:
    """Settings of the daemon itself.

    Attributes:
        kubelet_root: the kubelet's folder; the same path inside the container as on the node.
        state_dir: the ledger's folder; without it `plugins/device-bridge` below `kubeletRoot`.
        cdi: where CDI files go.
        cri_socket: the container runtime's socket; without it the usual ones are tried.
        metrics_address: HOST:PORT of `/metrics`, `/healthz` and `/readyz`; in the DaemonSet loopback means the pod's
            own address, and the port has to be the 9464 that its probes ask; empty for none.
        rescan_seconds: time between scans that nothing asked for; what is plugged in is seen at once all the same.
        release_grace_seconds: how long a hold of the device plugin that was never matched to a pod waits for one.
    """

    kubelet_root: Folder = Path("/var/lib/kubelet")
    state_dir: Folder = field(default_factory=Path)
    cdi: Cdi = Cdi()
    cri_socket: Annotated[str, Check(_socket_path)] = ""
    metrics_address: Annotated[str, Check(_host_and_port)] = "127.0.0.1:9464"
    rescan_seconds: Annotated[float, between(1, 86400)] = 60
    release_grace_seconds: Annotated[float, between(0, 86400)] = 60

    @property
    def pod_resources(self) -> Path:
        """The kubelet's podresources socket."""
        return self.kubelet_root / "pod-resources" / "kubelet.sock"

    def __post_init__(self) -> None:
        if self.state_dir == Path():  # nobody can write that: it is not absolute
            object.__setattr__(self, "state_dir", self.kubelet_root / "plugins" / "device-bridge")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole, valid configuration.

    Attributes:
        mode: of groups that name none.
        groups: in the order of the file, names unique.
        daemon: settings of the daemon.
    """

    mode: Mode
    groups: tuple[Group, ...]
    daemon: Daemon

    def group(self, name: str) -> Group:
        """The group of this name.

        Raises:
            KeyError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def dump(self) -> dict[str, object]:
        """The effective configuration, every default filled in; `parse` accepts it and gives the same."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "mode": self.mode.value,
            "groups": [group.dump() for group in self.groups],
            "daemon": plain(self.daemon),
        }
