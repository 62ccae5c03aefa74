"""What the kubelet remembers of claims: the claim-info cache and its checkpoint (`dra_manager_state`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.sandbox.cluster.objects import Object, dig, name_of, namespace_of, uid_of
from bridge.sandbox.kubelet import checkpoint


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """One device as a driver's answer names it."""

    pool: str
    device: str
    requests: tuple[str, ...]
    cdi_ids: tuple[str, ...]
    share_id: str | None = None


@dataclass(slots=True)
class ClaimInfo:
    """One claim in use on this node.

    Attributes:
        pods: uids of the pods that use it.
        drivers: per driver what it prepared; drivers are there before they have answered.
        prepared: memory only: after a kubelet restart a claim is prepared again for the next pod that gets a sandbox.
    """

    uid: str
    namespace: str
    name: str
    pods: set[str]
    drivers: dict[str, list[PreparedDevice]]
    prepared: bool = False

    @staticmethod
    def of(claim: Object) -> ClaimInfo:
        """Make the entry of an allocated claim."""
        results: list[Object] = dig(claim, "status.allocation.devices.results", [])
        return ClaimInfo(
            uid_of(claim), namespace_of(claim), name_of(claim), set(), {r["driver"]: [] for r in results}
        )

    @property
    def label(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def devices(self, request: str = "") -> Iterator[tuple[str, PreparedDevice]]:
        """Yield (driver, device), of one request or of all."""
        for driver, devices in self.drivers.items():
            for device in devices:
                if not request or not device.requests or request in device.requests:
                    yield driver, device


@dataclass(slots=True)
class ClaimCache:
    """Claims by namespace and name, checkpointed."""

    path: Path
    claims: dict[tuple[str, str], ClaimInfo] = field(default_factory=dict)

    def save(self) -> None:
        """Write the checkpoint."""
        entries = [_to_entry(info) for info in self.claims.values()]
        data = {
            "kind": "DRACheckpointData",
            "apiVersion": "checkpoint.dra.kubelet.k8s.io/v1",
            "ClaimInfoStateList": entries,
        }
        checkpoint.write(self.path, json.dumps(data))

    def load(self) -> None:
        """Read the checkpoint; a corrupt one stops the kubelet from starting, as in the real one.

        Raises:
            CheckpointCorrupt
        """
        data = checkpoint.read(self.path)
        for entry in json.loads(data)["ClaimInfoStateList"] or [] if data else []:
            info = _from_entry(entry)
            self.claims[(info.namespace, info.name)] = info


def _to_entry(info: ClaimInfo) -> dict[str, Any]:
    def device(prepared: PreparedDevice) -> dict[str, Any]:
        return {
            "PoolName": prepared.pool,
            "DeviceName": prepared.device,
            "RequestNames": list(prepared.requests),
            "CDIDeviceIDs": list(prepared.cdi_ids),
            "ShareID": prepared.share_id,
        }

    return {
        "ClaimUID": info.uid,
        "ClaimName": info.name,
        "Namespace": info.namespace,
        "PodUIDs": {uid: {} for uid in sorted(info.pods)},
        "DriverState": {driver: {"Devices": [device(d) for d in ds]} for driver, ds in info.drivers.items()},
    }


def _from_entry(entry: dict[str, Any]) -> ClaimInfo:
    def device(raw: dict[str, Any]) -> PreparedDevice:
        requests, cdi = tuple(raw["RequestNames"]), tuple(raw["CDIDeviceIDs"])
        return PreparedDevice(raw["PoolName"], raw["DeviceName"], requests, cdi, raw["ShareID"])

    drivers = {
        driver: [device(d) for d in state["Devices"]] for driver, state in entry["DriverState"].items()
    }
    return ClaimInfo(
        entry["ClaimUID"], entry["Namespace"], entry["ClaimName"], set(entry["PodUIDs"]), drivers
    )
