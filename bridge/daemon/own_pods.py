"""What the API server says of this node's pods: which have ended, and how long their containers may take to.

The one place that lists them for those who do not follow them, within the budget. For evidence only while something is
in doubt that no other source can settle, and then with growing pauses: the list is of this node's pods alone (design
2, cluster scale). A pod that has ended never comes back under its UID.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from bridge.ledger.evidence import PodName
from bridge.planes.words import has_ended, pod_uids
from bridge.platform.budget import Budget
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import ApiError, Json

_FIRST_S, _LONGEST_S = 1.0, 30.0
"""Pauses between lists that told nothing new."""

_SERVES_S = 5.0

_DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class PodsOfNode:
    """One list.

    Attributes:
        going_on: pods that have not ended: UIDs by name.
        graces: the longest that containers may take to end, in seconds, by name; of pods that have ended, too.
    """

    going_on: dict[PodName, frozenset[str]]
    graces: dict[PodName, float]

    def uids(self) -> frozenset[str]:
        """UIDs of all pods that go on."""
        return frozenset(uid for uids in self.going_on.values() for uid in uids)


class OwnPods:
    """Asks when asked to.

    Args:
        node_name, api: whose pods, and where to ask; None where there is no API server.
        note: told what went wrong, or "", each time it was asked.
        clock: monotonic seconds.
        budget: of requests that nobody waits for.
    """

    def __init__(
        self,
        node_name: str,
        api: KubeApi | None,
        note: Callable[[str], None],
        clock: Callable[[], float],
        budget: Budget,
    ) -> None:
        self._node_name = node_name
        self._api = api
        self._note = note
        self._clock = clock
        self._budget = budget
        self._pause = _FIRST_S
        self._next = 0.0
        self._asked_for: frozenset[object] = frozenset()
        self._going_on: frozenset[str] | None = None
        self._going_on_until = 0.0

    async def look(self, about: Collection[object]) -> PodsOfNode | None:
        """List, because `about` is in doubt; None if it is too early to ask for the same again, or for no answer."""
        now, wanted = self._clock(), frozenset(about)
        if wanted <= self._asked_for:
            if now < self._next:
                return None
            self._pause = min(self._pause * 2, _LONGEST_S)
        else:
            self._pause = _FIRST_S
        self._asked_for, self._next = wanted, now + self._pause
        found = await self.list()
        return None if found is None else _decoded(found)

    async def going_on(self) -> frozenset[str] | None:
        """UIDs of the pods that are to run on, neither ended nor being deleted; None where nobody can tell.

        An answer serves for some seconds: whoever waits for pods asks the runtime, and here only why they do not run.
        """
        if self._clock() >= self._going_on_until:
            self._going_on_until = self._clock() + _SERVES_S
            found = await self.list()
            self._going_on = None if found is None else _to_run_on(found)
        return self._going_on

    async def list(self) -> list[Json] | None:
        """This node's pods, as the API server has them now; None if it does not say."""
        if self._api is None:
            self._note("there is no API server to ask: the daemon runs without a kubeconfig")
            return None
        await self._budget.take()
        try:
            params = {"fieldSelector": f"spec.nodeName={self._node_name}"}
            found = await self._api.list("/api/v1/pods", params=params)
        except ApiError as error:
            self._note(str(error))
            return None
        self._note("")
        pods: list[Json] = found["items"]
        return pods


def _decoded(pods: Iterable[Json]) -> PodsOfNode:
    going_on: dict[PodName, set[str]] = defaultdict(set)
    graces: dict[PodName, float] = {}
    for pod in pods:
        name = (str(pod["metadata"]["namespace"]), str(pod["metadata"]["name"]))
        graces[name] = max(graces.get(name, 0.0), _grace(pod))
        if not has_ended(pod):
            going_on[name].update(pod_uids(pod))
    return PodsOfNode({name: frozenset(uids) for name, uids in going_on.items()}, graces)


def _to_run_on(pods: Iterable[Json]) -> frozenset[str]:
    going = (pod for pod in pods if not has_ended(pod) and not pod["metadata"].get("deletionTimestamp"))
    return frozenset(uid for pod in going for uid in pod_uids(pod))


def _grace(pod: Json) -> float:
    """How long its containers may take to end once they are told: what it was deleted with can only be shorter."""
    wanted = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return float(wanted) if isinstance(wanted, int) else _DEFAULT_GRACE_S
