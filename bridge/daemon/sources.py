"""The sources of evidence on device plugin holds, looked at together.

Gathers what podresources, the kubelet's checkpoint, the runtime, this node's pods and the devices' own probes say into
one sighting; judging it is `bridge.ledger.evidence`'s. Remembers when the kubelet began, for its lists are partial at
first (H13).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from bridge.config import Daemon
from bridge.daemon.own_pods import OwnPods
from bridge.daemon.source_health import SourceBook, SourceHealth
from bridge.ledger.evidence import ClaimedDevice, DeviceName, PodName, Sighting
from bridge.ledger.holds import PodHolder
from bridge.planes.regrants import Running, Shown
from bridge.platform import checkpoint, cri
from bridge.platform.budget import Budget
from bridge.platform.cri import CriClient, RuntimeView
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import PodResources, PodResourcesClient
from dra_v1.kube import KubeApi

STABLE_S = 30.0
"""How long after its start the kubelet's lists are not taken for whole (kubelet-contract E.5)."""


class Sources:
    """Looks when asked.

    Args:
        daemon: where the sockets are.
        resources: our resource names.
        node_name, api: to ask for this node's pods; without the API server stale checkpoint entries stand.
        holders: the pods that the ledger has as holders of the device plugin plane.
        probe: asks the devices that this plane has out and that can tell whether anybody uses them.
        answered: told for each source whether it answers, at each change.
        rivals: who else serves in the name of a group, by group.
        fresh: whether the ledger is new, so that claims that the kubelet has prepared are of interest.
        budget: of requests that nobody waits for.

    Attributes:
        pods: this node's, as the API server has them.
    """

    def __init__(
        self,
        daemon: Daemon,
        resources: Collection[str],
        node_name: str,
        api: KubeApi | None,
        holders: Callable[[], Collection[PodHolder]],
        probe: Callable[[], Awaitable[Mapping[DeviceName, bool]]],
        answered: Callable[[str, bool], None],
        rivals: Callable[[], Mapping[str, str]],
        fresh: Callable[[], bool],
        budget: Budget,
    ) -> None:
        self._fresh = fresh
        self._node_name = node_name
        self._rivals = rivals
        self._resources = frozenset(resources)
        self._holders = holders
        self._probe = probe
        self._book = SourceBook(answered)
        self.pods = OwnPods(node_name, api, lambda trouble: self._book.note("pods", trouble), _now, budget)
        self._ended: frozenset[str] = frozenset()
        self._ended_names: frozenset[PodName] = frozenset()
        self._graces: dict[PodName, float] = {}
        self._socket = daemon.pod_resources
        self._checkpoint = daemon.kubelet_root / "device-plugins" / checkpoint.NAME
        self._claims = daemon.kubelet_root / checkpoint.CLAIMS
        self._podresources = PodResourcesClient(self._socket)
        self._cri = CriClient(cri.sockets(daemon.cri_socket), configured=bool(daemon.cri_socket))
        self._kubelet: tuple[int, int, int] | None = None
        self._stable_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._podresources.close()
        await self._cri.close()

    def health(self) -> tuple[SourceHealth, ...]:
        """How each source is, as of the last look."""
        return self._book.all()

    async def running_of(self, pod_uid: str, within: float) -> Running:
        """The containers of one pod that may still use devices; see `bridge.planes.regrants`."""
        found = await self._cri.containers_of(pod_uid, within)
        if isinstance(found, Unavailable):
            self._book.note("runtime", found.reason)
            return Running(silent=found.reason) if self._cri.expected else Running(missing=found.reason)
        return Running(tuple(one.name for one in found if one.may_use_devices))

    async def shown_with(self, resource: str, ids: Sequence[str], within: float) -> Shown:
        """The pods that the kubelet shows with some IDs; see `bridge.planes.regrants`."""
        try:
            async with asyncio.timeout(within):
                listed = await self._podresources.list()
                noted = await asyncio.to_thread(checkpoint.read, self._checkpoint)
        except TimeoutError:
            listed = Unavailable(f"no list of pods and no checkpoint within {within:g} s")
        if isinstance(listed, Unavailable):
            self._book.note("podresources", listed.reason)
            return Shown(silent=listed.reason)
        if isinstance(noted, checkpoint.Missing):
            # The kubelet writes it before it hands out for the first time, and never removes it.
            return Shown(silent=f"it has lost its checkpoint {self._checkpoint}")
        owners = _checkpointed(noted)
        if owners is None:
            self._book.note("checkpoint", _trouble(noted))
            return Shown(silent=_trouble(noted))
        users = _listed(listed)
        pods = {i: f"{user.namespace}/{user.name}" for i in ids if (user := users.get((resource, i)))}
        return Shown(pods, {i: owners[resource, i] for i in ids if (resource, i) in owners})

    async def look(self) -> Sighting:
        """One look at every source. Never raises for a source that does not answer.

        The runtime is asked last: what the kubelet let go before may still be running there, never the other
        way round.
        """
        stable = self._kubelet_stable()
        listed = await self._podresources.list()
        noted = await asyncio.to_thread(checkpoint.read, self._checkpoint)
        # The kubelet writes it before it hands out for the first time, and never removes it.
        lost = isinstance(noted, checkpoint.Missing) and bool(self._holders())
        prepared = await asyncio.to_thread(checkpoint.read_claims, self._claims) if self._fresh() else None
        runtime = await self._cri.view()
        self._book.note("podresources", _trouble(listed))
        gone = (
            f"the kubelet has lost its checkpoint {self._checkpoint}, it writes it again at the next hand-out"
        )
        self._book.note("checkpoint", gone if lost else _trouble(noted))
        self._book.note("runtime", _trouble(runtime))
        live = None if isinstance(runtime, Unavailable) else _live(runtime)
        owners = None if lost else _checkpointed(noted)
        active = (
            frozenset()
            if isinstance(listed, Unavailable)
            else frozenset((pod.namespace, pod.name) for pod in listed.pods)
        )
        await self._ask_for_pods(owners or {}, live, active, lost=lost)
        return Sighting(
            at=time.monotonic(),
            listed=None if isinstance(listed, Unavailable) else _listed(listed),
            active=active,
            checkpointed=owners,
            checkpoint_lost=lost,
            live=live,
            ended=self._ended,
            ended_names=self._ended_names,
            graces=dict(self._graces),
            claimed=frozenset() if isinstance(listed, Unavailable) else _claimed(listed),
            prepared=self._prepared(prepared),
            rivals=self._rivals(),
            used=await self._ask_devices(),
            kubelet_stable=stable,
        )

    async def _ask_for_pods(
        self,
        owners: Mapping[tuple[str, str], frozenset[str]],
        live: Mapping[PodName, frozenset[str]] | None,
        active: frozenset[PodName],
        *,
        lost: bool,
    ) -> None:
        """Ask the API server about pods that only it can still tell of.

        Those that the checkpoint names, by UID alone, and the runtime does not run; and where the runtime does not
        answer or the checkpoint is `lost`, the holders themselves: while they run, for their grace periods, and when
        the kubelet no longer lists them, whether they have ended.
        """
        named = {uid for (resource, _), uids in owners.items() if resource in self._resources for uid in uids}
        if lost:
            named |= {pod.uid for pod in self._holders() if pod.uid}
        names = {(pod.namespace, pod.name) for pod in self._holders() if pod.name}
        self._ended &= named
        self._ended_names &= names - active
        self._graces = {name: grace for name, grace in self._graces.items() if name in names}
        uids = named.difference(self._ended, *(live or {}).values())
        unsettled = set[PodName]()
        if live is None or lost:
            unsettled = (names - active - self._ended_names) | (names - self._graces.keys())
        if not uids and not unsettled:
            return
        found = await self.pods.look([*uids, *unsettled])
        if found is None:
            return
        self._ended |= uids - found.uids()
        self._ended_names |= (names - active) - found.going_on.keys()
        self._graces |= {name: grace for name, grace in found.graces.items() if name in names}

    def _prepared(
        self, noted: tuple[checkpoint.NotedDevice, ...] | checkpoint.Missing | checkpoint.Damaged | None
    ) -> frozenset[ClaimedDevice] | None:
        if isinstance(noted, checkpoint.Missing):
            return frozenset()  # no claim was ever prepared
        if noted is None or isinstance(noted, checkpoint.Damaged):
            return None
        return frozenset(
            ClaimedDevice(
                one.driver, one.device, one.share_id or one.device, (one.namespace, one.name), one.claim_uid
            )
            for one in noted
            if one.pool == self._node_name
        )

    async def _ask_devices(self) -> Mapping[DeviceName, bool]:
        try:
            used = await self._probe()
        except OSError as error:
            self._book.note("in-use probe", str(error))
            return {}
        if used:
            self._book.note("in-use probe", "")
        return used

    def _kubelet_stable(self) -> bool:
        """Whether the kubelet has been up long enough; its socket is made anew at each start."""
        try:
            found = self._socket.stat()
            kubelet = (found.st_dev, found.st_ino, found.st_ctime_ns)
        except OSError:
            kubelet = None
        now = time.monotonic()
        if kubelet != self._kubelet:
            # At our own start too: how long it has been up by the wall clock proves nothing (H42).
            self._kubelet = kubelet
            self._stable_at = now + STABLE_S
        stable = kubelet is not None and now >= self._stable_at
        if kubelet is None:
            self._book.note("kubelet", f"there is no socket {self._socket}")
        else:
            new = "" if stable else f"it began less than {STABLE_S:.0f} s ago, or this daemon did"
            self._book.note("kubelet", new, expected=True)
        return stable


