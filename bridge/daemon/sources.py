"""The sources of evidence on device plugin holds, looked at together.

Gathers what podresources, the kubelet's checkpoint and the runtime say into one sighting; judging it is
`bridge.ledger.evidence`'s. Remembers when the kubelet began, for its lists are partial at first (H13).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from bridge.config import Daemon
from bridge.ledger.evidence import ClaimedDevice, PodName, Sighting
from bridge.ledger.holds import PodHolder
from bridge.platform import checkpoint
from bridge.platform.cri import USUAL_SOCKETS, CriClient, RuntimeView
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import PodResources, PodResourcesClient
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import ApiError, Json

log = logging.getLogger(__name__)

STABLE_S = 30.0
"""How long after its start the kubelet's lists are not taken for whole (kubelet-contract E.5)."""


class Sources:
    """Looks when asked.

    Args:
        daemon: where the sockets are.
        resources: our resource names.
        node_name, api: to ask for this node's pods; without the API server stale checkpoint entries stand.
        answered: told for each source whether it answered.
    """

    def __init__(
        self,
        daemon: Daemon,
        resources: Container[str],
        node_name: str,
        api: KubeApi | None,
        answered: Callable[[str, bool], None],
    ) -> None:
        self._resources = resources
        self._node_name = node_name
        self._api = api
        self._ended: frozenset[str] = frozenset()
        self._socket = daemon.kubelet_root / "pod-resources" / "kubelet.sock"
        self._checkpoint = daemon.kubelet_root / "device-plugins" / checkpoint.NAME
        self._podresources = PodResourcesClient(self._socket)
        self._cri = CriClient((Path(daemon.cri_socket),) if daemon.cri_socket else USUAL_SOCKETS)
        self._answered = answered
        self._kubelet: tuple[int, int, int] | None = None
        self._stable_at = 0.0
        self._silent: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._podresources.close()
        await self._cri.close()

    async def look(self) -> Sighting:
        """One look at every source. Never raises for a source that does not answer.

        The runtime is asked last: what the kubelet let go before may still be running there, never the other
        way round.
        """
        stable = self._kubelet_stable()
        listed = await self._podresources.list()
        noted = await asyncio.to_thread(checkpoint.read, self._checkpoint)
        runtime = await self._cri.view()
        self._note("podresources", listed.reason if isinstance(listed, Unavailable) else "")
        self._note("checkpoint", noted.reason if isinstance(noted, checkpoint.Damaged) else "")
        self._note("runtime", runtime.reason if isinstance(runtime, Unavailable) else "")
        live = None if isinstance(runtime, Unavailable) else _live(runtime)
        owners = _checkpointed(noted)
        await self._ask_for_ended(owners or {}, live or {})
        return Sighting(
            at=time.monotonic(),
            listed=None if isinstance(listed, Unavailable) else _listed(listed),
            active=frozenset()
            if isinstance(listed, Unavailable)
            else frozenset((pod.namespace, pod.name) for pod in listed.pods),
            checkpointed=owners,
            live=live,
            ended=self._ended,
            claimed=frozenset() if isinstance(listed, Unavailable) else _claimed(listed),
            kubelet_stable=stable,
        )

    async def _ask_for_ended(
        self, owners: Mapping[tuple[str, str], frozenset[str]], live: Mapping[PodName, frozenset[str]]
    ) -> None:
        """Ask the API server about pods that the checkpoint names and the runtime does not run.

        Asked once for each: a pod that has ended never comes back under its UID. A list of this node's own pods,
        for the checkpoint has no names to get them by.
        """
        named = {uid for (resource, _), uids in owners.items() if resource in self._resources for uid in uids}
        self._ended &= named
        asked = named.difference(self._ended, *live.values())
        if not asked or self._api is None:
            return
        try:
            found = await self._api.list(
                "/api/v1/pods", params={"fieldSelector": f"spec.nodeName={self._node_name}"}
            )
        except ApiError as error:
            self._note("pods", str(error))
            return
        self._note("pods", "")
        going_on = {uid for pod in found["items"] if not _has_ended(pod) for uid in _uids(pod)}
        self._ended |= asked - going_on

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
        return kubelet is not None and now >= self._stable_at

    def _note(self, source: str, trouble: str) -> None:
        self._answered(source, not trouble)
        if trouble == self._silent.get(source, ""):
            return
        self._silent[source] = trouble
        if trouble:
            log.warning("evidence missing, releases wait", extra={"source": source, "error": trouble})
        else:
            log.info("evidence is back", extra={"source": source})


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


def _has_ended(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _uids(pod: Json) -> tuple[str, ...]:
    """The UIDs that kubelet and runtime may know a pod by: a static pod's is another than its mirror's (H32)."""
    meta = pod["metadata"]
    static = (meta.get("annotations") or {}).get("kubernetes.io/config.hash")
    return (str(meta["uid"]), *([str(static)] if static else []))
