"""Break-glass: ending holds and quarantines because an operator says so (`bridge release`).

Kept in the ledger's records, told as an event, and refused while anybody seems to use the device, unless forced: the
operator's word replaces the proof of S4, so what can still be seen is looked at first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bridge.config import Daemon
from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Hold, PodHolder, Quarantine
from bridge.ledger.ledger import Ledger
from bridge.planes import report as told
from bridge.planes.explain import Target, hold_row
from bridge.planes.report import Report
from bridge.planes.roster import Roster
from bridge.platform import cri, openers
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
        podresources: the kubelet, for the pods of claims.
        runtime: the container runtime.
        nodes: paths of a device's nodes, to look for who has them open.
        pods_of: the pods that name a claim, by its UID, as early word follows them; None where it does not. Kubelets
            before 1.34 do not say which pods use a claim.
        proc: where processes are.
    """

    podresources: PodResourcesClient
    runtime: CriClient
    nodes: Callable[[str, str], Collection[Path]]
    pods_of: PodsOf
    proc: Path = field(default=openers.PROC)

    async def look(self, target: Target, holds: Collection[Hold]) -> Use:
        """Look for uses of a device that these hold."""
        listed, runtime = await asyncio.gather(self.podresources.list(), self.runtime.view())
        devices = {(hold.group, hold.device) for hold in holds} | {(target.group, target.device)}
        nodes = [path for device in devices for path in self.nodes(*device)]
        seen = await asyncio.to_thread(openers.look, nodes, self.proc)
        found = [str(opener) for opener in seen.openers]
        unknown: list[str] = []
        if isinstance(runtime, Unavailable):
            unknown.append(f"the container runtime: {runtime.reason}")
        else:
            pods = {hold.id: self._pods(hold, listed) for hold in holds}
            found += running(pods.values(), runtime)
        unknown += [text for hold in holds if (text := self._untold(hold, listed))]
        notes = ["processes of the node are out of sight from here; only containers were looked for"]
        return Use(tuple(found), tuple(unknown), tuple(notes) if seen.alone else ())

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
        """Why nobody says which pods use a claim; empty where somebody does. A kubelet that lists no claim at all may
        be one that cannot."""
        if not isinstance(hold.holder, ClaimHolder) or self.pods_of(hold.holder.uid) is not None:
            return ""
        if isinstance(listed, Unavailable):
            return f"the kubelet, for the pods of {hold.holder}: {listed.reason}"
        return "" if listed.claims else f"nobody says which pods use {hold.holder}"


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
    daemon: Daemon, roots: Roots, rosters: Collection[Roster], pods_of: PodsOf = lambda uid: None
) -> AsyncIterator[Witnesses]:
    """Who can be asked on this node, for as long as the context lasts."""
    devices = {(device.group, device.name): device for roster in rosters for device in roster.devices}

    def nodes(group: str, device: str) -> list[Path]:
        known = devices.get((group, device))
        return [roots.local(node.host_path) for node in known.edits.nodes] if known else []

    podresources = PodResourcesClient(daemon.pod_resources)
    runtime = CriClient(cri.sockets(daemon.cri_socket))
    try:
        yield Witnesses(podresources, runtime, nodes, pods_of)
    finally:
        await podresources.close()
        await runtime.close()


Look = Callable[[Target, Collection[Hold]], Awaitable[Use]]


async def release(
    target: Target, ledger: Ledger, look: Look, report: Report, *, who: str, why: str, force: bool
) -> Released:
    """End the holds of a device, or lift its quarantine.

    Raises StillUsed unless forced, LookupError where there is nothing to end, LedgerError.
    """
    holds, quarantine = target.holds(ledger.account), target.quarantine(ledger.account)
    if not holds and quarantine is None:
        raise LookupError(_nothing(target, ledger.account))
    use = await look(target, holds)
    if not force and (use.found or use.unknown):
        raise StillUsed(_in_the_way(target, use))
    notes = [*use.notes, *(f"released all the same: {text}" for text in (*use.found, *use.unknown))]
    ended = await ledger.force_release([hold.id for hold in holds], who, why)
    for hold in ended:
        report.tell(told.Forced(hold.plane, hold.group, (hold.share,), str(hold.holder), who, why))
    lifted = await ledger.force_lift(target.group, target.device, who, why)
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
