"""How many devices of a group are in which state, and how many a new pod could have on each plane.

Pure, and the one place that counts: metrics and the NodeBridge show what is counted here, once for both. Everything
is counted in shares, as the planes hand them out: a device that only one may have counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.devices.model import Device
from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Phase, Plane
from bridge.planes.projection import free_units, units_of
from bridge.planes.roster import Roster

PLANE_OF = {
    Phase.GRANTED: Plane.DEVICE_PLUGIN,
    Phase.HELD: Plane.DEVICE_PLUGIN,
    Phase.RESERVED: Plane.DRA,
    Phase.PREPARED: Plane.DRA,
    Phase.RELEASING: Plane.DRA,
}
"""The plane whose holds go through a phase."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The shares of one group.

    Attributes:
        held: by phase, every phase named; held shares of unhealthy and quarantined devices count here.
        free, unhealthy, quarantined: shares that nobody holds. With those held they add up to all. Silicon that
            another group holds counts there, and here as nothing.
        open: by plane, how many shares a new pod could have there. In `dual` with `shared` both planes offer the
            same ones.
    """

    held: Mapping[Phase, int]
    free: int
    unhealthy: int
    quarantined: int
    open: Mapping[Plane, int]

    @property
    def all(self) -> int:
        """All shares."""
        return self.free + self.unhealthy + self.quarantined + sum(self.held.values())

    def held_on(self, plane: Plane) -> int:
        """Shares that a plane has handed out or reserved."""
        return sum(count for phase, count in self.held.items() if PLANE_OF[phase] is plane)


def count(roster: Roster, account: Account) -> Counts:
    """Count one group. Costs the ledger's room for each device; only a partition is looked at share by share."""
    held = dict.fromkeys(Phase, 0)
    holds = {plane: account.of_group(plane, roster.group.name) for plane in Plane}
    for plane in Plane:
        for hold in holds[plane]:
            held[hold.phase] += units_of(hold, roster)
    room = {"free": 0, "unhealthy": 0, "quarantined": 0}
    free: dict[str, int] = {}
    for device in roster.devices:
        state, units = _state(account, device), free_units(roster, account, device)
        room[state] += units
        if state == "free" and units:
            free[device.name] = units
    open_on = {plane: _open(roster, plane, free, holds[plane]) for plane in Plane}
    return Counts(held, room["free"], room["unhealthy"], room["quarantined"], open_on)


def _state(account: Account, device: Device) -> str:
    if account.quarantine_of(device.group, device.name) is not None:
        return "quarantined"
    return "free" if device.health.ok else "unhealthy"


def _open(roster: Roster, plane: Plane, free: Mapping[str, int], holds: Sequence[Hold]) -> int:
    """Of the free shares of each device, those that a plane offers; as `bridge.planes.projection` shows them."""
    ours = roster.device_plugin_shares if plane is Plane.DEVICE_PLUGIN else roster.dra_shares
    if not ours:
        return 0
    if len(ours) == sum(device.shares for device in roster.devices):
        return sum(free.values())
    used: Counter[str] = Counter()
    for hold in holds:
        # An ID of the device plugin is a share of the partition by its name; DRA has an amount of its quota.
        used[hold.device] += units_of(hold, roster) if plane is Plane.DRA else hold.share in ours
    quotas = {name: sum(s in ours for s in roster.by_name[name].share_names()) for name in free}
    return sum(max(0, min(units, quotas[name] - used[name])) for name, units in free.items())
