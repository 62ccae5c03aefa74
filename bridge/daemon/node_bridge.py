"""Writes how this node stands to its NodeBridge: by server-side apply, only on a change, never twice in a second.

The object is read once, at the start; after that nothing is asked at rest. Where the cluster has no such kind, or the
daemon no right to it, that is said once and tried again every ten minutes: nothing else depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from bridge.planes.report import News, ProofDegraded, ProofRestored, WasRefused
from bridge.planes.status import GROUP_VERSION, KIND, PLURAL, Facts, Refusal, status_of
from bridge.platform.budget import Budget, spread
from dra_v1 import points
from dra_v1.backoff import Backoff
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Json,
    NotFound,
    Unauthorized,
    retryable,
)

log = logging.getLogger(__name__)

MANAGER = "device-bridge"
"""The field manager, and so the owner of every field that is written here."""

PACE_S = 1.0
"""Between two writes: pods come and go in bursts."""

SETTLE_S, LOOK_S = 10.0, 0.25
"""A start is told once the node serves, or after so long: else every start would say twice how the node stands."""

WITHOUT_S = 600.0
"""Between two tries where the cluster has no such kind, or the daemon no right to it."""

LONGEST_S = 60.0
"""Between two tries while the API server does not answer."""

_COLLECTION = f"/apis/{GROUP_VERSION}/{PLURAL}"
_CRD = "kustomize/base/node-bridge-crd.yaml"


class _NoKind(Exception):
    """The cluster does not have the kind NodeBridge."""


class NodeBridge:
    """Single event loop. Deaf until `run`: what happens before is in the first status.

    Args:
        api, node: where, and whose; the object has the node's name.
        facts: says how the node stands now; its `refusal` is filled in here.
        budget: of requests that nobody waits for.
        now: wall clock.
    """

    def __init__(
        self,
        api: KubeApi,
        node: str,
        facts: Callable[[Refusal | None], Facts],
        budget: Budget,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._node = node
        self._path = f"{_COLLECTION}/{node}"
        self._facts = facts
        self._budget = budget
        self._now = now
        self._woken = asyncio.Event()
        self._refusal: Refusal | None = None
        self._stored: Mapping[str, Any] | None = None
        self._backoff = Backoff(1.0, LONGEST_S)
        self._trouble = ""
        self._foreign = ""

    def wake(self) -> None:
        """Something may have changed."""
        self._woken.set()

    def heard(self, news: News) -> None:
        """Take what the planes report, as a sink of the report."""
        match news:
            case WasRefused():
                refusal = Refusal.of(news, self._now())
                if not refusal.repeats(self._refusal):
                    self._refusal = refusal
                    self.wake()
            case ProofDegraded() | ProofRestored():
                self.wake()
            case _:
                pass

    async def run(self) -> None:
        """Write until cancelled."""
        await spread()
        await self._settled()
        while True:
            self._woken.clear()
            pause = await self._attempt()
            if pause:
                await asyncio.sleep(pause)
            else:
                await asyncio.gather(self._woken.wait(), asyncio.sleep(PACE_S))

    async def _settled(self) -> None:
        """Wait until the node serves, within limits. Nothing tells of it, and it is a matter of a moment."""
        for _ in range(int(SETTLE_S / LOOK_S)):
            if not self._facts(None).wrong:
                return
            await asyncio.sleep(LOOK_S)

    async def _attempt(self) -> float:
        """Write if there is anything to write; seconds to wait before the next try, 0 if it is all written."""
        try:
            if self._stored is None:
                self._stored = await self._read()
            status = self._status(self._stored)
            if status != self._stored:
                await self._apply(status)
                self._stored = status
        except _NoKind:
            self._say("no NodeBridge is written: the cluster does not have that kind", mend=f"apply {_CRD}")
            return WITHOUT_S
        except ApiError as error:
            # An answer may have been lost on its way here, or somebody may have removed the object: what is there
            # is read before it is written again.
            self._stored = None
            return self._failed(error)
        self._backoff.reset()
        if self._trouble:
            log.info("the NodeBridge is written again", extra={"node": self._node})
            self._trouble = ""
        return 0.0

    def _status(self, before: Mapping[str, Any]) -> Json:
        return status_of(self._facts(self._refusal), before, self._now())

    def _failed(self, error: ApiError) -> float:
        if isinstance(error, AlreadyExists | NotFound):
            return max(PACE_S, self._backoff.next())  # made or removed by somebody else meanwhile
        # A status with a field that an older kind does not know is answered 500, as if the server were at fault.
        unknown = "not declared in schema" in error.message
        if isinstance(error, Unauthorized) or (retryable(error) and not unknown):
            self._say("the NodeBridge cannot be written now", error)
            return max(PACE_S, self._backoff.next(), error.retry_after)
        self._say("the NodeBridge cannot be written", error, mend=_mend(error))
        return WITHOUT_S

    def _say(self, text: str, error: ApiError | None = None, mend: str = "") -> None:
        """Say a trouble once, until there is another one or none."""
        if text == self._trouble:
            return
        self._trouble = text
        extra = {"error": str(error) if error is not None else "", "mend": mend}
        level = logging.INFO if error is None else logging.WARNING
        log.log(level, text, extra={key: value for key, value in extra.items() if value})

    # -- requests

    async def _read(self) -> Json:
        """What was said last; the object is made if it is not there. Raises _NoKind, ApiError."""
        try:
            found = await self._get(self._path)
        except NotFound as error:
            if error.unserved:
                raise _NoKind from error
            await self._make()
            return {}
        status: Json = found.get("status") or {}
        return status

    async def _make(self) -> None:
        """Make the object, which goes with its Node. Raises _NoKind, ApiError."""
        found = await self._get(f"/api/v1/nodes/{self._node}")
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": found["metadata"]["uid"]}
        meta = {
            "name": self._node,
            "labels": {"app.kubernetes.io/name": MANAGER},
            "ownerReferences": [owner],
        }
        body = {"apiVersion": GROUP_VERSION, "kind": KIND, "metadata": meta, "spec": {}}
        await self._budget.take()
        points.reached(points.Point.NODE_BRIDGE_MAKING)
        try:
            await self._api.create(_COLLECTION, body)
        except NotFound as error:
            raise _NoKind from error
        points.reached(points.Point.NODE_BRIDGE_MADE)

    async def _apply(self, status: Json) -> None:
        """Apply the status; who else has written a field of it loses that field, and is named. Raises ApiError."""
        body = {
            "apiVersion": GROUP_VERSION,
            "kind": KIND,
            "metadata": {"name": self._node},
            "status": status,
        }
        params = {"fieldManager": MANAGER}
        for forced in (False, True):
            await self._budget.take()
            points.reached(points.Point.NODE_BRIDGE_APPLYING)
            try:
                await self._api.patch(
                    f"{self._path}/status",
                    body,
                    kind="apply",
                    params=params | ({"force": "true"} if forced else {}),
                )
            except Conflict as error:
                if forced:
                    raise
                self._contested(error)
                continue
            points.reached(points.Point.NODE_BRIDGE_APPLIED)
            return

    def _contested(self, error: Conflict) -> None:
        others = ", ".join(dict.fromkeys(re.findall(r'conflicts? with "([^"]*)"', error.message)))
        if others != self._foreign:
            self._foreign = others
            log.warning(
                "somebody else has written to the NodeBridge, and is overwritten", extra={"manager": others}
            )

    async def _get(self, path: str) -> Json:
        await self._budget.take()
        return await self._api.get(path)


def _mend(error: ApiError) -> str:
    """What to do about a refusal; where a right is missing the error names it."""
    if isinstance(error, Forbidden):
        return "apply kustomize/base/rbac.yaml and admission-policy.yaml"
    return f"apply the {_CRD} of this version"
