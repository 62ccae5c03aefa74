"""When may a device plugin hold end? The API has no Deallocate, so only evidence can tell.

Pure: sightings and times in, a verdict out; the reconciler gathers them. Keeps S4 (design 1) by the rules of
kubelet-contract E.5: a source that is missing or contradicts another makes a release later, never earlier.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.ledger.holds import Hold, Phase, PodHolder

PodName = tuple[str, str]
"""(namespace, name)"""

DeviceName = tuple[str, str]
"""(group, device)"""


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device of a claim that a running pod uses, as podresources lists it.

    `name` is the share ID where there is one, else the device's name; `uid` is the claim's, where it is known.
    """

    driver: str
    device: str
    name: str
    claim: PodName
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at every source.

    Attributes:
        at: monotonic seconds (H42).
        listed: podresources: the pod that has an ID, by (resource name, ID); None if it did not answer.
        active: the pods podresources lists, with or without devices.
        checkpointed: the kubelet's checkpoint: UIDs of pods by (resource name, ID); None if unreadable or lost.
        checkpoint_lost: whether that is because there is no such file, although it was written for what is held:
            the kubelet was reset and has forgotten its pods' devices (H14).
        live: pods with a ready sandbox or a container that has not exited, as the runtime says: UIDs by name;
            None if the runtime did not answer.
        ended: UIDs of pods of which the API server says that they have ended or are gone.
        ended_names: the same by name, as far as it was asked: only while the runtime does not answer, or the
            checkpoint is lost.
        graces: how long the containers of a pod may take to end, in seconds, as far as it was asked.
        claimed: devices of claims that podresources lists.
        prepared: devices of claims that the kubelet has noted down as prepared, those of pods that it does not list
            among them; None if unreadable, or not asked for.
        rivals: groups in whose name somebody else serves too, and who (H19).
        used: what devices that can tell say themselves: whether anybody uses them.
        kubelet_stable: whether the kubelet has been up long enough for its lists to be whole (H13).
    """

    at: float
    listed: Mapping[tuple[str, str], PodHolder] | None = None
    active: frozenset[PodName] = frozenset()
    checkpointed: Mapping[tuple[str, str], frozenset[str]] | None = None
    checkpoint_lost: bool = False
    live: Mapping[PodName, frozenset[str]] | None = None
    ended: frozenset[str] = frozenset()
    ended_names: frozenset[PodName] = frozenset()
    graces: Mapping[PodName, float] = field(default_factory=dict)
    claimed: frozenset[ClaimedDevice] = frozenset()
    prepared: frozenset[ClaimedDevice] | None = None
    rivals: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[DeviceName, bool] = field(default_factory=dict)
    kubelet_stable: bool = False


@dataclass(frozen=True, slots=True)
class InUse:
    """A source shows the device with a pod."""

    pod: PodHolder
    source: str


@dataclass(frozen=True, slots=True)
class Unsure:
    """No source shows it, but one that would have to is missing."""

    why: str


class Trust(enum.IntEnum):
    """How far an absence can be trusted; decides how long it must last."""

    NO_RUNTIME = 0
    NO_CHECKPOINT = 1
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class Absent:
    """Every source that answered agrees that nobody has it.

    Attributes:
        trust: how far that goes.
        lasting: seconds that its containers may go on unseen, which the absence must outlast.
    """

    trust: Trust
    lasting: float = 0.0


Seen = InUse | Unsure | Absent


@dataclass(frozen=True, slots=True)
class Grace:
    """How long to wait, in seconds.

    Attributes:
        unmatched: for a hold that no pod was ever matched to: admission may still be under way (H11, H12).
        confirm: between the first and the last of the sightings that agree.
        degraded: instead of `confirm` while the runtime does not answer or the checkpoint is lost, and without the
            runtime at least this much longer than the pod's grace period: a pod deleted by force may go on running
            for it unseen by the kubelet's lists (H9, kubelet-contract E.5).
    """

    unmatched: float = 60.0
    confirm: float = 1.0
    degraded: float = 600.0

    def of(self, trust: Trust, lasting: float = 0.0) -> float:
        """How long an absence must last, in seconds."""
        return self.confirm if trust is Trust.WHOLE else self.degraded + lasting


UNKNOWN_GRACE_S = 3600.0
"""Where the runtime does not answer and nobody knows a pod's grace period: it was gone before it was asked for."""


def look_at(hold: Hold, resource: str, sighting: Sighting, *, alone: bool = True) -> Seen:
    """What one sighting says of one hold; `alone`: no other hold explains a use of its device."""
    seen = _by_kubelet_and_runtime(hold, resource, sighting)
    if isinstance(seen, Absent) and alone and sighting.used.get((hold.group, hold.device), False):
        return Unsure("the device itself says that somebody uses it")
    return seen


def _by_kubelet_and_runtime(hold: Hold, resource: str, sighting: Sighting) -> Seen:
    if sighting.listed is None:
        return Unsure("the kubelet's podresources socket does not answer")
    key = (resource, hold.share)
    if key in sighting.listed:
        return InUse(_with_uid(sighting.listed[key], sighting, key), "podresources")
    if not sighting.kubelet_stable:
        return Unsure("the kubelet has only just started")
    if sighting.checkpointed is None and sighting.checkpoint_lost:
        return _without_checkpoint(hold, sighting)
    if sighting.checkpointed is None:
        return Unsure("the kubelet's checkpoint cannot be read")
    owners = sighting.checkpointed.get(key, frozenset())
    if sighting.live is None:
        return _without_runtime(hold, owners, sighting)
    return _with_runtime(hold, owners, sighting)


