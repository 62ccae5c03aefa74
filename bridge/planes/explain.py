"""Why a device is or is not offered on each plane, and what is known of each hold: for people.

Pure: rosters, account and taints in, values out. The daemon answers with it, and the command line without a daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from bridge.devices.model import Device
from bridge.ledger.account import Account
from bridge.ledger.holds import Hold, Phase, Plane, PodHolder, Quarantine, clock
from bridge.ledger.store import EVERYTHING
from bridge.planes.projection import free_units
from bridge.planes.roster import Roster


@dataclass(frozen=True, slots=True)
class Target:
    """What a name on the command line stands for.

    Attributes:
        group, device: as the ledger has them; `*` for all.
        share: one share of it, if the name was a share's.
    """

    group: str
    device: str
    share: str = ""

    def __str__(self) -> str:
        return f"{self.group}/{self.share or self.device}"

    def holds(self, account: Account) -> tuple[Hold, ...]:
        """The holds of it, oldest first."""
        return tuple(
            hold
            for hold in sorted(account, key=lambda hold: hold.id)
            if self.group in (EVERYTHING, hold.group)
            and self.device in (EVERYTHING, hold.device)
            and self.share in ("", hold.share)
        )

    def quarantine(self, account: Account) -> Quarantine | None:
        """The quarantine of just this, not of more."""
        wanted = (self.group, self.device)
        return next((q for q in account.quarantines() if (q.group, q.device) == wanted), None)


class NotFound(Exception):
    """No device, or more than one, has a name; the text says what there is."""


def find(name: str, rosters: Iterable[Roster], account: Account) -> Target:
    """What a name stands for: `[group/]device`, a share, a device node's path, `group/*` or `*`.

    Raises NotFound.
    """
    if name == EVERYTHING:
        return Target(EVERYTHING, EVERYTHING)
    rosters = tuple(rosters)
    named, found = {roster.group.name for roster in rosters}, set[Target]()
    group, slash, rest = name.partition("/")
    if slash and group in named and rest == EVERYTHING:
        return Target(group, EVERYTHING)
    for roster in rosters:
        wanted = rest if slash and roster.group.name == group else name
        found |= set(_in(roster, wanted))
    for hold in account:  # of a group that is no longer configured, or a share ID
        if (
            hold.share == name
            or f"{hold.group}/{hold.share}" == name
            or f"{hold.group}/{hold.device}" == name
        ):
            found.add(Target(hold.group, hold.device, hold.share if hold.share != hold.device else ""))
    for quarantine in account.quarantines():
        if name in (quarantine.device, f"{quarantine.group}/{quarantine.device}"):
            found.add(Target(quarantine.group, quarantine.device))
    if len(found) > 1:
        raise NotFound(f"{name} stands for several: {', '.join(sorted(map(str, found)))}; say which")
    if not found:
        raise NotFound(f"no group has a device {name}; `bridge devices` lists them")
    return found.pop()


def _in(roster: Roster, name: str) -> Iterator[Target]:
    device = roster.by_name.get(name)
    if device is not None:
        yield Target(roster.group.name, device.name, name if name != device.name else "")
    for one in roster.devices:
        if any(node.host_path == name for node in one.edits.nodes):
            yield Target(roster.group.name, one.name)


@dataclass(frozen=True, slots=True)
class View:
    """How one plane has a device.

    Attributes:
        plane: which.
        offered: whether somebody new could get it there now.
        why: what is so, in order of weight.
        do: what would change it; empty where nothing has to be done.
    """

    plane: Plane
    offered: bool
    why: tuple[str, ...]
    do: str = ""


def explain(
    target: Target, roster: Roster, account: Account, moving: Collection[str] = ()
) -> tuple[View, ...]:
    """How each plane has a device. `moving`: names that slices show tainted. Raises NotFound."""
    device = next((one for one in roster.devices if one.name == target.device), None)
    if device is None:
        raise NotFound(f"{target} was found neither by the last scan nor in the ledger")
    return tuple(_view(plane, device, roster, account, moving) for plane in Plane)


def explained(
    name: str,
    rosters: Iterable[Roster],
    account: Account,
    moving: Callable[[str], Collection[str]] = lambda group: (),
) -> dict[str, object]:
    """How each plane has what a name stands for, as the command line prints it. `moving`: see `explain`, by group.

    Raises NotFound.
    """
    rosters = tuple(rosters)
    target = find(name, rosters, account)
    roster = next((one for one in rosters if one.group.name == target.group), None)
    if roster is None:
        raise NotFound(f"group {target.group} is not configured")
    views = explain(target, roster, account, moving(target.group))
    return {"target": str(target), "views": [asdict(view) for view in views]}


def _view(plane: Plane, device: Device, roster: Roster, account: Account, moving: Collection[str]) -> View:
    reasons = [*_configured(plane, device, roster), *_physical(device), *_quarantined(device, account)]
    reasons += list(_held(plane, device, roster, account))
    if plane is Plane.DRA and (names := sorted({device.name, *device.share_names()} & set(moving))):
        reasons.append(
            _Reason(
                f"tainted in the slices as {', '.join(names)}, so that the claim that lost it is moved", ""
            )
        )
    if not reasons:
        return View(plane, True, (_free(device, roster, account),))
    free = free_units(roster, account, device)
    offered = bool(free) and not any(reason.bars for reason in reasons)
    why = [*([_free(device, roster, account)] if offered else []), *(reason.text for reason in reasons)]
    return View(plane, offered, tuple(why), next((r.do for r in reasons if r.do and not offered), ""))


@dataclass(frozen=True, slots=True)
class _Reason:
    """Something in the way: the text, what to do, and whether it bars all shares of the device."""

    text: str
    do: str
    bars: bool = True


_OTHER_MODE = "change the mode: label of the Node, or of the group in the configuration; see `bridge mode`"


def _configured(plane: Plane, device: Device, roster: Roster) -> Iterator[_Reason]:
    group = roster.group
    offered = roster.device_plugin_offered if plane is Plane.DEVICE_PLUGIN else roster.dra_offered
    shares = roster.device_plugin_shares if plane is Plane.DEVICE_PLUGIN else roster.dra_shares
    if not offered and plane is Plane.DEVICE_PLUGIN and roster.offering.listed:
        yield _Reason(f"group {group.name} is on its way to mode dra", _OTHER_MODE)
    elif not offered:
        yield _Reason(f"group {group.name} is in mode {group.mode}", _OTHER_MODE)
    elif not shares.intersection(device.share_names()):
        yield _Reason(
            f"the partition of group {group.name} gives it to the other plane",
            "change `partition` of the group in the configuration",
        )


def _physical(device: Device) -> Iterator[_Reason]:
    if not device.present:
        yield _Reason(
            "unplugged; it stays listed for its holders", "plug it in again, or let its holders end"
        )
    elif not device.health.ok:
        yield _Reason(f"not healthy: {device.health.reason}", "mend the device")


def _quarantined(device: Device, account: Account) -> Iterator[_Reason]:
    found = account.quarantine_of(device.group, device.name)
    if found is not None:
        what = Target(found.group, found.device)
        name = EVERYTHING if what.group == EVERYTHING else str(what)
        yield _Reason(
            f"in quarantine since {clock(found.since)}: {found.reason}",
            f"make sure that nobody uses it, then `bridge release '{name}' --yes-i-know`",
        )


def _held(plane: Plane, device: Device, roster: Roster, account: Account) -> Iterator[_Reason]:
    """Who has the device, or the silicon that it is made of."""
    bars = free_units(roster, account, device) == 0
    told: set[int] = set()
    for part in device.parts:
        for hold in account.on_part(part):
            if hold.id not in told:
                told.add(hold.id)
                yield _Reason(_by(hold, plane, device), _end(hold), bars)


def _by(hold: Hold, plane: Plane, device: Device) -> str:
    """Who has it, in words that tell the planes apart."""
    verb = "reserved for" if hold.phase is Phase.RESERVED else "held by"
    here = "here" if hold.plane is plane else f"through {_API[hold.plane]}"
    ending = ", being released" if hold.phase is Phase.RELEASING else ""
    text = f"{verb} {hold.holder}, {here}, since {clock(hold.since)}{ending}"
    if (hold.group, hold.device) != (device.group, device.name):
        return f"its silicon is that of {hold.group}/{hold.device}, {text}"
    return f"{hold.share} {text}" if hold.share != device.name else text


_API = {Plane.DEVICE_PLUGIN: "the device plugin API", Plane.DRA: "DRA"}


def _end(hold: Hold) -> str:
    if isinstance(hold.holder, PodHolder):
        return (
            f"delete {hold.holder}, or wait until it ends"
            if hold.holder.known
            else "wait until its pod is known"
        )
    return f"delete the pods of {hold.holder}, or wait until they end"


def _free(device: Device, roster: Roster, account: Account) -> str:
    free = free_units(roster, account, device)
    return f"free: {free} of {device.shares} {device.share_unit}" if device.shareable else "free"


def rows(account: Account, evidence: Mapping[int, str]) -> list[dict[str, object]]:
    """Every hold and every quarantine as a row, in order of group, device and age."""
    found = [hold_row(h, account.quarantine_of(h.group, h.device), evidence) for h in account]
    found += [
        {
            "group": quarantine.group,
            "device": quarantine.device,
            "state": "quarantined",
            "since": clock(quarantine.since),
            "evidence": quarantine.reason,
        }
        for quarantine in account.quarantines()
    ]
    return sorted(found, key=lambda row: (str(row["group"]), str(row["device"]), str(row["since"])))


def hold_row(hold: Hold, quarantine: Quarantine | None, evidence: Mapping[int, str]) -> dict[str, object]:
    """One hold as a row; `evidence`: what keeps it from ending, by hold, as far as a daemon knows."""
    return {
        "id": hold.id,
        "group": hold.group,
        "device": hold.device,
        "share": None if hold.share == hold.device else hold.share,
        "plane": str(hold.plane),
        "state": str(hold.phase) + (", quarantined" if quarantine else ""),
        "holder": str(hold.holder),
        "uid": hold.holder.uid or None,
        "since": clock(hold.since),
        "evidence": evidence.get(hold.id) or _usual(hold),
    }


def _usual(hold: Hold) -> str | None:
    """What a hold of DRA waits for; of the other plane only a daemon's evidence can tell."""
    match hold.phase:
        case Phase.RESERVED:
            return "allocated; the kubelet has not asked for it yet"
        case Phase.PREPARED:
            return "prepared; it ends when the kubelet unprepares the claim"
        case Phase.RELEASING:
            return "unprepared; it ends when the claim is deallocated"
        case _:
            return None
