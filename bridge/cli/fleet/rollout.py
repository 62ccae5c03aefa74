"""The rolling switch: writes the marks of one batch, waits until its nodes are there, then the next.

It stops at the first node that fails; on the way back it goes on, for the node that a switch stopped at must not keep
the others from going back. Nothing is remembered outside the cluster: the same command again finds the nodes
that are there, leaves them alone, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from bridge.cli.fleet import marks
from bridge.cli.fleet.cluster import Cluster, ClusterError
from bridge.cli.fleet.journey import Leg, Report, Result
from bridge.cli.fleet.marks import Marks
from bridge.cli.fleet.states import State
from bridge.cli.fleet.verdicts import Judge, Standing, Verdict, ready
from bridge.cli.fleet.watching import Bridges, until

NODES = "/api/v1/nodes"

TRIES = 8
"""Writes of one node: the kubelet writes it too, which is no reason to give up."""


class Progress(Protocol):
    """Who is told how it goes."""

    def batch(self, number: int, of: int, nodes: Sequence[str]) -> None:
        """A batch begins."""

    def says(self, node: str, text: str) -> None:
        """A node is under way."""

    def done(self, node: str, text: str) -> None:
        """A node is there."""

    def failed(self, node: str, text: str) -> None:
        """A node is not; a switch stops there, an undo goes on."""

    def pause(self, seconds: float) -> None:
        """Nothing happens for a while."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is waited for what, in seconds.

    Attributes:
        timeout: for one node to be there.
        patience: for what is wrong to pass, such as a daemon that is not Ready because it restarts.
        pause: between batches.
        wait: whether nodes are waited for at all.
    """

    timeout: float = 300.0
    patience: float = 30.0
    pause: float = 0.0
    wait: bool = True


class Stopped(Exception):
    """A node failed; the text says why, and an undo goes on with the others."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(why)
        self.node = node


