"""What three witnesses of a real node said, as lines of the campaign's journal.

The probes' own notes, the API server's audit log, and lists of the API server where the log may have a hole because
that server was killed. Pure but for reading files; the daemon's word is not among them.
"""

from __future__ import annotations

import bisect
import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.journal import (
    ENDED,
    Busy,
    Close,
    Line,
    Open,
    Pod,
    claim_line,
    node_line,
    pod_line,
    slice_line,
)
from tests.e2e.journal import Note

Object = dict[str, Any]

_KINDS = {
    "pods": "Pod",
    "resourceclaims": "ResourceClaim",
    "resourceslices": "ResourceSlice",
    "nodes": "Node",
}
KINDS = tuple(_KINDS.values())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every object of a kind, as the API server listed them at `t`."""

    t: float
    kind: str
    items: Sequence[Object]


@dataclass(slots=True)
class Objects:
    """The API server's objects as they were, one change after the other.

    Attributes:
        offset: monotonic seconds less seconds of the wall clock, which the audit log goes by.
    """

    offset: float
    _now: dict[tuple[str, str], Object] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)

    def lines(self, audit: Iterable[Object], snapshots: Iterable[Snapshot]) -> Iterator[Line]:
        """Every change, in the order of time."""
        steps: list[tuple[float, Object | Snapshot]] = [(self._time(e), e) for e in audit]
        steps += [(snapshot.t, snapshot) for snapshot in snapshots]
        for t, step in sorted(steps, key=lambda s: s[0]):
            yield from self._listed(step) if isinstance(step, Snapshot) else self._written(t, step)

    def _time(self, event: Object) -> float:
        stamp = datetime.datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00"))
        return stamp.timestamp() + self.offset

    def _written(self, t: float, event: Object) -> Iterator[Line]:
        if not 200 <= (event.get("responseStatus") or {}).get("code", 0) < 300:
            return
        about = event["objectRef"]
        kind = _KINDS[about["resource"]]
        answer = event.get("responseObject") or {}
        if about.get("subresource") == "binding":
            yield from self._bound(t, about, event["requestObject"])
        elif event["verb"] == "deletecollection":
            for item in answer.get("items") or ():
                yield from self._is(t, kind, item, gone=_is_gone(kind, item, deleted=True))
        elif "metadata" in answer and answer.get("kind") != "Status":
            yield from self._is(
                t, kind, answer, gone=_is_gone(kind, answer, deleted=event["verb"] == "delete")
            )
        elif event["verb"] == "delete":
            for known in [o for (k, _), o in self._now.items() if k == kind and _named(o, about)]:
                yield from self._is(t, kind, known, gone=True)

    def _bound(self, t: float, about: Object, binding: Object) -> Iterator[Line]:
        for (kind, _), pod in list(self._now.items()):
            if kind == "Pod" and _named(pod, about):
                bound = {**pod, "spec": {**pod["spec"], "nodeName": binding["target"]["name"]}}
                yield from self._is(t, kind, bound, gone=False)

    def _listed(self, snapshot: Snapshot) -> Iterator[Line]:
        there = {item["metadata"]["uid"] for item in snapshot.items}
        for item in snapshot.items:
            yield from self._is(snapshot.t, snapshot.kind, item, gone=False)
        for (kind, uid), known in list(self._now.items()):
            if kind == snapshot.kind and uid not in there:
                yield from self._is(snapshot.t, kind, known, gone=True)

    def _is(self, t: float, kind: str, body: Object, *, gone: bool) -> Iterator[Line]:
        """One object as it is now; what is older than what is known of it, or of one that is gone, says nothing."""
        uid = body["metadata"]["uid"]
        known = self._now.get((kind, uid))
        if uid in self._gone or (known is not None and _version(body) < _version(known)):
            return
        if gone:
            self._gone.add(uid)
            self._now.pop((kind, uid), None)
        else:
            self._now[kind, uid] = body
        match kind:
            case "Pod":
                yield pod_line(t, body, gone=gone)
            case "ResourceClaim":
                yield claim_line(t, body, gone=gone)
            case "ResourceSlice":
                yield slice_line(t, body, gone=gone)
            case _:
                yield node_line(t, body)


def _version(body: Object) -> int:
    return int(body["metadata"].get("resourceVersion") or 0)


def _named(body: Object, about: Object) -> bool:
    meta = body["metadata"]
    return bool(meta["name"] == about["name"] and meta.get("namespace") == about.get("namespace"))


def _is_gone(kind: str, body: Object, *, deleted: bool) -> bool:
    """Whether the write that left an object like this has removed it."""
    meta = body["metadata"]
    if meta.get("finalizers"):
        return False
    if kind == "Pod":
        return bool(meta.get("deletionTimestamp")) and not meta.get("deletionGracePeriodSeconds")
    return deleted or bool(meta.get("deletionTimestamp"))


@dataclass(slots=True)
class Uses:
    """What the containers had open.

    Attributes:
        lines: opens, busy ones and closes.
        unclosed: how many ended without the container's own word.
        by_pod: the devices that each pod ever opened, by its UID.
    """

    lines: list[Line] = field(default_factory=list)
    unclosed: int = 0
    by_pod: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def uses(notes: Iterable[Note], pods: Iterable[Line]) -> Uses:
    """The probes' notes, whose holder is the pod's UID.

    A container that was killed has noted no close. Then its use ended when the API server had its pod ended in order,
    or when the kernel let another open the device exclusively, whichever came first.
    """
    found = Uses()
    ordered = sorted(notes, key=lambda note: note.mono)
    ends = _ends(pods)
    runs: dict[tuple[str, str], str] = {}
    opened: defaultdict[str, list[float]] = defaultdict(list)
    for note in ordered:
        if note.event == "open":
            opened[note.path].append(note.mono / 1e9)
    for number, note in enumerate(ordered):
        t, key = note.mono / 1e9, (note.holder, note.path)
        match note.event:
            case "open":
                if key in runs:  # started again after it was killed
                    found.unclosed += 1
                    found.lines.append(Close(t, note.path, runs[key]))
                runs[key] = f"{note.holder}/{number}"
                found.by_pod[note.holder].add(note.path)
                found.lines.append(Open(t, note.path, runs[key], note.holder))
            case "busy":
                found.lines.append(Busy(t, note.path, f"{note.holder}/{number}", note.holder))
            case "close":
                found.lines.append(Close(t, note.path, runs.pop(key)))
    started = {(line.container): line.t for line in found.lines if isinstance(line, Open)}
    for (holder, path), run in runs.items():
        later = opened[path][bisect.bisect_right(opened[path], started[run]) :]
        known = [t for t in (ends.get(holder), later[0] if later else None) if t is not None]
        if known:
            found.unclosed += 1
            found.lines.append(Close(min(known), path, run))
    return found


def _ends(pods: Iterable[Line]) -> Mapping[str, float]:
    """When each pod was said to have ended; one that was removed before it had is not known to have."""
    ends: dict[str, float] = {}
    for line in pods:
        if isinstance(line, Pod) and line.phase in ENDED:
            ends.setdefault(line.uid, line.t)
    return ends
