"""The rosters of all groups, kept current with inventory and ledger, and a pulse for each group that changed."""

from __future__ import annotations

from bridge.config import Group
from bridge.devices.model import Inventory
from bridge.ledger.account import Account
from bridge.ledger.holds import Pick, Plane
from bridge.ledger.ledger import Ledger
from bridge.ledger.switches import Gate
from bridge.planes.modes import Offering
from bridge.planes.modes import offering as offering_of
from bridge.planes.roster import Roster
from bridge.platform.pulse import Pulse


class Rosters:
    """Current rosters by group. Single event loop.

    Attributes:
        inventory: what they were made from.
        pulses: by group, rung at each change that concerns it; `any` at each change at all.
    """

    def __init__(self, groups: tuple[Group, ...], inventory: Inventory, ledger: Ledger) -> None:
        self._groups = groups
        self._ledger = ledger
        self.inventory = inventory
        self.pulses: dict[str, Pulse] = {group.name: Pulse() for group in groups}
        self.any = Pulse()
        self._offerings = {group.name: begun(group, ledger.account) for group in groups}
        self._rosters: dict[str, Roster] = {}
        self._by_part: dict[str, frozenset[str]] = {}
        self.take(inventory)
        ledger.subscribe(self._ledger_changed)

    def of(self, group: str) -> Roster:
        """The roster of a group as it is now."""
        return self._rosters[group]

    def take(self, inventory: Inventory) -> None:
        """Go on with another inventory."""
        self.inventory = inventory
        by_part: dict[str, set[str]] = {}
        for device in inventory.devices:
            for part in device.parts:
                by_part.setdefault(part, set()).add(device.group)
        self._by_part = {part: frozenset(names) for part, names in by_part.items()}
        for group in self._groups:
            self._build(group)
        for pulse in (*self.pulses.values(), self.any):
            pulse.ring()

    def preview(self, inventory: Inventory) -> tuple[Roster, ...]:
        """The rosters as another inventory would make them; nothing changes."""
        account = self._ledger.account
        return tuple(
            Roster.build(
                group, inventory, account, self._rosters.get(group.name), self._offerings[group.name]
            )
            for group in self._groups
        )

    def offer(self, group: Group, offering: Offering) -> None:
        """Show a group otherwise from now on."""
        if self._offerings[group.name] == offering:
            return
        self._offerings[group.name] = offering
        self._build(group)
        self.pulses[group.name].ring()
        self.any.ring()

    def known_pick(self, group: str, device_id: str) -> Pick:
        """The pick for an ID that the kubelet says it gave out, whatever state its device is in.

        Raises LookupError for an ID that is none of the group's.
        """
        roster = self._rosters[group]
        device = roster.by_name.get(device_id)
        if device is None:
            raise LookupError(
                f"the kubelet has given out {device_id}, which is no device of group {group}: another device "
                f"plugin served this resource before; drain the node, or give the group another resourceName"
            )
        return Pick(group, device.name, device_id, roster.uses(device))

    def serves(self, group: Group, plane: Plane) -> bool:
        """Whether a plane has to be served: it is offered, it is closing and somebody has to be told, or something
        handed out on it is not yet back."""
        switch = self._ledger.account.switch_of(group.name)
        if plane is Plane.DEVICE_PLUGIN:
            needed = self._offerings[group.name].listed
        else:
            needed = self._offerings[group.name].dra or (switch is not None and switch.dra is Gate.CLOSING)
        return needed or bool(self._ledger.account.of_group(plane, group.name))

    def _build(self, group: Group) -> None:
        before = self._rosters.get(group.name)
        self._rosters[group.name] = Roster.build(
            group, self.inventory, self._ledger.account, before, self._offerings[group.name]
        )

    def _ledger_changed(self, parts: frozenset[str]) -> None:
        """Ring the groups whose silicon was touched; unplugged devices leave with their last hold."""
        touched = {name for part in parts for name in self._by_part.get(part, self.pulses.keys())}
        for group in self._groups:
            if parts and group.name not in touched:
                continue
            if self._rosters[group.name].remembers:
                self._build(group)
            self.pulses[group.name].ring()
        self.any.ring()


def begun(group: Group, account: Account) -> Offering:
    """What a group shows until somebody who knows more says otherwise: what the ledger says of it, cautiously, else
    the configuration."""
    switch = account.switch_of(group.name)
    if switch is None:
        return Offering.of(group.mode)
    return offering_of(switch, same_name=group.keep_resource_name, wait_for_holders=False, admitting=True)


def without_new(inventory: Inventory, known: Inventory) -> Inventory:
    """What of an inventory was there before."""
    names = {(device.group, device.name) for device in known.devices}
    devices = tuple(device for device in inventory.devices if (device.group, device.name) in names)
    return Inventory(devices, inventory.parts, inventory.problems)