class Rollout:
    """One rolling switch.

    Attributes:
        report: how far each node has come; true at any moment, an interruption included.
    """

    def __init__(
        self,
        cluster: Cluster,
        legs: Sequence[Leg],
        pace: Pace,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster, self._pace, self._progress = cluster, pace, progress
        self._bridges = Bridges(cluster)
        self._clock, self._sleep = clock, sleep
        self.report = Report.of(legs)

    def left(self, legs: Sequence[Leg], states: Mapping[str, State]) -> list[Leg]:
        """Those that something is to be done for; the others are noted as being there already."""
        todo = []
        for leg in legs:
            if leg.labelled and not leg.undo and leg.judge(states.get(leg.node)).there:
                self.report.rows[leg.node].result = Result.ALREADY
            else:
                todo.append(leg)
        return todo

    def run(self, batches: Sequence[Sequence[Leg]]) -> Report:
        """Go through the batches. Raises ClusterError where the cluster cannot be asked."""
        for number, batch in enumerate(batches, start=1):
            self._progress.batch(number, len(batches), [leg.node for leg in batch])
            try:
                self._one(batch)
            except Stopped as stopped:
                self.failed(stopped)
                return self.report
            if self._pace.pause and number < len(batches):
                self._progress.pause(self._pace.pause)
                self._sleep(self._pace.pause)
        return self.report

    def failed(self, stopped: Stopped) -> None:
        """Note that a node failed."""
        row = self.report.rows[stopped.node]
        row.result, row.says, row.seconds = Result.FAILED, str(stopped), None
        self.report.failed.append(stopped.node)
        self._progress.failed(stopped.node, str(stopped))

    def _one(self, batch: Sequence[Leg]) -> None:
        """One batch. Raises Stopped."""
        if self._pace.wait:
            self._bridges.refresh([leg.node for leg in batch])
            # Not on the way back: that may be what a daemon needs to be ready again.
            asked = {leg.node: (leg, ready) for leg in batch if not leg.undo}
            if asked:
                until(self._bridges, _Wait(self, asked, self._pace.patience, set()).met)
        begun, versions = self._clock(), self._bridges.versions()
        told, judges = set[str](), dict[str, tuple[Leg, Judge]]()
        for leg in batch:
            try:
                if self._say(leg):
                    told.add(leg.node)
            except Stopped as stopped:
                if not leg.undo:
                    raise
                self.failed(stopped)
                continue
            judges[leg.node] = (leg, leg.judge)
        if self._pace.wait and judges:
            arriving = _Wait(self, judges, self._pace.timeout, told, versions)
            arriving.there = lambda leg: self._arrived(leg, begun, leg.node in told)
            until(self._bridges, arriving.met)

    def _say(self, leg: Leg) -> bool:
        """Write what is wanted on the Node; whether there was anything to write."""
        row = self.report.rows[leg.node]
        wrote = self._write(leg, leg.wanted)
        if not self._pace.wait:
            row.result = Result.LABELLED if wrote else Result.ALREADY
            if leg.undo:
                self._forget(leg)
            self._progress.done(leg.node, row.result.value)
            return wrote
        row.result = Result.UNDER_WAY
        if wrote:
            self._progress.says(leg.node, f"{leg.was or 'as configured'} → {leg.mode or 'as configured'}")
        return wrote

    def _arrived(self, leg: Leg, begun: float, wrote: bool) -> None:
        row = self.report.rows[leg.node]
        row.result = Result.SWITCHED if wrote else Result.ALREADY
        row.seconds, row.says = (self._clock() - begun if wrote else None), ""
        if leg.undo:
            self._forget(leg)
        took = f" after {row.seconds:.1f} s" if row.seconds is not None else ""
        self._progress.done(leg.node, f"{row.result.value}{took}: {row.mode}")

    def _forget(self, leg: Leg) -> None:
        self._write(leg, marks.forgotten(leg.wanted), found=leg.wanted)

    def _write(self, leg: Leg, wanted: Marks, found: Marks | None = None) -> bool:
        """Patch the Node, unless somebody else has changed what is said of it since it was planned."""
        found = found or leg.found
        for _ in range(TRIES):
            node = self._cluster.get(f"{NODES}/{leg.node}")
            now = marks.marks(node, leg.group)
            if now not in (found, wanted):
                raise Stopped(leg.node, _somebody_else(found, now))
            body = marks.patch(node, leg.group, wanted)
            if body is None:
                return False
            try:
                self._cluster.patch(f"{NODES}/{leg.node}", body)
            except ClusterError as error:
                if error.conflict:
                    continue
                raise Stopped(leg.node, f"it could not be labelled: {error}") from error
            return True
        raise Stopped(leg.node, f"it was written by others each of {TRIES} times that it was to be labelled")

    def note(self, node: str, verdict: Verdict) -> None:
        """A node is not there yet."""
        row = self.report.rows[node]
        if verdict.says and verdict.says != row.says:
            row.says = verdict.says
            self._progress.says(node, verdict.says)

    def now(self) -> float:
        """Seconds of the clock that everything here is timed by."""
        return self._clock()

    @property
    def pace(self) -> Pace:
        """How long is waited for what."""
        return self._pace


class _Wait:
    """Waits until each of some nodes is judged to be there.

    Args:
        nodes: with how each is judged.
        timeout: seconds for each of them.
        told: nodes that were written just now: a refusal that stood before is given time to be thought over.
        versions: of their NodeBridges before that.
    """

    def __init__(
        self,
        rollout: Rollout,
        nodes: Mapping[str, tuple[Leg, Judge]],
        timeout: float,
        told: set[str],
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._rollout, self._left, self._timeout, self._told = rollout, dict(nodes), timeout, told
        self._begun = rollout.now()
        self._wrong_since: dict[str, float] = {}
        self._versions = versions
        self.there: Callable[[Leg], Any] = lambda leg: None

    def met(self, states: Mapping[str, State]) -> bool:
        """Look at each; True once all are there, or failed on the way back. Raises Stopped."""
        for leg, judge in list(self._left.values()):
            try:
                arrived = self._look(leg, judge, states.get(leg.node))
            except Stopped as stopped:
                if not leg.undo:
                    raise
                self._rollout.failed(stopped)
                arrived = True
            if arrived:
                del self._left[leg.node]
        return not self._left

    def _look(self, leg: Leg, judge: Judge, state: State | None) -> bool:
        """Whether a node is there. Raises Stopped."""
        node, verdict, version = leg.node, judge(state), state.version if state else ""
        stood = node in self._told and version == self._versions.get(node, version)
        if verdict.there and stood and not leg.mode and self._within_patience():
            # Only the daemon knows where it is to go, and it was there before it heard of it.
            verdict = Verdict(Standing.UNDER_WAY, "its daemon has still to take up the label")
        if verdict.there:
            self.there(leg)
            return True
        self._rollout.note(node, verdict)
        if why := self._too_long(node, verdict, stood):
            raise Stopped(node, why)
        return False

    def _within_patience(self) -> bool:
        return self._rollout.now() - self._begun < min(self._rollout.pace.patience, self._timeout)

    def _too_long(self, node: str, verdict: Verdict, stood: bool) -> str:
        now = self._rollout.now()
        if verdict.standing is Standing.REFUSED and not stood:
            return verdict.says
        if verdict.standing in (Standing.WRONG, Standing.REFUSED):
            since = self._wrong_since.setdefault(node, now)
            if now - since >= self._rollout.pace.patience:
                return verdict.says
        else:
            self._wrong_since.pop(node, None)
        if now - self._begun >= self._timeout:
            return f"it was not there within {self._timeout:.0f} s: {verdict.says}"
        return ""


def _somebody_else(found: Marks, now: Marks) -> str:
    def said(one: Marks) -> str:
        return one.mode or "no mode"

    what = (
        f"its label was {said(found)} and is {said(now)}"
        if found.mode != now.mode
        else "its annotations changed"
    )
    return f"somebody else is switching it: {what} since this began"


def stands(report: Report, again: str, undo: str) -> str:
    """What stands after a switch that did not come to its end, or not everywhere, and how to go on."""
    there = report.count(Result.SWITCHED, Result.ALREADY, Result.LABELLED)
    parts = [f"{there} of {len(report.rows)} nodes are there"]
    if under_way := report.count(Result.UNDER_WAY):
        parts.append(f"{under_way} under way")
    parts.append(f"{report.count(Result.UNTOUCHED)} not begun")
    if report.undo and report.failed:
        parts.append(f"{len(report.failed)} failed")
    what = "{} did not go back: {}\n" if report.undo else "stopped at {}: {}\n"
    why = "".join(what.format(node, report.rows[node].says) for node in report.failed)
    told = f"{why}{', '.join(parts)}; pods keep the devices that they have.\n"
    if report.undo:
        return f"{told}to go on:  {again}"
    return f"{told}to go on where it stopped:  {again}\nto go back:                 {undo}"
