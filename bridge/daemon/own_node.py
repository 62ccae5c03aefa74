"""The own Node: its labels and annotations that are ours, and what it shows as allocatable; one watch, by name.

Nothing here grows with the cluster. While the Node cannot be read, what was last seen stands, and nothing is taken for
absent that was only not seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from bridge.planes.modes import LABEL
from bridge.platform.budget import Budget, spread
from bridge.platform.pulse import Pulse
from dra_v1.follow import Changed, Listed, Lost, follow
from dra_v1.kube import ApiError, Forbidden, Invalid, Json, KubeApi, NotFound
from dra_v1.slices import quantity

log = logging.getLogger(__name__)

NODES = "/api/v1/nodes"

FIRST_S = 5.0
"""How long a start waits for the Node where nothing else says which mode to begin in."""

FORBIDDEN_S = 600.0
"""Between two tries of what we have no right to, or what is not there."""

GAP_S = 10.0
"""How long a watch that broke may stay so before the Node counts as unreadable: most are mended within a second."""

_OURS = LABEL.partition("/")[0] + "/"


@dataclass(frozen=True, slots=True)
class NodeView:
    """The Node as far as it concerns us.

    Attributes:
        labels, annotations: those of our domain.
        allocatable: of our resources; those that the Node does not name are absent.
    """

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    allocatable: Mapping[str, int]


class OwnNode:
    """Follows one Node. Single event loop; nothing is asked before `first` or `run`.

    Args:
        name: of the Node.
        resources: our resource names.
        api: None where there is no API server, then nothing is ever seen.
        budget: of requests.
        seen: told whether the Node can be read, at each answer.

    Attributes:
        view: as last seen; None until then.
        trouble: why it cannot be read now; empty while it can, and for a moment more: a watch that breaks is no news.
        changed: rung when either differs.
    """

    def __init__(
        self,
        name: str,
        resources: Collection[str],
        api: KubeApi | None,
        budget: Budget,
        seen: Callable[[bool], None] = lambda yes: None,
    ) -> None:
        self.view: NodeView | None = None
        self.trouble = "" if api is not None else "the daemon runs without an API server"
        self.changed = Pulse()
        self._name = name
        self._resources = frozenset(resources)
        self._api = api
        self._budget = budget
        self._seen = seen
        self._gap: asyncio.TimerHandle | None = None

    @property
    def asked(self) -> bool:
        """Whether there is an API server that can be asked."""
        return self._api is not None

    async def first(self, within_s: float = FIRST_S) -> None:
        """Read the Node once, for those who cannot begin without; where it cannot be read, that is found out later."""
        if self._api is None:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._budget.take()
                self._take(self._keep(await self._api.get(f"{NODES}/{self._name}")))
        except (ApiError, TimeoutError) as error:
            said = str(error) or f"no answer within {within_s:g} s"
            log.warning("the Node is not read yet", extra={"node": self._name, "error": said})

    async def run(self) -> None:
        """Follow until cancelled."""
        if self._api is None:
            await asyncio.Event().wait()
            return
        await spread()
        try:
            while True:
                pause = 0.0
                try:
                    pause = await self._follow(self._api)
                except (NotFound, Invalid) as error:
                    pause = self._for_long(error)
                await asyncio.sleep(pause)
        finally:
            self._mended()

    async def _follow(self, api: KubeApi) -> float:
        """Follow until it is forbidden; seconds to wait before it is tried again."""
        await self._budget.take()
        params = {"fieldSelector": f"metadata.name={self._name}"}
        async with aclosing(follow(api, NODES, params, keep=self._keep)) as news:
            async for found in news:
                match found:
                    case Listed((node, *_)):
                        self._take(node)
                    case Listed():
                        self._note("there is no Node of this name")
                    case Changed(event) if event.type != "DELETED":
                        self._take(event.object)
                    case Changed():
                        self._note("the Node was deleted")
                    case Lost(Forbidden() as error):
                        return self._for_long(error)
                    case Lost(error):
                        self._lost(error)
        return 0.0

    def _keep(self, node: Json) -> Json:
        """What is kept of a Node: it is some ten KiB, and its heartbeats are no news."""
        meta, status = node.get("metadata") or {}, node.get("status") or {}
        allocatable = status.get("allocatable") or {}
        return {
            "labels": _ours(meta.get("labels")),
            "annotations": _ours(meta.get("annotations")),
            "allocatable": {
                name: count
                for name, found in allocatable.items()
                if name in self._resources and (count := _count(found)) is not None
            },
        }

    def _take(self, kept: Json) -> None:
        view = NodeView(kept["labels"], kept["annotations"], kept["allocatable"])
        if self.trouble:
            log.info("the Node is read again", extra={"node": self._name})
        self._mended()
        changed = view != self.view or bool(self.trouble)
        self.view, self.trouble = view, ""
        self._seen(True)
        if changed:
            self.changed.ring()

    def _for_long(self, error: ApiError) -> float:
        self._note(str(error))
        return FORBIDDEN_S

    def _lost(self, error: ApiError) -> None:
        """Most gaps are over with the next list; one that is not is trouble."""
        if self.view is None or self.trouble or self._gap is not None:
            self._note(str(error))
        else:
            self._gap = asyncio.get_running_loop().call_later(GAP_S, self._note, str(error))

    def _mended(self) -> None:
        if self._gap is not None:
            self._gap.cancel()
            self._gap = None

    def _note(self, trouble: str) -> None:
        """The Node cannot be read: what was last seen stands."""
        self._mended()
        if trouble != self.trouble:
            log.warning(
                "the Node cannot be read, modes stay as they are",
                extra={"node": self._name, "error": trouble},
            )
            self.trouble = trouble
            self.changed.ring()
        self._seen(False)


def _ours(found: Mapping[str, str] | None) -> dict[str, str]:
    return {key: value for key, value in (found or {}).items() if key.startswith(_OURS)}


def _count(found: object) -> int | None:
    """An amount of an extended resource, as the scheduler reads it: parts count as a whole one. None for what is no
    quantity: nobody can ask for that."""
    try:
        return math.ceil(quantity(str(found)))
    except ValueError:
        return None
