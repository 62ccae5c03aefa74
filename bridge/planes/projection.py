"""What each plane may show of the inventory.

Pure: roster and account in, views out. Keeps Q1 (design 1): a device held by one plane leaves the other, and Q2:
the planes hide from opposite ends. Physical health and arbitration are told apart (H23). Knows nothing of gRPC,
slices on the wire, or files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from bridge.devices.model import ContainerEdits, Device
from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Phase, Plane
from bridge.planes.claims import is_by_name
from bridge.planes.roster import Roster


@dataclass(frozen=True, slots=True)
class IdOffer:
    """One ID as ListAndWatch shows it."""

    id: str
    healthy: bool
    numa_node: int | None
    mirrored: bool = False
    """Healthy for the scheduler's count alone: DRA has it (`Offering.mirrors`)."""
    leaving: bool = False
    """Mirrored, and about to be free: of the mirrored ones, those to be given away first."""


@dataclass(frozen=True, slots=True)
class SliceOffer:
    """One device as a ResourceSlice shows it.

    Attributes:
        name: the device, or the share where capacity cannot be consumed.
        device: what it stands for.
        units: the consumable amount of `device.share_unit`; None for a device that is allocated whole.
        most: what one claim may have of it; None for all of it.
        evict: whether it is shown so that the claim that lost it is moved away (`bridge.planes.healing`).
    """

    name: str
    device: Device
    units: int | None = None
    evict: bool = False
    most: int | None = None


T = TypeVar("T")


class Memory(Generic[T]):
    """What was last made of each device, as long as all that it depends on is the same.

    A hand-out touches one device of hundreds; without this it would cost a projection of them all.
    """

    def __init__(self) -> None:
        self._roster: Roster | None = None
        self._made: dict[str, tuple[object, T]] = {}

    def of(self, roster: Roster, device: Device, state: object, make: Callable[[], T]) -> T:
        """What `make` gives for a device whose holds and quarantine are told by `state`."""
        if roster is not self._roster:
            self._roster, self._made = roster, {}
        known = self._made.get(device.name)
        if known is None or known[0] != state:
            known = self._made[device.name] = (state, make())
        return known[1]


def _state(account: Account, device: Device) -> tuple[object, ...]:
    """What of the account a device's views depend on, besides the group's own holds of it."""
    return (account.quarantine_of(device.group, device.name), *map(account.standing, device.parts))


def device_plugin_view(
    roster: Roster, account: Account, memory: Memory[tuple[IdOffer, ...]] | None = None
) -> tuple[IdOffer, ...]:
    """List what ListAndWatch shows, in stable order.

    An ID whose device DRA holds stays listed as unhealthy: the kubelet forgets what is not listed and would fail
    pods that once had it (kubelet-contract A.3). An ID that this plane holds stays healthy while its device
    physically is, for allocatable counts healthy devices in use too; so for a name that DRA takes over it does not
    (design 2, modes). `memory`: of the view before.

    NUMA nodes are told only while all that is listed is this plane's. A kubelet whose topology manager has a policy
    filters by them before it asks for a preference, so that it may see mirrored IDs alone; and it asks for room on some
    NUMA node for pods too that DRA serves under the name, those that run and are admitted again included: without any
    room it fails them for good. Where no ID has a NUMA node, it has no preference (topology_hints.go of 1.37.1).
    """
    memory = memory or Memory()
    held: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for hold in account.of_group(Plane.DEVICE_PLUGIN, roster.group.name):
        held[hold.device] += (hold.share,)
    offered = roster.device_plugin_offered
    theirs, leaving = _by_name(roster, account) if roster.offering.mirrors else (Counter[str](),) * 2
    view: list[IdOffer] = []
    for device in roster.devices:
        mine, mirrored = held.get(device.name, ()), (theirs[device.name], leaving[device.name])
        numa = device.numa_node if offered and not theirs else None
        make = partial(_ids, roster, account, device, mine, mirrored, numa)
        view += memory.of(roster, device, (mine, mirrored, numa, *_state(account, device)), make)
    return tuple(view)


