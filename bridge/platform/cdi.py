"""CDI files: one static file for each group, one for each claim whose configuration needs it.

Runtimes parse every file again on any change, so files are few, are written only when their content
differs, and appear whole (written aside, then renamed). Static files lie where a reboot leaves them:
containers are started again with the names they were given (kubelet-contract A.5). Device numbers are never
written: the runtime reads them from the node, and a number in a file would be stale after a reboot.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dra_v1 import points

VENDOR = "device-bridge.io"

_CLASS = re.compile(r"[A-Za-z]([-_A-Za-z0-9]*[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9]([-_.:A-Za-z0-9]*[A-Za-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?")

_PREFIX = f"{VENDOR}-"
_SUFFIX = ".json"
_CLAIM = "-claim-"
_ASIDE = ".writing-"

_MODE = 0o644
"""Runtimes read the files as root; people read them to understand."""


class Owner(Protocol):
    """Owner and mode inside the container; None leaves it to the runtime."""

    @property
    def uid(self) -> int | None:
        """User id."""

    @property
    def gid(self) -> int | None:
        """Group id."""

    @property
    def mode(self) -> int | None:
        """Permission bits."""


class Node(Protocol):
    """A device node as a container sees it."""

    @property
    def host_path(self) -> str:
        """Where it lies on the host."""

    @property
    def container_path(self) -> str:
        """Where the container finds it."""

    @property
    def permissions(self) -> str:
        """Any of r, w, m."""

    @property
    def owner(self) -> Owner | None:
        """Owner inside the container."""


class Mount(Protocol):
    """A bind mount."""

    @property
    def host_path(self) -> str:
        """Source."""

    @property
    def container_path(self) -> str:
        """Target."""

    @property
    def read_only(self) -> bool:
        """Whether the container may only read."""


class Edits(Protocol):
    """What a container gets; `bridge.devices.model.ContainerEdits` is one."""

    @property
    def nodes(self) -> Sequence[Node]:
        """Device nodes."""

    @property
    def env(self) -> Sequence[tuple[str, str]]:
        """Environment variables."""

    @property
    def mounts(self) -> Sequence[Mount]:
        """Bind mounts."""


class CdiError(RuntimeError):
    """A CDI file could not be written, read or removed; the text says which, why, and what to do."""


def qualified(group: str, device: str) -> str:
    """The name by which a runtime finds a device: `device-bridge.io/acc=acc0`."""
    return f"{VENDOR}/{group}={device}"


def claim_device(uid: str, device: str) -> str:
    """The name of a claim's own entry for a device; in the group's class, beside the devices themselves."""
    return f"claim-{uid}-{device}"


def spec(group: str, devices: Mapping[str, Edits]) -> dict[str, object]:
    """A CDI document for devices of one group. Pure.

    Raises:
        ValueError: CDI does not allow the names, or a device would change nothing.
    """
    if not _CLASS.fullmatch(group):
        raise ValueError(
            f"{group!r} cannot be a CDI class: letters, digits, '-' and '_', beginning with a letter"
        )
    entries = [_entry(name, edits) for name, edits in devices.items()]
    return {
        "cdiVersion": _version(devices),
        "kind": f"{VENDOR}/{group}",
        "devices": entries,
    }


class CdiFiles:
    """The bridge's files in the two CDI directories. Every call blocks for a few hundred microseconds."""

    def __init__(self, static_dir: Path, dynamic_dir: Path) -> None:
        self._static = static_dir
        self._dynamic = dynamic_dir

    def write_group(self, group: str, devices: Mapping[str, Edits]) -> bool:
        """Make the group's file say exactly this; no devices, no file, since CDI allows none without.

        Returns:
            Whether anything was changed.

        Raises:
            CdiError: the directory cannot be written.
        """
        if not devices:
            return self.remove_group(group)
        return _write(self._group_file(group), spec(group, devices), durable=True)

    def remove_group(self, group: str) -> bool:
        """Remove the group's file; False where there was none."""
        return _remove(self._group_file(group))

    def sweep_groups(self, keep: Container[str]) -> list[str]:
        """Remove the files of all other groups, and what a killed writer left. Returns the groups removed."""
        _clear_aside(self._static)
        groups = [
            name
            for path in _ours(self._static)
            if (name := path.name[len(_PREFIX) : -len(_SUFFIX)]) not in keep
            and not (self._static == self._dynamic and _is_claim_file(path))
        ]
        return [group for group in groups if self.remove_group(group)]

    def write_claim(self, group: str, uid: str, devices: Mapping[str, Edits]) -> dict[str, str]:
        """Write a claim's file.

        Args:
            group: the devices' group.
            uid: of the claim.
            devices: what the claim's configuration adds, by device; none may be empty.

        Returns:
            {device: qualified CDI name}, to be given to the kubelet after the device's own name.

        Raises:
            CdiError: the directory cannot be written.
        """
        if not _UID.fullmatch(uid):
            raise ValueError(f"{uid!r} is not the UID of a claim")
        entries = {claim_device(uid, name): edits for name, edits in devices.items()}
        _write(self._claim_file(group, uid), spec(group, entries), durable=False)
        return {name: qualified(group, claim_device(uid, name)) for name in devices}

    def remove_claim(self, group: str, uid: str) -> bool:
        """Remove a claim's file; False where there was none."""
        return _remove(self._claim_file(group, uid))

    def claims(self) -> list[tuple[str, str]]:
        """(group, claim UID) of every claim file that is there."""
        return [
            split
            for path in _ours(self._dynamic)
            if _is_claim_file(path) and (split := _claim_of(path)) is not None
        ]

    def sweep_claims(self, keep: Container[str]) -> list[tuple[str, str]]:
        """Remove the files of all other claims, and what a killed writer left. Returns what was removed."""
        _clear_aside(self._dynamic)
        return [
            (group, uid) for group, uid in self.claims() if uid not in keep and self.remove_claim(group, uid)
        ]

    def _group_file(self, group: str) -> Path:
        return self._static / f"{_PREFIX}{group}{_SUFFIX}"

    def _claim_file(self, group: str, uid: str) -> Path:
        return self._dynamic / f"{_PREFIX}{group}{_CLAIM}{uid}{_SUFFIX}"


