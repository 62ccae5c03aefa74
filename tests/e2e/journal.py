"""The judge of double use: what the containers themselves noted, and what the ledger said meanwhile.

Pure, and independent of the bridge: it reads the journals of the probe (each line of them written by the one
who holds the device) and the daemon's log of hand-outs as plain text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FOREVER = 1 << 62

_GRPC = re.compile(r"[IWEF]\d{4} \d\d:\d\d:")


@dataclass(frozen=True, slots=True)
class Note:
    """One line of a probe's journal; times in nanoseconds, `mono` comparable within one machine."""

    mono: int
    wall: int
    event: str
    holder: str
    path: str
    error: str


@dataclass(frozen=True, slots=True)
class Use:
    """One container had one device open, from one instant to another, in nanoseconds.

    `wall_*` are the same instants by the wall clock, to compare with logs.
    """

    holder: str
    path: str
    opened: int
    closed: int
    wall_opened: int
    wall_closed: int


def parse(text: str) -> list[Note]:
    """Read a journal. Raises ValueError for a line that no probe writes.

    A last line without its end is still being written, for a write over the end of a page is seen in two parts.
    """
    notes = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        mono, wall, event, holder, path, error = line.split(" ")
        notes.append(Note(int(mono), int(wall), event, holder, path, error))
    return notes


def uses(notes: Iterable[Note]) -> list[Use]:
    """Pair each open with its close; one that never closed lasts for ever."""
    begun: dict[tuple[str, str], Note] = {}
    found: list[Use] = []
    for note in notes:
        key = (note.holder, note.path)
        if note.event == "open":
            if key in begun:
                found.append(_use(begun[key], None))
            begun[key] = note
        elif note.event == "close":
            found.append(_use(begun.pop(key), note))
    return found + [_use(note, None) for note in begun.values()]


def _use(opened: Note, closed: Note | None) -> Use:
    end, wall_end = (closed.mono, closed.wall) if closed else (FOREVER, FOREVER)
    return Use(opened.holder, opened.path, opened.mono, end, opened.wall, wall_end)


def refused_by_kernel(notes: Iterable[Note]) -> list[Note]:
    """Opens that failed: a `busy` one means that two containers had the same device."""
    return [note for note in notes if note.event in ("busy", "error")]


def double_uses(found: Iterable[Use]) -> list[tuple[Use, Use]]:
    """Pairs of uses of one device that overlap."""
    by_path: dict[str, list[Use]] = {}
    for use in found:
        by_path.setdefault(use.path, []).append(use)
    pairs = []
    for same in by_path.values():
        last: Use | None = None
        for use in sorted(same, key=lambda u: u.opened):
            if last is not None and use.opened < last.closed:
                pairs.append((last, use))
            if last is None or use.closed > last.closed:
                last = use
    return pairs


def most_at_once(found: Iterable[Use]) -> int:
    """The largest number of uses at one instant."""
    steps = sorted(
        [(use.opened, 1) for use in found] + [(use.closed, -1) for use in found],
        key=lambda step: (step[0], step[1]),
    )
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the daemon's log about devices; `wall` in nanoseconds."""

    wall: int
    message: str
    plane: str
    group: str
    devices: tuple[str, ...]
    holder: str
    text: str


HANDED_OUT = "handed out"
REFUSED = "refused"
ENDED = "released"


def entries(log: str) -> list[Entry]:
    """The hand-outs, refusals and releases of a daemon's JSON log, in order."""
    found = []
    for record in records(log):
        if record["message"] in (HANDED_OUT, REFUSED, ENDED):
            found.append(
                Entry(
                    wall=_nanoseconds(record["time"]),
                    message=record["message"],
                    plane=record["plane"],
                    group=record["group"],
                    devices=tuple(record["devices"]),
                    holder=record.get("holder", ""),
                    text=record.get("why", ""),
                )
            )
    return found


def records(log: str) -> list[dict[str, Any]]:
    """All lines of a JSON log but those of gRPC's core. Raises ValueError where one is no JSON: a traceback, say."""
    lines = (line for line in log.splitlines() if line.strip() and not _GRPC.match(line))
    return [json.loads(line) for line in lines]


def _nanoseconds(time: str) -> int:
    moment = datetime.datetime.fromisoformat(time.replace("Z", "+00:00"))
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 1_000_000_000 + moment.microsecond * 1000


@dataclass(frozen=True, slots=True)
class LedgerHold:
    """A time in which the ledger had a device out to one plane; wall clock, nanoseconds."""

    device: str
    plane: str
    since: int
    until: int


def ledger_holds(log: Sequence[Entry]) -> list[LedgerHold]:
    """What the ledger had out and when. A device that one plane hands on to its next pod stays one hold."""
    begun: dict[tuple[str, str], int] = {}
    found: list[LedgerHold] = []
    for entry in log:
        for device in entry.devices:
            key = (device, entry.plane)
            if entry.message == HANDED_OUT:
                begun.setdefault(key, entry.wall)
            elif entry.message == ENDED and key in begun:
                found.append(LedgerHold(device, entry.plane, begun.pop(key), entry.wall))
    return found + [LedgerHold(d, p, since, FOREVER) for (d, p), since in begun.items()]


def conflicts(holds: Iterable[LedgerHold]) -> list[tuple[LedgerHold, LedgerHold]]:
    """Pairs of holds of one exclusive device that overlap."""
    by_device: dict[str, list[LedgerHold]] = {}
    for hold in holds:
        by_device.setdefault(hold.device, []).append(hold)
    pairs = []
    for same in by_device.values():
        pairs += [(a, b) for a, b in pairwise(sorted(same, key=lambda h: h.since)) if b.since < a.until]
    return pairs


def covered(use: Use, device: str, plane: str, holds: Iterable[LedgerHold]) -> bool:
    """Whether the ledger had the device out to that plane for as long as the container had it open."""
    return any(
        hold.device == device
        and hold.plane == plane
        and hold.since <= use.wall_opened
        and use.wall_closed <= hold.until
        for hold in holds
    )
