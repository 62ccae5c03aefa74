"""Kubernetes events: what happened to an object, in words that `kubectl describe` shows.

`Events.tell` never waits and never fails: texts go through a bounded queue, the same text about the same object is
told once in ten minutes, and all of them together have a budget. Events are news, not a record: what cannot be
posted is counted and forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import enum
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bridge.platform.budget import Budget
from dra_v1 import points
from dra_v1.backoff import Backoff
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import ApiError, Forbidden, Json, NotFound, Unauthorized, retryable

log = logging.getLogger(__name__)

COMPONENT = "device-bridge"

SAME_S = 600.0
"""For so long the same text about the same object is not posted again; a stuck pod's Prepare comes every minute."""

BURST, REFILL_S = 40.0, 2.0
"""So many events at once, and then one each so many seconds: a daemon runs on every node."""

QUEUE = 100
"""Events that wait at most; more are dropped and counted."""

REMEMBERED = 512
"""Texts known to be told; the oldest are forgotten, and would be told as new."""

TRIES = 4
"""For an API server that does not answer; then the event is given up."""

WITHOUT_RIGHT_S = 600.0
"""After a refusal nothing is tried for so long."""

_MESSAGE_LIMIT = 1024
_NAME_LIMIT = 230


class Reason(enum.StrEnum):
    """What an event is about; the word that `kubectl get events` shows as its reason."""

    DEVICE_REFUSED = "DeviceRefused"
    """A device was asked for and not given; the text says why, who has it and what to do. On the claim and its
    pods, or on the Node where the device plugin API asked (it does not say for whom)."""

    RESERVATION_LOST = "DeviceReservationLost"
    """A claim was allocated a device that somebody else has already; it is told before its pod is started. On the
    claim and its pods."""

    HEALING = "DeviceConflictHealing"
    """A claim that lost a race can never be prepared; its device is tainted so that the cluster moves the pod. On
    the claim and its pods."""

    HEALED = "DeviceConflictHealed"
    """The taint was taken back: the claim has let go, or its device is free. On the claim."""

    NOT_HEALED = "DeviceConflictStands"
    """A claim that lost a race is left where it is; the text says why, and what to delete. On the claim and its
    pods."""

    KEPT = "DeviceKept"
    """A claim that has no device any longer keeps one on this node, since the kubelet does not unprepare it; the text
    says what frees it. On the claim and the Node."""

    QUARANTINED = "DeviceQuarantined"
    """Nobody gets a device (or a group's, or any) until the doubt about it is settled. On the Node."""

    QUARANTINE_LIFTED = "DeviceQuarantineLifted"
    """A quarantine ended. On the Node."""

    RELEASED_BY_FORCE = "DeviceReleasedByForce"
    """An operator ended a hold without proof that it had ended (`bridge release`). On the Node."""

    TAKEN_UP = "DeviceTakenUp"
    """The kubelet shows a pod with a device that this daemon did not give it: another plugin did, or the ledger was
    lost. Nobody else gets it meanwhile. On the Node."""

    UNPROVEN = "DeviceHandedOutUnproven"
    """The kubelet gave a device out again, and nobody could say whether its last pod still has it. On the Node."""

    IDLE = "DeviceClaimUnused"
    """A claim has devices and no pod of the node names it: it keeps them until somebody deletes it. On the claim."""

    ORPHANED = "DeviceClaimOrphaned"
    """A claim is gone and the kubelet never unprepared it: its devices were freed all the same. On the Node."""

    PROOF_DEGRADED = "DeviceProofDegraded"
    """A source of evidence does not answer: releases of the device plugin's devices wait for it. On the Node."""

    PROOF_RESTORED = "DeviceProofRestored"
    """All sources of evidence answer again. On the Node."""

    MODE_SWITCHED = "ModeSwitched"
    """A group has arrived at another mode. On the Node."""

    MODE_REFUSED = "ModeRefused"
    """A group is not switched to the mode that is wanted; the text says why, and what to do. On the Node."""

    MODE_WAITING = "ModeWaiting"
    """A group has been on its way to another mode for a minute; the text says what it waits for. On the Node."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What an event is about.

    Attributes:
        kind, api_version: as in its manifest.
        name, namespace: the namespace is empty for objects of the cluster.
        uid: its UID; `kubectl describe` shows only events of the very object.
    """

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    api_version: str = "v1"


def node_ref(name: str) -> ObjectRef:
    """A Node, under the UID that the kubelet's own events have: its name."""
    return ObjectRef("Node", name, uid=name)


def pod_ref(namespace: str, name: str, uid: str) -> ObjectRef:
    """A Pod."""
    return ObjectRef("Pod", name, namespace, uid)


def claim_ref(namespace: str, name: str, uid: str) -> ObjectRef:
    """A ResourceClaim."""
    return ObjectRef("ResourceClaim", name, namespace, uid, "resource.k8s.io/v1")


@dataclass(frozen=True, slots=True)
class _Text:
    about: ObjectRef
    reason: Reason
    message: str
    warning: bool