def _by_name(roster: Roster, account: Account) -> tuple[Counter[str], Counter[str]]:
    """How many shares of each device DRA has given to pods that asked for the group's resource name, and how many of
    them are being released.

    Until they are free, not only until Unprepare: the API server learns after it that the pod has ended, and would
    bind the next one while the kubelet has nothing healthy for it, which fails a pod for good. A hand-out waits.
    """
    found: Counter[str] = Counter()
    leaving: Counter[str] = Counter()
    for hold in account.of_group(Plane.DRA, roster.group.name):
        prepared = account.prepared(roster.group.name, hold.holder.uid)
        if hold.by_name or (prepared is not None and is_by_name(prepared.answer)):
            found[hold.device] += units_of(hold, roster)
            if hold.phase is Phase.RELEASING:
                leaving[hold.device] += units_of(hold, roster)
    return found, leaving


def _ids(
    roster: Roster,
    account: Account,
    device: Device,
    held: tuple[str, ...],
    mirrored: tuple[int, int],
    numa_node: int | None,
) -> tuple[IdOffer, ...]:
    """The IDs of one device, of which this plane holds some, and of which so many are DRA's under our name, and so many
    of these are being released."""
    # Of an unplugged device that was never seen by this process, only what is out under its name is known.
    known = device.present or device.edits != ContainerEdits()
    shares = device.share_names() if known else ()
    everything = roster.offering.listed and not roster.device_plugin_offered  # nothing of it is healthy
    listed = [s for s in shares if everything or s in roster.device_plugin_shares or s in held]
    listed += [share for share in held if share not in shares]
    healthy = _healthy_ids(roster, account, device, listed, held)
    rest = [s for s in listed if s not in healthy and s not in held] if _is_well(account, device) else []
    theirs, leaving = mirrored
    mirror, soon = frozenset(rest[:theirs]), frozenset(rest[:leaving])
    return tuple(
        IdOffer(share, share in healthy or share in mirror, numa_node, share in mirror, share in soon)
        for share in listed
    )


def _healthy_ids(
    roster: Roster, account: Account, device: Device, listed: list[str], held: tuple[str, ...]
) -> frozenset[str]:
    if not _is_well(account, device):
        return frozenset()
    mine = [] if roster.offering.hides_held else [share for share in listed if share in held]
    offered = [share for share in listed if share not in held and share in roster.device_plugin_shares]
    room = free_units(roster, account, device)
    # From the end: DRA takes from the beginning (Q2).
    return frozenset(mine) | frozenset(offered[max(0, len(offered) - room) :])


def _is_well(account: Account, device: Device) -> bool:
    return device.health.ok and account.quarantine_of(device.group, device.name) is None


def dra_view(
    roster: Roster,
    account: Account,
    *,
    consumable: bool,
    memory: Memory[tuple[SliceOffer, ...]] | None = None,
    moving: frozenset[str] = frozenset(),
    contested: frozenset[int] = frozenset(),
) -> tuple[SliceOffer, ...]:
    """List what the ResourceSlices show, in the order in which the scheduler should take it.

    A device that the device plugin plane holds is withdrawn; one that DRA holds stays, the scheduler knows of
    it. `consumable`: whether the cluster accounts for shares of one device (KEP-5075). `memory`: of the view
    before. `moving`: names from which a claim is to be moved away; they are shown, tainted, whoever holds them.
    `contested`: holds of which the scheduler does not know any longer; nothing is shown that only they have.
    """
    memory = memory or Memory()
    used: Counter[str] = Counter()
    names: dict[str, tuple[str, ...]] = defaultdict(tuple)
    lost: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for hold in account.of_group(Plane.DRA, roster.group.name):
        used[hold.device] += units_of(hold, roster)
        names[hold.device] += (hold.share,)
        if hold.id in contested:
            lost[hold.device] += (hold.share,)
    view: list[SliceOffer] = []
    for device in roster.devices:
        if not device.present:
            continue
        held = _Held(used[device.name], names.get(device.name, ()), lost.get(device.name, ()))
        away = moving.intersection((device.name, *device.share_names())) if moving else moving
        make = partial(_offers, roster, account, device, held, consumable, away)
        view += memory.of(roster, device, (consumable, held, away, *_state(account, device)), make)
    return tuple(view)


