"""One scan: every group's discovery, merged into one inventory. Reads the trees, keeps nothing.

The merge keeps "exclusive" exclusive whatever other groups say of the same silicon (S2, S3): a part's
capacity is the smallest that any sharing group gives it, an amount that was a group's whole capacity stays
the whole, and nodes with the same device numbers use up each other's parts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import Found, Watches
from bridge.devices.model import Device, Inventory, Problem
from bridge.platform.roots import Roots


class GroupSpec(Protocol):
    """What discovery needs to know of a configured group."""

    @property
    def name(self) -> str:
        """Name of the group."""

    @property
    def kind(self) -> str:
        """A key of `KINDS`."""

    @property
    def options(self) -> object:
        """Of the kind's options type."""


def scan(groups: Sequence[GroupSpec], roots: Roots) -> Inventory:
    """Everything that is there now, in the order of the groups.

    Raises:
        OSError: a tree could not be read; what is there is unknown, which is not the same as gone.
    """
    return merge(
        {group.name: KINDS[group.kind].discover(group.name, group.options, roots) for group in groups}
    )


def watches(groups: Sequence[GroupSpec], roots: Roots) -> Watches:
    """What to watch for `scan` to answer differently."""
    total = Watches()
    for group in groups:
        total |= KINDS[group.kind].watches(group.options, roots)
    return total


def merge(found: Mapping[str, Found]) -> Inventory:
    """One inventory of all groups' findings. Pure.

    Capacity of a part: the smallest above 1 that a group gives it, else 1. A group that gives 1 does not
    share the part at all, so all it uses is the whole. Example: one group offers a node with 4 replicas,
    another exclusively: capacity 4, a replica uses 1, the exclusive device uses 4.
    """
    silicon = _Silicon.of(found)
    capacities = {chip: _capacity(votes) for chip, votes in silicon.votes.items()}
    devices: list[Device] = []
    problems: list[Problem] = []
    for group, findings in found.items():
        names: set[str] = set()
        problems += findings.problems
        problems += silicon.twins(group, findings)
        for device in findings.devices:
            if device.name in names:
                problems.append(_name_taken(device))
                continue
            names.add(device.name)
            devices.append(_fitted(device, findings, silicon, capacities))
    problems += silicon.disagreements(capacities)
    parts = {part: capacities[silicon.chip(part)] for device in devices for part in device.parts}
    return Inventory(tuple(devices), parts, tuple(problems))


@dataclass(frozen=True, slots=True)
class _Silicon:
    """Which parts are one piece of silicon, and what each group says of its capacity.

    Attributes:
        names: every part name of a piece, in order, by each of them; only for pieces with several.
        votes: {piece: {group: capacity}}; a piece goes by the first of its names.
    """

    names: Mapping[str, tuple[str, ...]]
    votes: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, found: Mapping[str, Found]) -> _Silicon:
        by_identity: dict[str, set[str]] = defaultdict(set)
        for findings in found.values():
            for part, identity in findings.identities.items():
                by_identity[identity].add(part)
        names = {
            part: tuple(sorted(parts)) for parts in by_identity.values() if len(parts) > 1 for part in parts
        }
        votes: dict[str, dict[str, int]] = defaultdict(dict)
        for group, findings in found.items():
            for part, capacity in findings.parts.items():
                chip = names.get(part, (part,))[0]
                votes[chip][group] = min(capacity, votes[chip].get(group, capacity))
        return cls(names, votes)

    def chip(self, part: str) -> str:
        """The piece that a part belongs to."""
        return self.all_names(part)[0]

    def all_names(self, part: str) -> tuple[str, ...]:
        """Every part name of the same piece.

        A device uses all of them: should one node go while its twin is held, the other still meets the hold.
        """
        return self.names.get(part, (part,))

    def twins(self, group: str, findings: Found) -> Iterator[Problem]:
        """One problem for each piece that the group meets under several names."""
        for names in sorted({self.names[part] for part in findings.parts if part in self.names}):
            yield Problem(
                group,
                names[0],
                f"{' and '.join(names)} have the same device numbers, so they are one device: holding one keeps "
                "the others from being handed out; exclude all but one",
            )

    def disagreements(self, capacities: Mapping[str, int]) -> Iterator[Problem]:
        """Groups that share the same piece by different numbers."""
        for chip, votes in self.votes.items():
            sharing = {group: capacity for group, capacity in votes.items() if capacity > 1}
            if len(set(sharing.values())) > 1:
                said = ", ".join(f"{group} says {capacity}" for group, capacity in sharing.items())
                for group in sharing:
                    yield Problem(
                        group,
                        chip,
                        f"groups disagree on how many may share {chip}: {said}; "
                        f"{capacities[chip]} may. Give them the same number",
                    )


def _capacity(votes: Mapping[str, int]) -> int:
    return min((capacity for capacity in votes.values() if capacity > 1), default=1)


def _fitted(device: Device, findings: Found, silicon: _Silicon, capacities: Mapping[str, int]) -> Device:
    """The device with its amounts and shares in terms of the agreed capacities."""
    amounts: dict[str, int] = {}
    for part, amount in device.parts.items():
        agreed = capacities[silicon.chip(part)]
        whole = amount >= findings.parts[part]
        for name in silicon.all_names(part):
            amounts[name] = max(amounts.get(name, 0), agreed if whole else min(amount, agreed))
    if not device.shareable:
        return replace(device, parts=amounts) if amounts != device.parts else device
    fit = min((capacities[silicon.chip(part)] // amount for part, amount in amounts.items()), default=1)
    shares = max(1, min(device.shares, fit))
    return replace(device, parts=amounts, shares=shares)


def _name_taken(device: Device) -> Problem:
    return Problem(
        device.group,
        device.name,
        f"two devices of the group would be called {device.name}; the second "
        f"({', '.join(device.parts)}) is left out. Give one another name under devices",
    )