def _now() -> float:
    return time.monotonic()


def _trouble(answer: object) -> str:
    return answer.reason if isinstance(answer, Unavailable | checkpoint.Damaged) else ""


def _listed(listed: PodResources) -> dict[tuple[str, str], PodHolder]:
    return {
        (use.resource, device_id): PodHolder(use.pod.namespace, use.pod.name, use.container)
        for use in listed.devices
        for device_id in use.ids
    }


def _checkpointed(
    noted: checkpoint.Checkpoint | checkpoint.Missing | checkpoint.Damaged,
) -> dict[tuple[str, str], frozenset[str]] | None:
    if isinstance(noted, checkpoint.Damaged):
        return None
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    if isinstance(noted, checkpoint.Checkpoint):
        for entry in noted.entries:
            for device_id in entry.ids:
                owners[entry.resource, device_id].add(entry.pod_uid)
    return {key: frozenset(uids) for key, uids in owners.items()}


def _live(runtime: RuntimeView) -> dict[PodName, frozenset[str]]:
    """Pods with a ready sandbox or a container that may use devices."""
    live: dict[PodName, set[str]] = defaultdict(set)
    for sandbox in runtime.sandboxes:
        if sandbox.ready:
            live[sandbox.pod_namespace, sandbox.pod_name].add(sandbox.pod_uid)
    for container in runtime.containers:
        if container.may_use_devices:
            live[container.pod_namespace, container.pod_name].add(container.pod_uid)
    return {name: frozenset(uids) for name, uids in live.items()}


def _claimed(listed: PodResources) -> frozenset[ClaimedDevice]:
    return frozenset(
        ClaimedDevice(
            device.driver,
            device.device,
            device.share_id or device.device,
            (use.claim_namespace, use.claim_name),
        )
        for use in listed.claims
        for device in use.devices
    )