def _entry(name: str, edits: Edits) -> dict[str, object]:
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a CDI device name")
    container: dict[str, object] = {}
    if edits.env:
        container["env"] = [f"{key}={value}" for key, value in edits.env]
    if edits.nodes:
        container["deviceNodes"] = [_node(node) for node in edits.nodes]
    if edits.mounts:
        container["mounts"] = [_mount(mount) for mount in edits.mounts]
    if not container:
        raise ValueError(f"CDI device {name!r} would change nothing, which CDI does not allow")
    return {"name": name, "containerEdits": container}


def _node(node: Node) -> dict[str, object]:
    entry: dict[str, object] = {
        "path": node.container_path,
        "hostPath": node.host_path,
        "permissions": node.permissions,
    }
    if node.owner is not None:
        owned = {"uid": node.owner.uid, "gid": node.owner.gid, "fileMode": node.owner.mode}
        entry |= {key: value for key, value in owned.items() if value is not None}
    return entry


def _mount(mount: Mount) -> dict[str, object]:
    return {
        "hostPath": mount.host_path,
        "containerPath": mount.container_path,
        "options": ["rbind", "nosuid", "nodev", "ro" if mount.read_only else "rw"],
    }


def _version(devices: Mapping[str, Edits]) -> str:
    """The lowest version that has every field used: old runtimes refuse a version they do not know.

    0.5.0 brought `hostPath` and device names that begin with a digit; the rest is in 0.3.0.
    """
    newer = any(name[0].isdigit() or edits.nodes for name, edits in devices.items())
    return "0.5.0" if newer else "0.3.0"


def _write(path: Path, document: Mapping[str, object], *, durable: bool) -> bool:
    content = json.dumps(document, indent=1).encode() + b"\n"
    aside = path.with_name(f"{_ASIDE}{os.getpid()}-{path.name}.tmp")
    try:
        if _content(path) == content:
            return False
        points.reached(points.Point.CDI_WRITING)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with aside.open("wb") as file:
            try:
                points.reached(points.Point.CDI_OPENED_ASIDE)
                os.fchmod(file.fileno(), _MODE)
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                points.reached(points.Point.CDI_WRITTEN_ASIDE)
                aside.replace(path)
                points.reached(points.Point.CDI_IN_PLACE)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise CdiError(
            f"CDI file {path} could not be written: {error.strerror}; containers cannot get its devices. "
            "Is the directory mounted into the bridge and writable?"
        ) from error
    return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove(path: Path) -> bool:
    points.reached(points.Point.CDI_REMOVING)
    try:
        path.unlink()
        points.reached(points.Point.CDI_REMOVED)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CdiError(
            f"CDI file {path} could not be removed: {error.strerror}; remove it by hand"
        ) from error
    return True


def _ours(directory: Path) -> list[Path]:
    try:
        return sorted(
            path for path in directory.iterdir() if path.name.startswith(_PREFIX) and path.suffix == _SUFFIX
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CdiError(
            f"CDI directory {directory} could not be read: {error.strerror}; is it mounted into the bridge?"
        ) from error


def _claim_of(path: Path) -> tuple[str, str] | None:
    """(group, UID) of a claim file's name; the last `-claim-` counts, since a UID never contains one."""
    group, marker, uid = path.name[len(_PREFIX) : -len(_SUFFIX)].rpartition(_CLAIM)
    return (group, uid) if marker and group and uid else None


def _is_claim_file(path: Path) -> bool:
    """Whether it holds a claim's entries: told by its content, since a group's name may look alike."""
    content = _content(path) or b""
    return _claim_of(path) is not None and b'"name": "claim-' in content


def _clear_aside(directory: Path) -> None:
    if directory.is_dir():
        for path in directory.glob(f"{_ASIDE}*{_SUFFIX}.tmp"):
            _remove(path)
