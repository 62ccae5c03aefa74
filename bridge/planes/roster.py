"""The devices of a group as the planes know them: what was found, and what is gone but still held.

Pure. Resolves the names that kubelet and scheduler use (IDs, device names, shares) to devices, and turns a wish for
one into a pick that the ledger can decide on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bridge.config import Group, Mode, Sharing
from bridge.devices.model import ContainerEdits, Device, Health, Inventory, natural_key
from bridge.ledger.account import Account
from bridge.ledger.holds import Pick, Plane, Use
from bridge.planes.modes import Offering


class Unavailable(Exception):
    """A device that cannot be handed out whoever holds what: unknown, unplugged, broken, not of this plane."""


@dataclass(frozen=True, slots=True)
class Roster:
    """One group's devices.

    Attributes:
        group: its configuration, with the mode that it is nearest to now.
        offering: what its planes show now.
        devices: in natural order of name; unplugged ones that are held stand among them (H38).
        capacities: capacity of each part they use.
        by_name: device by name, and by the name of each of its shares.
        device_plugin_shares: shares that mode and configuration give to the device plugin plane.
        dra_shares: shares that they give to DRA; in `dual` with `shared` the two are the same.
        remembers: whether some stand among them as they were, for the sake of their holders.
    """

    group: Group
    devices: tuple[Device, ...]
    capacities: Mapping[str, int]
    by_name: Mapping[str, Device] = field(repr=False)
    device_plugin_shares: frozenset[str] = field(repr=False)
    dra_shares: frozenset[str] = field(repr=False)
    offering: Offering
    remembers: bool = False

    @classmethod
    def build(
        cls,
        group: Group,
        inventory: Inventory,
        account: Account,
        before: Roster | None = None,
        offering: Offering | None = None,
    ) -> Roster:
        """The roster of a group; the one before still knows what unplugged devices were like.

        `offering`: what it shows now; without it, what the configuration says.
        """
        offering = offering or Offering.of(group.mode)
        group = group if group.mode is offering.mode else replace(group, mode=offering.mode)
        found = {device.name: device for device in inventory.group(group.name)}
        changed = {d.name: d for d in _changed(group, found, account, before)}
        gone = tuple(_unplugged(group, found, account, before))
        present = {**found, **changed}.values()
        devices = tuple(sorted((*present, *gone), key=lambda d: natural_key(d.name)))
        by_name = {device.name: device for device in devices}
        names: list[str] = []
        for device in devices:
            shares = device.share_names()
            names.extend(shares)
            by_name.update(dict.fromkeys(shares, device))
        ours, theirs = _split(group, names)
        return cls(
            group,
            devices,
            inventory.parts,
            by_name,
            ours if offering.device_plugin else frozenset(),
            theirs if offering.dra else frozenset(),
            offering,
            bool(gone or changed),
        )

    @property
    def device_plugin_offered(self) -> bool:
        """Whether what is free is offered through the device plugin API."""
        return self.offering.device_plugin

    @property
    def dra_offered(self) -> bool:
        """Whether what is free is offered through DRA."""
        return self.offering.dra

    def pick(self, name: str, units: int = 1, share: str = "") -> Pick:
        """A pick of `units` shares of the device (or share) called `name`, recorded under `share`.

        Raises Unavailable with a text for the caller.
        """
        device = self.by_name.get(name)
        if device is None:
            raise Unavailable(
                f"{name} is no device of group {self.group.name}, which has {len(self.devices)}; "
                f"`bridge devices` lists them"
            )
        if not device.present:
            raise Unavailable(f"{name} is unplugged; it is offered again when it is back")
        if not device.health.ok:
            raise Unavailable(f"{name} is not healthy: {device.health.reason}")
        if units > device.shares:
            raise Unavailable(f"{name} has {device.shares} {device.share_unit}, {units} were asked for")
        return Pick(self.group.name, device.name, share or name, self.uses(device, units))

    def uses(self, device: Device, units: int = 1) -> tuple[Use, ...]:
        """What a hold of so many shares uses."""
        return tuple(
            Use(part, amount * units, self.capacities.get(part, amount * device.shares))
            for part, amount in sorted(device.parts.items())
        )


def check_present(devices: Iterable[Device], there: Callable[[str], bool]) -> None:
    """Look once more whether the nodes of devices exist: one may have gone since the last scan, however short.

    `there` tells it for a host path. Raises Unavailable: the container would fail with a worse message, and later.
    """
    for device in devices:
        for node in device.edits.nodes:
            if not there(node.host_path):
                raise Unavailable(
                    f"{device.name} has just gone: {node.host_path} does not exist any more; it is offered again "
                    "when it is back"
                )


def _changed(
    group: Group, found: Mapping[str, Device], account: Account, before: Roster | None
) -> Iterator[Device]:
    """Held devices whose name now stands for other silicon: as their holders know them, and not to be had.

    A container that restarts must get what was booked for it; what the name newly stands for is booked for nobody.
    """
    why = "what it is made of changed while it is held; it is offered again when its holder has ended"
    for plane in Plane:
        for hold in account.of_group(plane, group.name):
            device = found.get(hold.device)
            booked = {use.part: use.amount for use in hold.uses}
            if device is None or device.parts.keys() <= booked.keys():
                continue
            known = before.by_name.get(hold.device) if before is not None else None
            edits = (
                known.edits if known is not None and known.parts.keys() == booked.keys() else ContainerEdits()
            )
            yield replace(device, edits=edits, parts=booked, health=Health(False, why))


def _unplugged(
    group: Group, found: Mapping[str, Device], account: Account, before: Roster | None
) -> Iterable[Device]:
    """Held devices that the scan no longer sees: as they were, or as far as their holds tell."""
    gone: dict[str, Device] = {}
    health = Health(False, "unplugged")
    for plane in Plane:
        for hold in account.of_group(plane, group.name):
            if hold.device in found or hold.device in gone:
                continue
            known = before.by_name.get(hold.device) if before is not None else None
            if known is not None:
                gone[hold.device] = replace(known, health=health, present=False)
                continue
            gone[hold.device] = Device(
                group.name,
                hold.device,
                group.kind,
                ContainerEdits(),
                health=health,
                parts={use.part: use.amount for use in hold.uses},
                present=False,
            )
    return gone.values()


def _split(group: Group, names: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Which shares each plane may offer."""
    everything = frozenset(names)
    match group.mode:
        case Mode.DEVICE_PLUGIN:
            return everything, frozenset()
        case Mode.DRA:
            return frozenset(), everything
        case Mode.DUAL:
            if group.sharing is Sharing.SHARED or group.partition is None:
                return everything, everything
            ours = group.partition.device_plugin(names)
            return ours, everything - ours
