"""CDI as a container runtime does it: specs read from their folders, names resolved strictly, edits merged.

Written against the CDI specification, not against the bridge's writer, so that a fault there is not mirrored here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAME = re.compile(
    r"(?P<vendor>[A-Za-z]([\w.-]*[A-Za-z0-9])?)/(?P<cls>[A-Za-z]([\w-]*[A-Za-z0-9])?)"
    r"=(?P<device>[A-Za-z0-9]([\w.:-]*[A-Za-z0-9])?)"
)
_TOP = {"cdiVersion", "kind", "annotations", "devices", "containerEdits"}
_DEVICE = {"name", "annotations", "containerEdits"}
_EDITS = {"env", "deviceNodes", "netDevices", "hooks", "mounts", "intelRdt", "additionalGids"}
_NODE = {"path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"}


class CdiError(Exception):
    """What a runtime says when it cannot inject a device."""


@dataclass(frozen=True, slots=True)
class Node:
    """A device node in a container."""

    host_path: str
    container_path: str
    permissions: str
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(slots=True)
class Edits:
    """What a container got: by CDI, by DeviceSpecs, or both."""

    env: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    cdi_names: list[str] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)


def parse_name(name: str) -> tuple[str, str]:
    """Split a fully-qualified device name into (kind, device).

    Raises:
        CdiError: if it is not `vendor/class=name`.
    """
    if (found := _NAME.fullmatch(name)) is None:
        raise CdiError(f'invalid CDI device name "{name}": want vendor/class=name')
    return f"{found['vendor']}/{found['cls']}", found["device"]


class Specs:
    """The spec files of some folders; later folders win over earlier ones."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders

    def resolve(self, names: list[str]) -> Edits:
        """Return the merged edits of devices.

        Raises:
            CdiError: for unknown or ambiguous devices, and for spec files that do not parse: a runtime leaves such
                a file out, so that its devices are unresolvable.
        """
        devices, errors = self._devices()
        edits = Edits()
        missing = [name for name in names if parse_name(name) not in devices]
        if missing:
            tail = f" ({'; '.join(errors)})" if errors else ""
            raise CdiError(
                f"CDI device injection failed: unresolvable CDI devices {', '.join(missing)}{tail}"
            )
        kinds_done: set[Path] = set()
        for name in dict.fromkeys(names):
            path, spec, device = devices[parse_name(name)]
            if path not in kinds_done:
                kinds_done.add(path)
                _merge(edits, spec.get("containerEdits") or {})
            _merge(edits, device.get("containerEdits") or {})
            edits.cdi_names.append(name)
        return edits

    def _devices(
        self,
    ) -> tuple[dict[tuple[str, str], tuple[Path, dict[str, Any], dict[str, Any]]], list[str]]:
        found: dict[tuple[str, str], tuple[Path, dict[str, Any], dict[str, Any]]] = {}
        errors: list[str] = []
        for folder in self._folders:
            inside: dict[tuple[str, str], Path] = {}
            for path in sorted(folder.glob("*.json")):
                try:
                    spec = _load(path)
                except (CdiError, ValueError) as error:
                    errors.append(f"{path.name}: {error}")
                    continue
                for device in spec["devices"]:
                    key = (spec["kind"], device["name"])
                    if key in inside:
                        errors.append(
                            f"conflicting device {key[0]}={key[1]} in {path.name} and {inside[key].name}"
                        )
                        found.pop(key, None)
                        continue
                    inside[key] = path
                    found[key] = (path, spec, device)
        return found, errors


def _load(path: Path) -> dict[str, Any]:
    spec = json.loads(path.read_text())
    if not isinstance(spec, dict):
        raise CdiError("not an object")
    _only(spec, _TOP, "spec")
    if not re.fullmatch(r"(0\.[3-8]|1\.\d)\.\d", str(spec.get("cdiVersion"))):
        raise CdiError(f"unknown cdiVersion {spec.get('cdiVersion')!r}")
    if not spec.get("devices"):
        raise CdiError("a spec must have devices")
    for device in spec["devices"]:
        _only(device, _DEVICE, "device")
        parse_name(f"{spec.get('kind')}={device.get('name')}")
        if not device.get("containerEdits"):
            raise CdiError(f"device {device['name']} has no container edits")
        _check_edits(device["containerEdits"])
    _check_edits(spec.get("containerEdits") or {})
    return spec


def _only(obj: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := set(obj) - known:
        raise CdiError(f"unknown fields in {what}: {', '.join(sorted(unknown))}")


def _check_edits(edits: dict[str, Any]) -> None:
    _only(edits, _EDITS, "containerEdits")
    for entry in edits.get("env") or []:
        if "=" not in entry:
            raise CdiError(f"env {entry!r} is not NAME=value")
    for node in edits.get("deviceNodes") or []:
        _only(node, _NODE, "deviceNodes")
        if not str(node.get("path", "")).startswith("/"):
            raise CdiError(f"device node path {node.get('path')!r} is not absolute")
        if set(node.get("permissions", "rwm")) - set("rwm"):
            raise CdiError(f"permissions {node['permissions']!r} are not of r, w, m")
        if node.get("type") not in (None, "c", "b", "u", "p"):
            raise CdiError(f"device node type {node['type']!r}")
    for mount in edits.get("mounts") or []:
        if not mount.get("hostPath") or not mount.get("containerPath"):
            raise CdiError("a mount needs hostPath and containerPath")


def _merge(edits: Edits, more: dict[str, Any]) -> None:
    for entry in more.get("env") or []:
        key, _, value = entry.partition("=")
        edits.env[key] = value
    for node in more.get("deviceNodes") or []:
        edits.nodes.append(
            Node(
                node.get("hostPath") or node["path"],
                node["path"],
                node.get("permissions", "rw"),
                node.get("uid"),
                node.get("gid"),
                node.get("fileMode"),
            )
        )
    edits.mounts += more.get("mounts") or []