@dataclass(slots=True)
class _Told:
    """What is known of a text: when it was posted, as which event, and how often it was told since the first."""

    at: float
    count: int = 1
    name: str = ""


class Events:
    """Posts events until cancelled.

    Args:
        api: the API server; None where there is none, then nothing is posted.
        node: this node's name, for the events' source.
        counted: called with `posted`, `repeated`, `same`, `dropped` or `failed` for each text.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        api: KubeApi | None,
        node: str,
        counted: Callable[[str], None] = lambda result: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._node = node
        self._counted = counted
        self._clock = clock
        self._queue: asyncio.Queue[_Text] = asyncio.Queue(QUEUE)
        self._told: OrderedDict[_Text, _Told] = OrderedDict()
        self._budget = Budget(1 / REFILL_S, BURST, clock)
        self._failing = ""
        self._without_right_until = 0.0

    def tell(self, about: ObjectRef, reason: Reason, message: str, *, warning: bool = True) -> None:
        """Say something of an object; returns at once, and never raises."""
        if self._api is None:
            return
        text = _Text(about, reason, message, warning)
        told = self._told.get(text)
        if told is not None and self._clock() - told.at < SAME_S:
            told.count += 1
            self._counted("same")
            return
        try:
            self._queue.put_nowait(text)
        except asyncio.QueueFull:
            self._counted("dropped")
            return
        if told is None:
            told = self._told[text] = _Told(self._clock(), count=0)
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
        told.at = self._clock()
        told.count += 1

    async def run(self) -> None:
        """Post what is told, one after the other, until cancelled."""
        while True:
            text = await self._queue.get()
            if self._clock() < self._without_right_until:
                self._counted("failed")
                continue
            await self._budget.take()
            await self._post(text)

    async def _post(self, text: _Text) -> None:
        backoff = Backoff()
        for attempt in range(TRIES):
            try:
                await self._send(text)
            except ApiError as error:
                if retryable(error) and attempt + 1 < TRIES:
                    await asyncio.sleep(max(backoff.next(), error.retry_after))
                    continue
                self._failed(error)
                return
            if self._failing:
                self._failing = ""
                log.info("events are posted again")
            return

    def _failed(self, error: ApiError) -> None:
        """Count it; say a trouble once, and leave the server alone where we have no right to post."""
        self._counted("failed")
        if _namespace_ends(error):
            return
        kind = type(error).__name__
        if isinstance(error, Forbidden | Unauthorized):
            self._without_right_until = self._clock() + WITHOUT_RIGHT_S
        if kind == self._failing:
            return
        self._failing = kind
        log.warning(
            "an event could not be posted; further ones are only counted", extra={"error": str(error)}
        )

    async def _send(self, text: _Text) -> None:
        assert self._api is not None
        told = self._told.get(text) or _Told(self._clock())
        now = _now()
        points.reached(points.Point.EVENT_POSTING)
        repeated = False
        if told.name:
            news = {"count": told.count, "lastTimestamp": now}
            with contextlib.suppress(NotFound):  # events live for an hour
                await self._api.patch(events_path(text.about, told.name), news)
                repeated = True
        if not repeated:
            body = event(
                text.about, text.reason, text.message, warning=text.warning, node=self._node, now=now
            )
            await self._api.create(events_path(text.about), {**body, "count": told.count})
            told.name = str(body["metadata"]["name"])
        points.reached(points.Point.EVENT_POSTED)
        self._counted("repeated" if repeated else "posted")


def event(about: ObjectRef, reason: str, message: str, *, warning: bool, node: str, now: str = "") -> Json:
    """An Event of the core API, under a name of its own. Events on objects of the cluster are in `default`."""
    now, message = now or _now(), _cut(message)
    involved: Mapping[str, str] = {
        "apiVersion": about.api_version,
        "kind": about.kind,
        "name": about.name,
        "namespace": about.namespace,
        "uid": about.uid,
    }
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": _name(about, reason, message), "namespace": about.namespace or "default"},
        "involvedObject": {key: value for key, value in involved.items() if value},
        "reason": reason,
        "message": message,
        "type": "Warning" if warning else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _name(about: ObjectRef, reason: str, message: str) -> str:
    """Unique: an event of an earlier process may have another count."""
    text = "\0".join((about.kind, about.uid, reason, message, secrets.token_hex(8)))
    return f"{about.name[:_NAME_LIMIT].rstrip('.-')}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def events_path(about: ObjectRef, name: str = "") -> str:
    """Path of the events on an object, or of one."""
    path = f"/api/v1/namespaces/{about.namespace or 'default'}/events"
    return f"{path}/{name}" if name else path


def _cut(message: str) -> str:
    """The API takes 1024 characters."""
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"


def _namespace_ends(error: ApiError) -> bool:
    """Whether the object's namespace is gone or going: no trouble of ours."""
    return isinstance(error, NotFound) or "being terminated" in error.message


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