def _with_runtime(hold: Hold, owners: frozenset[str], sighting: Sighting) -> Seen:
    """The runtime answered: what it runs is in use, what it does not run may only be waiting to start.

    A pod in the checkpoint without a sandbox is gone for good only when the API server says so: its entry may be
    stale (H10), or its volumes not yet attached, and podresources does not list init containers (H11).
    """
    assert sighting.live is not None
    for name, uids in sighting.live.items():
        running = uids & owners
        if running:
            return InUse(PodHolder(*name, uid=min(running)), "checkpoint and runtime")
    pod = _pod(hold)
    here = sighting.live.get((pod.namespace, pod.name), frozenset()) if pod else frozenset()
    if pod is not None and (pod.uid in here or (here and not pod.uid)):
        return InUse(pod, "runtime")
    if not owners <= sighting.ended:
        return Unsure("the checkpoint names a pod of which the API server has not said that it ended")
    return Absent(Trust.WHOLE)


def _without_runtime(hold: Hold, owners: frozenset[str], sighting: Sighting) -> Seen:
    """The runtime does not answer: the API server must say that the pod has ended, and even then its containers may
    go on for the pod's grace period."""
    if owners:
        return Unsure("the checkpoint still names it and the runtime does not answer")
    pod = _pod(hold)
    if pod is None:
        return Absent(Trust.NO_RUNTIME)
    name = (pod.namespace, pod.name)
    if name in sighting.active:
        return Unsure("the kubelet still lists the pod and the runtime does not answer")
    if name not in sighting.ended_names and pod.uid not in sighting.ended:
        return Unsure("neither the runtime nor the API server says that its pod has ended")
    return Absent(Trust.NO_RUNTIME, sighting.graces.get(name, UNKNOWN_GRACE_S))


def _without_checkpoint(hold: Hold, sighting: Sighting) -> Seen:
    """The kubelet has lost its record, so what it lists says nothing of pods that run: runtime and API server must both
    say that the pod is over, for long. Which pod has a grant that was never matched nobody can tell any more, so that
    one outlasts the longest that a pod may take."""
    if sighting.live is None:
        return Unsure("the kubelet's checkpoint is gone and the runtime does not answer")
    pod = _pod(hold)
    if pod is None:
        return Absent(Trust.NO_CHECKPOINT, UNKNOWN_GRACE_S)
    name = (pod.namespace, pod.name)
    here = sighting.live.get(name, frozenset())
    if pod.uid in here or (here and not pod.uid):
        return InUse(pod, "runtime")
    if name not in sighting.ended_names and pod.uid not in sighting.ended:
        return Unsure("the kubelet's checkpoint is gone and the API server has not said that its pod ended")
    return Absent(Trust.NO_CHECKPOINT)


def _pod(hold: Hold) -> PodHolder | None:
    return hold.holder if isinstance(hold.holder, PodHolder) and hold.holder.known else None


def _with_uid(pod: PodHolder, sighting: Sighting, key: tuple[str, str]) -> PodHolder:
    """podresources has no UID: take it where checkpoint and runtime agree on one."""
    owners = (sighting.checkpointed or {}).get(key, frozenset())
    here = (sighting.live or {}).get((pod.namespace, pod.name), frozenset())
    both = owners & here
    return PodHolder(pod.namespace, pod.name, pod.container, min(both)) if len(both) == 1 else pod


@dataclass(frozen=True, slots=True)
class Absence:
    """How long a hold has been absent without a break.

    Attributes:
        first, last: monotonic seconds of the first and the last sighting.
        trust: the least that any of them deserved.
        lasting: the longest that any of them asked for.
    """

    first: float
    last: float
    trust: Trust
    lasting: float = 0.0


def continued(absence: Absence | None, seen: Seen, at: float) -> Absence | None:
    """The absence after one more sighting: anything but Absent begins it anew, and so does better trust."""
    if not isinstance(seen, Absent):
        return None
    if absence is None or seen.trust > absence.trust:
        return Absence(at, at, seen.trust, seen.lasting)
    return Absence(absence.first, at, seen.trust, max(absence.lasting, seen.lasting))


def may_release(hold: Hold, absence: Absence | None, age: float, grace: Grace) -> bool:
    """Whether a hold may end.

    `age`: monotonic seconds since it was granted, or since this process started if that is later.
    """
    if absence is None or absence.last <= absence.first:
        return False
    if hold.phase is Phase.GRANTED and age < grace.unmatched:
        return False
    return absence.last - absence.first >= grace.of(absence.trust, absence.lasting)


_DEGRADED = {
    Trust.NO_RUNTIME: " (proof is degraded: the runtime does not answer)",
    Trust.NO_CHECKPOINT: " (proof is degraded: the kubelet's checkpoint is gone)",
    Trust.WHOLE: "",
}


def in_words(hold: Hold, seen: Seen, absence: Absence | None, age: float, grace: Grace) -> str:
    """What a look says of a hold and what keeps it from ending, for people; see `may_release`."""
    match seen:
        case InUse(pod, source):
            return f"in use by {pod}, says {source}"
        case Unsure(why):
            return f"stays: {why}"
        case Absent(trust):
            so_far = absence.last - absence.first if absence is not None else 0.0
            left = grace.of(trust, absence.lasting if absence is not None else 0.0) - so_far
            if hold.phase is Phase.GRANTED:
                left = max(left, grace.unmatched - age)
            return f"no source shows it in use; it ends in {max(0.0, left):.0f} s if that stays so{_DEGRADED[trust]}"