class _Held(NamedTuple):
    """What DRA holds of one device: how much, under which names, and which of these are contested."""

    units: int
    names: tuple[str, ...]
    contested: tuple[str, ...]


def _offers(
    roster: Roster,
    account: Account,
    device: Device,
    held: _Held,
    consumable: bool,
    moving: frozenset[str],
) -> tuple[SliceOffer, ...]:
    """One device, of which DRA holds some, and must lose others."""
    amount = _dra_units(roster, account, device, held.units)
    if device.shareable and not consumable:
        shares = _named_shares(roster, device, held.names, amount)
        shares = [offer for offer in shares if offer.name not in held.contested]
        return _with_moving(shares, device, device.share_names(), moving)
    most = None
    if held.contested:
        free = free_units(roster, account, device)
        # Of what the scheduler takes for free, no claim is to ask for more than is.
        amount, most = (amount, free) if free else (0, None)
    # A capacity of 0 with a policy is refused by the API; the taint keeps claims from what is not there.
    units = max(amount, 1) if device.shareable else None
    shown = [SliceOffer(device.name, device, units, most=most)] if amount else []
    return _with_moving(shown, device, (device.name,), moving, units)


def _with_moving(
    shown: list[SliceOffer],
    device: Device,
    names: tuple[str, ...],
    moving: frozenset[str],
    units: int | None = None,
) -> tuple[SliceOffer, ...]:
    """What is shown of a device, and what is shown for no other reason than to be tainted; in order of `names`."""
    if not moving:
        return tuple(shown)
    offers = {offer.name: offer for offer in shown}
    offers |= {name: SliceOffer(name, device, units, evict=True) for name in names if name in moving}
    return tuple(offers[name] for name in names if name in offers)


def _dra_units(roster: Roster, account: Account, device: Device, used: int) -> int:
    """How many shares DRA has or may have: what it holds, and what is free within its quota."""
    if not device.health.ok or account.quarantine_of(device.group, device.name) is not None:
        return used
    quota = sum(1 for share in device.share_names() if share in roster.dra_shares)
    # What DRA holds stays, though the plane is closing or the share was given to the other plane.
    return min(max(quota, used), used + free_units(roster, account, device))


def _named_shares(roster: Roster, device: Device, held: tuple[str, ...], amount: int) -> list[SliceOffer]:
    """Shares as devices of their own: the held ones, then free ones from the beginning (Q2)."""
    ours = [share for share in device.share_names() if share in roster.dra_shares or share in held]
    room = amount - sum(1 for share in ours if share in held)
    shown: list[SliceOffer] = []
    for share in ours:
        if share in held:
            shown.append(SliceOffer(share, device))
        elif room > 0:
            shown.append(SliceOffer(share, device))
            room -= 1
    return shown


def free_units(roster: Roster, account: Account, device: Device) -> int:
    """How many more shares of a device the ledger would hand out."""
    free = device.shares
    for use in roster.uses(device):
        free = min(free, account.room(use.part, use.capacity) // use.amount)
    return max(0, free)


def units_of(hold: Hold, roster: Roster) -> int:
    """How many shares a hold stands for."""
    device = roster.by_name.get(hold.device)
    for use in hold.uses:
        amount = device.parts.get(use.part) if device is not None else None
        if amount:
            return use.amount // amount
    return 1


def order_of(view: Sequence[IdOffer]) -> dict[str, int]:
    """The order in which `preferred` takes IDs from the end: first what may be had, then what soon may; the rest is
    DRA's, and has none."""
    offered = [offer.id for offer in view if not offer.mirrored]
    return {name: at for at, name in enumerate([*(o.id for o in view if o.leaving), *offered])}


def preferred(available: list[str], must_include: list[str], size: int, order: dict[str, int]) -> list[str]:
    """The IDs the kubelet should take: what it must, then from the end (Q2); never more than `size`.

    `order`: see `order_of`. Fewer than `size` come back only where there are not more.
    """
    chosen = list(must_include[:size])
    rest = sorted(
        (i for i in available if i not in set(chosen)), key=lambda i: order.get(i, -1), reverse=True
    )
    return chosen + rest[: size - len(chosen)]
