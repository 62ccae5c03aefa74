"""Break-glass: ending holds and quarantines because an operator says so (`bridge release`).

Kept in the ledger's records, told as an event, and refused while anybody seems to use the device, unless forced: the
operator's word replaces the proof of S4, so what can still be seen is looked at first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bridge.config import Daemon
from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Hold, PodHolder, PreparedClaim, Quarantine
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import EVERYTHING
from bridge.planes import report as told
from bridge.planes.explain import Target, hold_row
from bridge.planes.report import Report
from bridge.planes.roster import Roster
from bridge.platform import checkpoint, cri, openers
from bridge.platform.cri import CriClient, RuntimeView
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import PodResources, PodResourcesClient
from bridge.platform.roots import Roots

PodName = tuple[str, str]

PodsOf = Callable[[str], Collection[PodName] | None]
"""The pods that name a claim, by its UID; None where nobody knows."""


class StillUsed(Exception):
    """A device seems to be in use, or nobody can tell; the text says what was seen and what to do."""


@dataclass(frozen=True, slots=True)
class Released:
    """What was done.

    Attributes:
        holds: holds that were ended.
        quarantine: the quarantine that was lifted, if there was one.
        notes: what the operator should know.
    """

    holds: tuple[Hold, ...]
    quarantine: Quarantine | None
    notes: tuple[str, ...] = ()


def as_row(target: Target, done: Released) -> dict[str, object]:
    """What was done to a target, as the command line prints it."""
    return {
        "target": str(target),
        "holds": [hold_row(hold, None, {}) for hold in done.holds],
        "quarantine": done.quarantine.reason if done.quarantine else None,
        "notes": list(done.notes),
    }


@dataclass(frozen=True, slots=True)
class Use:
    """What a look at kubelet, runtime and processes has shown.

    Attributes:
        found: uses, for people.
        unknown: who could not be asked.
        notes: limits of the look.
    """

    found: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Who can be asked whether a device is in use.

    Attributes:
        podresources: the kubelet, for the pods that it shows with devices and with claims.
        runtime: the container runtime.
        checkpoint: the kubelet's own record of devices.
        rosters: the groups, by name.
        local: where a device's node is, by its path on the host, to look for who has it open.
        pods_of: the pods that name a claim, by its UID, as early word follows them; None where it does not. Kubelets
            before 1.34 do not say which pods use a claim.
        rivals: who else serves in the name of a group, by group.
        proc: where processes are.
    """

    podresources: PodResourcesClient
    runtime: CriClient
    checkpoint: Path
    rosters: Mapping[str, Roster]
    local: Callable[[str], Path]
    pods_of: PodsOf = lambda uid: None
    rivals: Callable[[], Mapping[str, str]] = dict
    proc: Path = field(default=openers.PROC)

    async def look(self, target: Target, holds: Collection[Hold], quarantine: Quarantine | None) -> Use:
        """Look for uses of what these hold, and of what a quarantine fences off: what it was made for may still be."""
        listed, noted, runtime = await asyncio.gather(
            self.podresources.list(), asyncio.to_thread(checkpoint.read, self.checkpoint), self.runtime.view()
        )
        seen = await asyncio.to_thread(openers.look, self._nodes(target, holds), self.proc)
        found = [str(opener) for opener in seen.openers]
        unknown = [text for hold in holds if (text := self._untold(hold, listed))]
        if isinstance(runtime, Unavailable):
            unknown.append(f"the container runtime: {runtime.reason}")
        else:
            found += running((self._pods(hold, listed) for hold in holds), runtime)
        wanted = self._wanted(target, holds, quarantine)
        if isinstance(listed, Unavailable):
            unknown.append(f"the kubelet: {listed.reason}")
        else:
            found += shown(wanted, listed)
        if isinstance(noted, checkpoint.Damaged):
            unknown.append(noted.reason)
        elif isinstance(noted, checkpoint.Checkpoint):
            run, waiting = noted_with(wanted, noted, None if isinstance(runtime, Unavailable) else runtime)
            found, unknown = found + run, unknown + waiting
        if quarantine is not None:
            found += [why for group, why in self.rivals().items() if quarantine.group in (EVERYTHING, group)]
        notes = ["processes of the node are out of sight from here; only containers were looked for"]
        return Use(_once(found), _once(unknown), tuple(notes) if seen.alone else ())

    def _nodes(self, target: Target, holds: Collection[Hold]) -> list[Path]:
        devices = {(hold.group, hold.device) for hold in holds}
        return [
            self.local(node.host_path)
            for roster in self.rosters.values()
            for device in roster.devices
            if (device.group, device.name) in devices
            or (target.group in (EVERYTHING, device.group) and target.device in (EVERYTHING, device.name))
            for node in device.edits.nodes
        ]

    def _wanted(
        self, target: Target, holds: Collection[Hold], quarantine: Quarantine | None
    ) -> tuple[Wanted, ...]:
        """How the kubelet calls what is looked for; of a share alone, that share."""
        return tuple(
            Wanted(
                roster.group.resource_name,
                roster.group.driver_name,
                _names(target, [hold for hold in holds if hold.group == group], quarantine, roster),
            )
            for group, roster in self.rosters.items()
            if target.group in (EVERYTHING, group)
        )

    def _pods(self, hold: Hold, listed: PodResources | Unavailable) -> frozenset[PodName | str]:
        """The pods of a holder, by UID or by name: a claim's as kubelet and early word say."""
        match hold.holder:
            case PodHolder() as pod if pod.uid:
                return frozenset({pod.uid})
            case PodHolder() as pod:
                return frozenset({(pod.namespace, pod.name)} if pod.known else ())
            case ClaimHolder() as claim:
                uses = () if isinstance(listed, Unavailable) else listed.claims
                key = (claim.namespace, claim.name)
                seen = (
                    (u.pod.namespace, u.pod.name) for u in uses if (u.claim_namespace, u.claim_name) == key
                )
                return frozenset((*seen, *(self.pods_of(claim.uid) or ())))

    def _untold(self, hold: Hold, listed: PodResources | Unavailable) -> str:
        """Why nobody says who uses a hold; empty where somebody does. A kubelet that lists no claim at all may be one
        that cannot."""
        if hold.group not in self.rosters:
            return f"group {hold.group} is not configured, so nobody knows what the kubelet calls its devices"
        if isinstance(hold.holder, PodHolder):
            return "" if hold.holder.known else f"nobody knows yet which pod {hold.share} was given to"
        if self.pods_of(hold.holder.uid) is not None:
            return ""
        if isinstance(listed, Unavailable):
            return f"the kubelet, for the pods of {hold.holder}: {listed.reason}"
        return "" if listed.claims else f"nobody says which pods use {hold.holder}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Devices of one group as the kubelet calls them.

    Attributes:
        resource, driver: the group's names.
        names: device plugin IDs, and names of devices and shares; None for any, known to us or not.
    """

    resource: str
    driver: str
    names: frozenset[str] | None

    def has(self, name: str) -> bool:
        """Whether it is among them."""
        return self.names is None or name in self.names


def _names(
    target: Target, holds: Collection[Hold], quarantine: Quarantine | None, roster: Roster
) -> frozenset[str] | None:
    if target.device == EVERYTHING:
        return None
    if target.share and quarantine is None:
        return frozenset({target.share})
    device = next((one for one in roster.devices if one.name == target.device), None)
    shares = device.share_names() if device is not None else ()
    return frozenset({target.device, *shares, *(hold.share for hold in holds)})


def shown(wanted: Collection[Wanted], listed: PodResources) -> list[str]:
    """Pods that the kubelet shows with what is looked for, whoever the ledger has as its holder; for people. Pure."""
    found = [
        f"the kubelet shows {name} with pod {use.pod}"
        for use in listed.devices
        for some in wanted
        if some.resource == use.resource
        for name in sorted(use.ids)
        if some.has(name)
    ]
    found += [
        f"the kubelet shows {one.device} with pod {use.pod}, through claim {use.claim_namespace}/{use.claim_name}"
        for use in listed.claims
        for one in use.devices
        for some in wanted
        if some.driver == one.driver and (some.has(one.share_id or one.device) or some.has(one.device))
    ]
    return found


def noted_with(
    wanted: Collection[Wanted], noted: checkpoint.Checkpoint, runtime: RuntimeView | None
) -> tuple[list[str], list[str]]:
    """Pods that the kubelet's record has with what is looked for: those that run, and those of which nobody can tell,
    for the entry may be stale, or the pod about to start (H10, H11). Pure."""
    live = {} if runtime is None else _live(runtime)
    run: list[str] = []
    waiting: list[str] = []
    for entry in noted.entries:
        some = next((one for one in wanted if one.resource == entry.resource), None)
        for name in sorted(entry.ids) if some is not None else ():
            if some is None or not some.has(name):
                continue
            if entry.pod_uid in live:
                run.append(f"the kubelet's checkpoint has {name} with pod {live[entry.pod_uid]}, which runs")
            else:
                waiting.append(
                    f"the kubelet's checkpoint still has {name} with the pod of UID {entry.pod_uid}, "
                    f"which may be about to start"
                )
    return run, waiting


def _live(runtime: RuntimeView) -> dict[str, str]:
    """Pods that run, by UID."""
    live = {one.pod_uid: f"{one.pod_namespace}/{one.pod_name}" for one in runtime.sandboxes if one.ready}
    return live | {
        one.pod_uid: f"{one.pod_namespace}/{one.pod_name}"
        for one in runtime.containers
        if one.may_use_devices
    }


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def running(pods: Iterable[Collection[PodName | str]], runtime: RuntimeView) -> list[str]:
    """Containers of pods, given by UID or name, that may still use devices; for people. Pure."""
    wanted = {pod for some in pods for pod in some}
    found = (
        f"container {one.name} of pod {one.pod_namespace}/{one.pod_name} runs"
        for one in runtime.containers
        if one.may_use_devices and ((one.pod_namespace, one.pod_name) in wanted or one.pod_uid in wanted)
    )
    return list(dict.fromkeys(found))


@contextlib.asynccontextmanager
async def witnesses(
    daemon: Daemon,
    roots: Roots,
    rosters: Collection[Roster],
    pods_of: PodsOf = lambda uid: None,
    rivals: Callable[[], Mapping[str, str]] = dict,
) -> AsyncIterator[Witnesses]:
    """Who can be asked on this node, for as long as the context lasts."""
    podresources = PodResourcesClient(daemon.pod_resources)
    runtime = CriClient(cri.sockets(daemon.cri_socket))
    groups = {roster.group.name: roster for roster in rosters}
    record = daemon.kubelet_root / "device-plugins" / checkpoint.NAME
    try:
        yield Witnesses(podresources, runtime, record, groups, roots.local, pods_of, rivals)
    finally:
        await podresources.close()
        await runtime.close()


Look = Callable[[Target, Collection[Hold], Quarantine | None], Awaitable[Use]]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a release is about, row for row: while it is looked at it may be given to somebody else.

    Attributes:
        holds: of the target, with holder and phase.
        quarantine: of just the target.
        claims: what the claims among the holders were answered last; a new answer keeps the holds.
    """

    holds: tuple[Hold, ...]
    quarantine: Quarantine | None
    claims: frozenset[PreparedClaim | None]

    @classmethod
    def of(cls, target: Target, account: Account) -> Self:
        """As the account has it now."""
        holds = target.holds(account)
        claims = (account.prepared(h.group, h.holder.uid) for h in holds if isinstance(h.holder, ClaimHolder))
        return cls(holds, target.quarantine(account), frozenset(claims))


