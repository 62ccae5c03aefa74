"""What a rolling switch is to do, node by node, and how it ended. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bridge.cli.fleet import marks
from bridge.cli.fleet.marks import Ask, Marks
from bridge.cli.fleet.states import State
from bridge.cli.fleet.verdicts import Judge, towards

MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Leg:
    """One node of a switch.

    Attributes:
        found: what was said of the node when the switch was planned.
        wanted: what is to be said.
        mode: that it goes to; empty: what its configuration file says.
        undo: whether it goes back, so that the note of what was before goes when it is there.
    """

    node: str
    group: str
    found: Marks
    wanted: Marks
    was: str
    mode: str
    undo: bool
    elsewhere: Collection[str] = ()

    @property
    def judge(self) -> Judge:
        """How far it is."""
        return towards(self.mode or None, self.group, self.elsewhere)

    @property
    def labelled(self) -> bool:
        """Whether the node's label says already what is wanted; options are of no use to one that is there."""
        return self.found.mode == self.wanted.mode


class Result(StrEnum):
    """How a node ended."""

    SWITCHED = "switched"
    ALREADY = "already there"
    LABELLED = "labelled"
    FAILED = "failed"
    UNDER_WAY = "under way"
    UNTOUCHED = "not begun"
    WOULD = "would be switched"


@dataclass(slots=True)
class Row:
    """A node in the report of a switch."""

    node: str
    was: str
    mode: str
    result: Result = Result.UNTOUCHED
    seconds: float | None = None
    says: str = ""

    def dump(self) -> dict[str, object]:
        """For programs and tables."""
        took = None if self.seconds is None else round(self.seconds, 1)
        return {
            "node": self.node,
            "was": self.was,
            "mode": self.mode,
            "result": self.result.value,
            "seconds": took,
            "says": self.says,
        }


@dataclass(slots=True)
class Report:
    """How a switch ended.

    Attributes:
        failed: the node that it stopped at; those that did not go back, where it is an undo, which goes on.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    undo: bool = False

    @classmethod
    def of(cls, legs: Sequence[Leg]) -> Report:
        """Nothing is done yet."""
        rows = {leg.node: Row(leg.node, leg.was, leg.mode or "as configured") for leg in legs}
        return cls(rows, undo=any(leg.undo for leg in legs))

    def count(self, *results: Result) -> int:
        """Nodes that ended so."""
        return sum(row.result in results for row in self.rows.values())


def forth(
    nodes: Sequence[Mapping[str, Any]],
    states: Mapping[str, State],
    mode: str,
    group: str,
    ask: Ask,
    at: datetime.datetime,
) -> list[Leg]:
    """A switch of these Nodes to a mode, in their order."""
    legs = []
    for order, node in enumerate(nodes):
        name, found = str(node["metadata"]["name"]), marks.marks(node, group)
        was = _was(states.get(name), found, group)
        # One microsecond apart, so that an undo has the order even where a batch is written at once.
        moment = at + datetime.timedelta(microseconds=order)
        wanted = marks.switched(found, mode, ask, group, moment, was)
        elsewhere = () if group else tuple(marks.of_groups(node))
        legs.append(Leg(name, group, found, wanted, was, mode, False, elsewhere))
    return legs


def back(nodes: Sequence[Mapping[str, Any]], states: Mapping[str, State], group: str) -> list[Leg]:
    """Undo the last switch of each of these Nodes that has one noted, the latest first."""
    legs: list[tuple[str, Leg]] = []
    for node in nodes:
        name, found = str(node["metadata"]["name"]), marks.marks(node, group)
        wanted = marks.undone(found)
        if wanted is None or found.previous is None:
            continue
        before = found.previous
        mode = before.mode or ("" if before.was == MIXED else before.was)
        was = _was(states.get(name), found, group)
        elsewhere = () if group else tuple(marks.of_groups(node))
        legs.append((before.at, Leg(name, group, found, wanted, was, mode, True, elsewhere)))
    return [leg for _, leg in sorted(legs, key=lambda one: one[0], reverse=True)]


def _was(state: State | None, found: Marks, group: str) -> str:
    """The mode that is wanted now, as far as anybody knows."""
    if found.mode is not None or state is None:
        return found.mode or ""
    if not group:
        return state.wanted
    one = state.group(group)
    return one.wanted if one else ""
