"""The effective configuration: values with every default filled in. Touches no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, field_validator
from pydantic import Strict as StrictType

from bridge.devices.model import natural_key
from bridge.devices.nodes import matches
from bridge.devices.schema import Strict

API_VERSION = "device-bridge.io/v1alpha1"
KIND = "BridgeConfig"

Seconds = Annotated[float, StrictType()]


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
    """Whether DRA pods are bound only after the ledger has reserved their device (Q3)."""

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
    options: BaseModel

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
            "options": _plain(self.options),
        }


class Cdi(Strict):
    """Where CDI files go: those of groups must outlive a reboot, those of claims must not."""

    static_dir: Path = Path("/etc/cdi")
    dynamic_dir: Path = Path("/var/run/cdi")

    _absolute = field_validator("static_dir", "dynamic_dir")(lambda path: _absolute(path))


class Daemon(Strict):
    """Settings of the daemon itself."""

    kubelet_root: Path = Path("/var/lib/kubelet")
    state_dir: Path = Field(
        default_factory=lambda data: data.get("kubelet_root", Path("/")) / "plugins" / "device-bridge"
    )
    cdi: Cdi = Cdi()
    cri_socket: str = ""
    metrics_address: str = "127.0.0.1:9464"
    rescan_seconds: Annotated[Seconds, Field(ge=1, le=86400)] = 60
    release_grace_seconds: Annotated[Seconds, Field(ge=0, le=86400)] = 60

    _absolute = field_validator("kubelet_root", "state_dir")(lambda path: _absolute(path))

    @field_validator("cri_socket")
    @classmethod
    def _socket_path(cls, value: str) -> str:
        if value and not value.removeprefix("unix://").startswith("/"):
            raise ValueError(
                f"must be an absolute path (unix:// before it is allowed), or empty, not {value!r}"
            )
        return value.removeprefix("unix://")

    @field_validator("metrics_address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        well_formed = colon and port.isascii() and port.isdigit() and (bracketed or ":" not in host)
        if value and not (well_formed and int(port) < 65536):
            raise ValueError(f"must be HOST:PORT like 127.0.0.1:9464, or empty for no metrics, not {value!r}")
        return value


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
            "daemon": _plain(self.daemon),
        }


def _plain(model: BaseModel) -> Mapping[str, object]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path