async def release(
    target: Target, ledger: Ledger, look: Look, report: Report, *, who: str, why: str, force: bool
) -> Released:
    """End the holds of a device, or lift its quarantine: what was looked at, and nothing that came since.

    Raises StillUsed unless forced, or where it changed during the look; LookupError where there is nothing to end;
    LedgerError.
    """
    subject = Subject.of(target, ledger.account)
    holds, quarantine = subject.holds, subject.quarantine
    if not holds and quarantine is None:
        raise LookupError(_nothing(target, ledger.account))
    use = await look(target, holds, quarantine)
    if not force and (use.found or use.unknown):
        raise StillUsed(_in_the_way(target, use))
    if Subject.of(target, ledger.account) != subject:
        raise StillUsed(f"{target} changed hands while it was looked at; see `bridge holds`, then try again")
    notes = [*use.notes, *(f"released all the same: {text}" for text in (*use.found, *use.unknown))]
    ended = await ledger.force_release([hold.id for hold in holds], who, why)
    for hold in ended:
        report.tell(told.Forced(hold.plane, hold.group, (hold.share,), str(hold.holder), who, why))
    lifted, now = None, target.quarantine(ledger.account)
    if now is not None and now == quarantine:
        lifted = await ledger.force_lift(target.group, target.device, who, why)
    elif now is not None:
        notes.append(f"{target} was put into quarantine meanwhile, and stays there: {now.reason}")
    if ended and use.found:
        notes.append(
            "what kubelet and runtime still show in use is taken up again, or fenced off, at the next look"
        )
    return Released(ended, lifted, tuple(notes))


def _nothing(target: Target, account: Account) -> str:
    wider = account.quarantine_of(target.group, target.device)
    if wider is not None:
        name = "*" if wider.group == "*" else f"{wider.group}/{wider.device}"
        return (
            f"{target} is not held; it is in the quarantine of {name}: `bridge release '{name}' --yes-i-know`"
        )
    return f"{target} is neither held nor in quarantine; there is nothing to release"


def _in_the_way(target: Target, use: Use) -> str:
    if use.found:
        return (
            f"{target} is in use: {'; '.join(use.found)}. End that first (delete the pod); with --force it is "
            f"released all the same, and may be handed out while it is used"
        )
    return (
        f"nobody can tell whether {target} is in use: {'; '.join(use.unknown)}. Mend that first; with --force it is "
        f"released all the same"
    )
