"""The kubelet's own records, of device plugin allocations and of claims, read only (kubelet-contract A.8, B.2).

Of allocations a superset with stale entries: presence means "do not release", absence proves nothing. It has what
podresources lacks, pod UIDs and ordinary init containers. Its checksum covers a Go struct's dump and cannot be
recomputed here, so the shape is checked instead, and one entry that cannot be understood spoils the file: half a
superset is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NAME = "kubelet_internal_checkpoint"
"""The file's name in the kubelet's device-plugins folder."""

CLAIMS = "dra_manager_state"
"""The name, in the kubelet's own folder, of its record of claims that it has prepared or begun to."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Devices of one resource that the kubelet gave to one container."""

    pod_uid: str
    container: str
    resource: str
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One readable checkpoint.

    Attributes:
        entries: allocations, those of pods long gone perhaps among them.
        registered: the healthy ids by resource, as of the last list.
    """

    entries: tuple[Entry, ...]
    registered: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no file: the kubelet has never given a device, or has lost its record."""

    path: Path


@dataclass(frozen=True, slots=True)
class Damaged:
    """There is a file and it cannot be understood. A kubelet that finds it so starts with no allocations at all."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class NotedDevice:
    """A device that the kubelet has noted down as prepared for a claim; `share_id` only for a share of one."""

    claim_uid: str
    namespace: str
    name: str
    driver: str
    pool: str
    device: str
    share_id: str


class _Malformed(Exception):
    """Where the content departs from the format."""


def read(path: Path) -> Checkpoint | Missing | Damaged:
    """Read a checkpoint. Blocks for as long as reading a small file does. Never raises for its content."""
    try:
        content: object = json.loads(path.read_bytes())
        return _checkpoint(content)
    except FileNotFoundError:
        return Missing(path)
    except (OSError, ValueError, RecursionError, _Malformed) as error:
        return Damaged(path, f"the kubelet's checkpoint {path} cannot be read: {error}")


def read_claims(path: Path) -> tuple[NotedDevice, ...] | Missing | Damaged:
    """Read the kubelet's record of claims: those whose pods it has not unprepared, whoever has forgotten them since.

    A claim whose Prepare is under way has no devices in it yet. Blocks as `read` does and never raises.
    """
    try:
        whole = _object(json.loads(path.read_bytes()), "the file")
        # The data is JSON within JSON, so that its checksum does not depend on the kubelet's types.
        data = _object(json.loads(_string(whole.get("Data"), "Data")), "Data")
        entries = _list(data["ClaimInfoStateList"], "ClaimInfoStateList")
        return tuple(
            found for number, entry in enumerate(entries) for found in _noted(entry, f"claim {number}")
        )
    except FileNotFoundError:
        return Missing(path)
    except (OSError, ValueError, KeyError, RecursionError, _Malformed) as error:
        return Damaged(path, f"the kubelet's record of claims {path} cannot be read: {error}")


def _noted(content: object, where: str) -> list[NotedDevice]:
    entry = _object(content, where)
    uid, namespace, claim = (
        _string(entry.get(key), f"{where}.{key}") for key in ("ClaimUID", "Namespace", "ClaimName")
    )
    found: list[NotedDevice] = []
    for driver, state in _object(entry.get("DriverState") or {}, f"{where}.DriverState").items():
        for device in _list(_object(state, driver).get("Devices"), f"{where}.{driver}"):
            one = _object(device, f"{where}.{driver}")
            pool, name = (_string(one.get(key), f"{where}.{key}") for key in ("PoolName", "DeviceName"))
            share = str(one.get("ShareID") or "")
            found.append(NotedDevice(uid, namespace, claim, driver, pool, name, share))
    return found


def _checkpoint(content: object) -> Checkpoint:
    whole = _object(content, "the file")
    if not isinstance(whole.get("Checksum"), int):
        raise _Malformed("Checksum is not a number")
    data = _object(whole.get("Data"), "Data")
    if "RegisteredDevices" not in data or "PodDeviceEntries" not in data:
        raise _Malformed("Data has no PodDeviceEntries or no RegisteredDevices")
    registered = _object(data["RegisteredDevices"] or {}, "RegisteredDevices")
    return Checkpoint(
        entries=tuple(
            _entry(entry, f"PodDeviceEntries[{number}]")
            for number, entry in enumerate(_list(data["PodDeviceEntries"], "PodDeviceEntries"))
        ),
        registered={
            resource: frozenset(_strings(ids, f"RegisteredDevices[{resource}]"))
            for resource, ids in registered.items()
        },
    )


def _entry(content: object, where: str) -> Entry:
    entry = _object(content, where)
    return Entry(
        pod_uid=_string(entry.get("PodUID"), f"{where}.PodUID"),
        container=_string(entry.get("ContainerName"), f"{where}.ContainerName"),
        resource=_string(entry.get("ResourceName"), f"{where}.ResourceName"),
        ids=frozenset(_ids(entry.get("DeviceIDs"), f"{where}.DeviceIDs")),
    )


def _ids(content: object, where: str) -> list[str]:
    """By NUMA node since 1.20, with -1 for none; a flat list before."""
    if isinstance(content, dict):
        return [one for node, ids in content.items() for one in _strings(ids, f"{where}[{node}]")]
    return _strings(content, where)


def _object(content: object, where: str) -> dict[str, object]:
    if not isinstance(content, dict):
        raise _Malformed(f"{where} is not an object")
    return content


def _list(content: object, where: str) -> list[object]:
    """Go writes an empty list that was never filled as null."""
    if content is None:
        return []
    if not isinstance(content, list):
        raise _Malformed(f"{where} is not a list")
    return content


def _strings(content: object, where: str) -> list[str]:
    return [_string(one, where) for one in _list(content, where)]


def _string(content: object, where: str) -> str:
    if not isinstance(content, str) or not content:
        raise _Malformed(f"{where} is not a text, or is empty")
    return content
