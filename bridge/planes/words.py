"""What pods say of claims, and what is to be done about a claim: the heart of the early word (design 2, races).

Pure: objects of the API server in, values out. Knows which pods of this node name a claim, and whether a claim has
still to be followed; who asks the API server is `bridge.planes.early_word`'s matter.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dra_v1.kube_errors import Json

Key = tuple[str, str]
"""A claim as pods name it: namespace and name. Which claim that is, its UID tells (H6)."""


class PodRef(NamedTuple):
    """A pod that names a claim.

    Attributes:
        spec_names_it: whether its spec does, itself or by a template; else the scheduler made the claim for extended
            resources (KEP 5004), and a taint would not evict the pod.
    """

    namespace: str
    name: str
    uid: str
    spec_names_it: bool


class Place(enum.IntEnum):
    """Where a pod is: the scheduler means to put it here, or has put it here."""

    NOMINATED = 0
    OWN = 1


@dataclass(frozen=True, slots=True)
class Pod:
    """What is kept of a pod.

    Attributes:
        claims: names of its claims, and whether the spec names them; empty once it has ended.
    """

    namespace: str
    name: str
    uid: str
    claims: tuple[tuple[str, bool], ...]


def prune(pod: Json) -> Json:
    """A pod without what `read_pod` does not need: lists of pods are big."""
    meta, spec, status = (pod.get(part) or {} for part in ("metadata", "spec", "status"))
    wanted = ("phase", "resourceClaimStatuses", "extendedResourceClaimStatus")
    return {
        "metadata": {key: meta.get(key) for key in ("namespace", "name", "uid")},
        "spec": {"resourceClaims": spec.get("resourceClaims")},
        "status": {key: status.get(key) for key in wanted},
    }


def has_ended(pod: Json) -> bool:
    """Whether none of a pod's containers will run again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def pod_uids(pod: Json) -> tuple[str, ...]:
    """The UIDs that kubelet and runtime may know a pod by: a static pod's is another than its mirror's (H32)."""
    meta = pod["metadata"]
    static = (meta.get("annotations") or {}).get("kubernetes.io/config.hash")
    return (str(meta["uid"]), *([str(static)] if static else []))


def read_pod(pod: Json) -> Pod:
    """Which claims a pod names. One whose claim is yet to be made from a template names it later."""
    meta, spec, status = (pod.get(part) or {} for part in ("metadata", "spec", "status"))
    claims: dict[str, bool] = {}
    if not has_ended(pod):
        extended = (status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName")
        if extended:
            claims[str(extended)] = False
        made = {s.get("name"): s.get("resourceClaimName") for s in status.get("resourceClaimStatuses") or ()}
        for entry in spec.get("resourceClaims") or ():
            name = entry.get("resourceClaimName") or made.get(entry.get("name"))
            if name:
                claims[str(name)] = True
    return Pod(str(meta["namespace"]), str(meta["name"]), str(meta["uid"]), tuple(sorted(claims.items())))


class Pods:
    """The pods that this node has or is to have, as far as they name claims.

    Each change gives the claims whose pods are others than before: a pod's mere progress touches none.
    """

    def __init__(self) -> None:
        self._pods: dict[tuple[Place, str], Pod] = {}
        self._naming: dict[Key, set[tuple[Place, str]]] = defaultdict(set)

    def list(self, place: Place, pods: Iterable[Pod]) -> set[Key]:
        """A list is the truth (H34): pods that it lacks are gone."""
        found = {pod.uid: pod for pod in pods}
        gone = [uid for where, uid in self._pods if where is place and uid not in found]
        touched: set[Key] = set()
        for uid in gone:
            touched |= self.drop(place, uid)
        for pod in found.values():
            touched |= self.put(place, pod)
        return touched

    def put(self, place: Place, pod: Pod) -> set[Key]:
        """A pod is there, or changed."""
        before = self._pods.get((place, pod.uid))
        if pod == before:
            return set()
        touched = _keys(before) ^ _keys(pod)
        self._forget(place, pod.uid)
        if pod.claims:
            self._pods[place, pod.uid] = pod
            for key in _keys(pod):
                self._naming[key].add((place, pod.uid))
        return touched

    def drop(self, place: Place, uid: str) -> set[Key]:
        """A pod is gone, or no longer of that place."""
        touched = _keys(self._pods.get((place, uid)))
        self._forget(place, uid)
        return touched

    def places(self, key: Key) -> frozenset[Place]:
        """Where the pods are that name a claim, each as far as it has come; empty if no pod does."""
        return frozenset({uid: place for place, uid in sorted(self._naming.get(key, ()))}.values())

    def named(self) -> tuple[Key, ...]:
        """The claims that are named."""
        return tuple(self._naming)

    def uids(self, key: Key) -> frozenset[str]:
        """UIDs of the pods that name a claim."""
        return frozenset(uid for _, uid in self._naming.get(key, ()))

    def of(self, key: Key) -> tuple[PodRef, ...]:
        """The pods that name a claim, in order of name."""
        pods = {uid: self._pods[place, uid] for place, uid in self._naming.get(key, ())}
        return tuple(
            sorted(
                PodRef(pod.namespace, pod.name, uid, dict(pod.claims)[key[1]]) for uid, pod in pods.items()
            )
        )

    def _forget(self, place: Place, uid: str) -> None:
        for key in _keys(self._pods.pop((place, uid), None)):
            self._naming[key].discard((place, uid))
            if not self._naming[key]:
                del self._naming[key]


def _keys(pod: Pod | None) -> set[Key]:
    return set() if pod is None else {(pod.namespace, name) for name, _ in pod.claims}


class Sight(enum.Enum):
    """How a claim was last seen."""

    UNKNOWN = "unknown"
    MISSING = "missing"
    UNALLOCATED = "unallocated"
    OTHERS = "others"
    """Allocated, and nothing of it is ours on this node."""
    OURS = "ours"


def followed(places: frozenset[Place], sight: Sight, *, reserved: bool, prepared: bool, open_: bool) -> bool:
    """Whether a claim has to be looked at again.

    Args:
        places: of the pods that name it.
        sight: how it was last seen.
        reserved: the ledger holds devices for it that it has not prepared.
        prepared: the ledger has it prepared: the kubelet has asked, and tells of its end.
        open_: it was refused or is not answered yet; it may succeed, or be allocated elsewhere.
    """
    if reserved:
        return True
    if not places:
        return False
    match sight:
        case Sight.UNKNOWN:
            return True
        case Sight.UNALLOCATED | Sight.MISSING:
            # The nomination is written before the allocation, and the claim may be made anew in between (H6); a pod
            # that was bound has waited for its claims.
            return Place.NOMINATED in places
        case Sight.OURS:
            return open_ and not prepared
        case Sight.OTHERS:
            return False
