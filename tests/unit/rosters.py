"""Devices, rosters and accounts for tests of the planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bridge.config import Binding, Group, Mode, Registration, Sharing
from bridge.config.model import Partition
from bridge.devices.model import ContainerEdits, Device, DeviceNode, Health, Inventory
from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Hold, Phase, Plane, PodHolder, Quarantine, Use
from bridge.planes.modes import Offering
from bridge.planes.roster import Roster


def group(mode: Mode = Mode.DUAL, partition: Partition | None = None) -> Group:
    sharing = Sharing.SHARED if partition is None else Sharing.PARTITION
    return Group(
        "acc",
        "device-node",
        "device-bridge.io/acc",
        "acc.device-bridge.io",
        mode,
        sharing,
        partition,
        Binding.AUTO,
        Registration.WATCHER,
        None,
    )


def device(name: str, *, shares: int = 1, ok: bool = True, **more: Any) -> Device:
    node = DeviceNode(f"/dev/{name}", f"/dev/{name}")
    health = Health() if ok else Health(False, "too hot")
    return Device(
        "acc",
        name,
        "device-node",
        ContainerEdits((node,)),
        health=health,
        parts={f"/dev/{name}": 1},
        shares=shares,
        **more,
    )


def inventory(*devices: Device) -> Inventory:
    return Inventory(devices, {part: one.shares for one in devices for part in one.parts})


def hold(number: int, plane: Plane, of: Device, share: str = "", units: int = 1, phase: str = "") -> Hold:
    holder = (
        PodHolder("default", "p")
        if plane is Plane.DEVICE_PLUGIN
        else ClaimHolder("default", "c", f"u{number}")
    )
    usual = Phase.HELD if plane is Plane.DEVICE_PLUGIN else Phase.PREPARED
    uses = tuple(Use(part, amount * units, of.shares) for part, amount in of.parts.items())
    return Hold(
        number,
        plane,
        Phase(phase) if phase else usual,
        "acc",
        of.name,
        share or of.name,
        holder,
        uses,
        0.0,
    )


def account(holds: Sequence[Hold] = (), quarantined: Mapping[str, str] | None = None) -> Account:
    entries = [Quarantine("acc", name, why, 0.0) for name, why in (quarantined or {}).items()]
    return Account(holds, (), entries)


def roster(
    of: Group,
    found: Inventory,
    holds: Account,
    before: Roster | None = None,
    offering: Offering | None = None,
) -> Roster:
    return Roster.build(of, found, holds, before, offering)
