"""How this node stands, as the status of its NodeBridge (kustomize/base/node-bridge-crd.yaml).

Pure: what the daemon knows in, JSON out. Nothing in it changes without a reason, so that whoever writes it can tell by
comparison whether there is anything to write: a time is that of the last change of what it stands beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.config import Group
from bridge.ledger.holds import Plane, clock
from bridge.planes.counts import Counts
from bridge.planes.modes import GroupMode, Phase
from bridge.planes.report import WasRefused

Json = dict[str, Any]

GROUP_VERSION = "device-bridge.io/v1alpha1"
KIND = "NodeBridge"
PLURAL = "nodebridges"

MIXED = "mixed"
"""What groups that differ have in common."""

SAME_REFUSAL_S = 600.0
"""A refusal that is repeated sooner is no news: the kubelet asks again each minute for as long as a pod is stuck."""

_WORST = (Phase.REFUSED, Phase.WAITING, Phase.CLOSING, Phase.OPENING, Phase.SETTLED)
_REFUSAL_LIMIT, _GROUP_LIMIT, _CONDITION_LIMIT = 1024, 4096, 32768


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was asked for last and not given; `at` is wall clock, when it was said first."""

    at: float
    plane: Plane
    reason: str
    message: str

    @classmethod
    def of(cls, news: WasRefused, at: float) -> Refusal:
        """From what the planes report."""
        return cls(at, news.plane, str(news.cause), _cut(news.why, _REFUSAL_LIMIT))

    def repeats(self, earlier: Refusal | None) -> bool:
        """Whether it only says again what was said a short while ago."""
        return (
            earlier is not None
            and (self.plane, self.reason, self.message) == (earlier.plane, earlier.reason, earlier.message)
            and self.at - earlier.at < SAME_REFUSAL_S
        )


@dataclass(frozen=True, slots=True)
class Silent:
    """A source of evidence that does not answer: which, why, and what that costs."""

    name: str
    error: str
    without: str


