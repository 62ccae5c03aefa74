"""Which pod's container got which devices, and the plugin's cached answer: the device manager's memory."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb

NO_NODE = "-1"


@dataclass(frozen=True, slots=True)
class Grant:
    """Devices of one (container, resource): ids by NUMA node (`-1` without), and the answer that came with them."""

    by_node: Mapping[str, tuple[str, ...]]
    response: pb.ContainerAllocateResponse

    @property
    def ids(self) -> set[str]:
        """All ids."""
        return {device for ids in self.by_node.values() for device in ids}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the memory."""

    pod_uid: str
    container: str
    resource: str
    grant: Grant


class Allocations:
    """The rows, by pod, container and resource."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str], Grant] = {}

    def put(self, pod_uid: str, container: str, resource: str, grant: Grant) -> None:
        """Remember a grant."""
        self._rows[(pod_uid, container, resource)] = grant

    def get(self, pod_uid: str, container: str, resource: str) -> Grant | None:
        """Return a grant."""
        return self._rows.get((pod_uid, container, resource))

    def of(self, pod_uid: str, container: str) -> dict[str, Grant]:
        """Return a container's grants by resource."""
        return {e.resource: e.grant for e in self if (e.pod_uid, e.container) == (pod_uid, container)}

    def pods(self) -> set[str]:
        """Return the pods that have any."""
        return {pod for pod, _, _ in self._rows}

    def drop(self, pod_uids: set[str]) -> None:
        """Forget pods."""
        self._rows = {key: grant for key, grant in self._rows.items() if key[0] not in pod_uids}

    def devices(self) -> dict[str, set[str]]:
        """Return all granted ids by resource."""
        found: dict[str, set[str]] = {}
        for entry in self:
            found.setdefault(entry.resource, set()).update(entry.grant.ids)
        return found

    def __iter__(self) -> Iterator[Entry]:
        for (pod, container, resource), grant in self._rows.items():
            yield Entry(pod, container, resource, grant)

    def to_data(self) -> list[dict[str, Any]] | None:
        """Return the checkpoint's PodDeviceEntries; null when there are none, as Go writes it."""
        rows = [
            {
                "PodUID": entry.pod_uid,
                "ContainerName": entry.container,
                "ResourceName": entry.resource,
                "DeviceIDs": {node: sorted(ids) for node, ids in entry.grant.by_node.items()},
                "AllocResp": base64.b64encode(entry.grant.response.SerializeToString()).decode(),
            }
            for entry in self
        ]
        return rows or None

    @staticmethod
    def from_data(rows: list[dict[str, Any]] | None) -> Allocations:
        """Read PodDeviceEntries back."""
        found = Allocations()
        for row in rows or []:
            by_node = {node: tuple(ids) for node, ids in row["DeviceIDs"].items()}
            response = pb.ContainerAllocateResponse.FromString(base64.b64decode(row["AllocResp"]))
            found.put(row["PodUID"], row["ContainerName"], row["ResourceName"], Grant(by_node, response))
        return found