@dataclass(frozen=True, slots=True)
class GroupState:
    """One group: its configuration, its switch, and its counts. A switch that has no `since` is as it was said last."""

    group: Group
    mode: GroupMode
    counts: Counts


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a status is made of.

    Attributes:
        version: of the daemon.
        groups: in the order of the configuration.
        wrong: what keeps the node from serving, as `/readyz` says it.
        silent: sources of evidence that do not answer.
        refusal: the last one of this process, if there was one.
    """

    version: str
    groups: Sequence[GroupState]
    wrong: Sequence[str] = ()
    silent: Sequence[Silent] = ()
    refusal: Refusal | None = None


def status_of(facts: Facts, before: Mapping[str, Any], now: float) -> Json:
    """The status that says so. `before`: what was said last, for times and for a refusal of an earlier process."""
    modes = [state.mode for state in facts.groups]
    said = {one.get("name"): one for one in before.get("groups") or ()}
    refusal = _refusal(facts.refusal) if facts.refusal is not None else before.get("lastRefusal")
    status: Json = {
        "version": facts.version,
        "wanted": _common(str(mode.wanted) for mode in modes),
        "mode": _common(str(mode.mode) for mode in modes),
        "phase": str(_worst(modes)),
        "free": _planes([state.counts.open for state in facts.groups]),
        "held": _planes([_held(state.counts) for state in facts.groups]),
        "groups": [_group(state, said.get(state.group.name) or {}, now) for state in facts.groups],
        "conditions": _conditions(facts, before.get("conditions") or (), now),
    }
    return status | ({"lastRefusal": dict(refusal)} if refusal else {})


def _group(state: GroupState, before: Mapping[str, Any], now: float) -> Json:
    group, mode, counts = state.group, state.mode, state.counts
    place = {"wanted": str(mode.wanted), "mode": str(mode.mode), "phase": str(mode.phase)}
    same = all(before.get(key) == value for key, value in place.items())
    since = clock(mode.since) if mode.since else before.get("since") if same else None
    shown: Json = {
        "name": group.name,
        "resourceName": group.resource_name,
        "driverName": group.driver_name,
        "deviceClassName": group.driver_name,
        **place,
        "reason": str(mode.reason),
        "message": _cut(mode.message, _GROUP_LIMIT),
        "since": since or clock(now),
        "devices": counts.all,
        "quarantined": counts.quarantined,
        "unhealthy": counts.unhealthy,
        "free": _planes([counts.open]),
        "held": _planes([_held(counts)]),
    }
    return {key: value for key, value in shown.items() if value != ""}


def _conditions(facts: Facts, before: Iterable[Mapping[str, Any]], now: float) -> list[Json]:
    earlier = {one.get("type"): one for one in before}
    return [
        _condition(kind, *saying, earlier.get(kind) or {}, now)
        for kind, saying in (
            ("Ready", _ready(facts.wrong)),
            ("Switched", _switched([state.mode for state in facts.groups])),
            ("EvidenceComplete", _evidence(facts.silent)),
        )
    ]


def _condition(
    kind: str, yes: bool, reason: str, message: str, before: Mapping[str, Any], now: float
) -> Json:
    """A condition as in every Kubernetes API: its time is that of its last change of status, not of words."""
    status = str(yes)
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": _cut(message, _CONDITION_LIMIT),
        "lastTransitionTime": since or clock(now),
    }


Saying = tuple[bool, str, str]
"""Whether it is so, why in a word, and why for people."""


def _ready(wrong: Sequence[str]) -> Saying:
    if not wrong:
        return True, "Serving", "Every group is served on the planes that are open."
    return False, "NotServing", f"{_listed(wrong)}. `bridge doctor` on the node looks at what it needs."


def _switched(modes: Sequence[GroupMode]) -> Saying:
    open_ones = [mode for mode in modes if mode.phase is not Phase.SETTLED or mode.mode is not mode.wanted]
    if not open_ones:
        return True, "Settled", "Every group has the mode that it is to have."
    worst = min(open_ones, key=lambda mode: _WORST.index(mode.phase))
    texts = [f"Group {one.group}, {one.mode} to {one.wanted}: {_why(one)}" for one in open_ones]
    return False, str(worst.reason), "\n".join(texts)


def _why(mode: GroupMode) -> str:
    if mode.message:
        return mode.message
    match mode.phase:
        case Phase.CLOSING:
            return "the plane that is left offers nothing new any more; the kubelet is being told."
        case Phase.WAITING:
            return "waits for the Node's status.allocatable of its resource to be 0; the kubelet sets it."
        case Phase.OPENING:
            return "the plane that is gone to is being opened."
        case Phase.REFUSED:
            return "it cannot be switched; the events of the Node say why."
        case Phase.SETTLED:
            return "begins at once."


def _evidence(silent: Sequence[Silent]) -> Saying:
    if not silent:
        return True, "SourcesAnswer", "Every source answers that proves the end of holds."
    texts = [f"{one.name} does not answer ({one.error}): {one.without}" for one in silent]
    return False, "SourceSilent", f"{_listed(texts)}. `bridge doctor` on the node says what to do."


def _refusal(refusal: Refusal) -> Json:
    return {
        "time": clock(refusal.at),
        "plane": str(refusal.plane),
        "reason": refusal.reason,
        "message": refusal.message,
    }


def _held(counts: Counts) -> dict[Plane, int]:
    return {plane: counts.held_on(plane) for plane in Plane}


def _planes(counts: Sequence[Mapping[Plane, int]]) -> Json:
    names = {"devicePlugin": Plane.DEVICE_PLUGIN, "dra": Plane.DRA}
    return {name: sum(one[plane] for one in counts) for name, plane in names.items()}


def _common(words: Iterable[str]) -> str:
    found = set(words)
    return found.pop() if len(found) == 1 else MIXED


def _worst(modes: Sequence[GroupMode]) -> Phase:
    return min((mode.phase for mode in modes), key=_WORST.index, default=Phase.SETTLED)


def _listed(texts: Sequence[str]) -> str:
    return "; ".join(text.rstrip(".") for text in texts)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
