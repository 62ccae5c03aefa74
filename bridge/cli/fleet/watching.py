"""NodeBridges followed for as long as a switch takes: one list, then watches, and a list again after each gap.

A fleet may have thousands of nodes and a switch as many batches: what a batch begins with is read by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping

from bridge.cli.fleet.cluster import Cluster, ClusterError
from bridge.cli.fleet.states import NO_CRD, PATH, State, state
from bridge.cli.problems import Problem

LOOK_S = 2
"""Seconds without news after which whoever waits is asked whether it has waited long enough."""

AWAY_S = 30.0
"""How long the API server may be away under a switch, as when it is restarted."""

_GONE, _SERVERS_FAULT = 410, 500
_MANY = 50


class NoBridges(Problem):
    """The cluster has no NodeBridge at all."""

    def __init__(self) -> None:
        super().__init__(NO_CRD)


class Bridges:
    """All NodeBridges, by node."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._states: dict[str, State] = {}
        self._version = ""

    def read(self) -> Mapping[str, State]:
        """List them. Raises NoBridges; ClusterError."""
        try:
            listing = self._cluster.all(PATH)
        except ClusterError as error:
            if error.missing:
                raise NoBridges from error
            raise
        self._states = {one.node: one for one in map(state, listing.items)}
        self._version = listing.version
        return self._states

    def refresh(self, nodes: Collection[str]) -> None:
        """Read those of some nodes, or all where these are many. Raises NoBridges; ClusterError."""
        if not self._version or len(nodes) > _MANY:
            self.read()
            return
        for node in nodes:
            found = self._cluster.find(f"{PATH}/{node}")
            if found is None:
                self._states.pop(node, None)
            else:
                self._states[node] = state(found)

    def follow(self) -> Iterator[Mapping[str, State]]:
        """All of them as known, after each change, and at least each `LOOK_S` seconds, for as long as it is asked."""
        yield self._states if self._version else self.read()
        away: float | None = None
        while True:
            try:
                for kind, one in self._cluster.watch(PATH, self._version, LOOK_S):
                    self._take(kind, state(one))
                    yield self._states
                away = None
            except ClusterError as error:
                away = self._bear(error, away)
            yield self._states

    def _bear(self, error: ClusterError, away: float | None) -> float | None:
        """Go on after an error of the watch where that makes sense; since when the server is away."""
        if error.status == _GONE:
            self._version = ""
        elif error.status and error.status < _SERVERS_FAULT:
            raise error
        now = time.monotonic()
        try:
            self.read()
        except ClusterError as again:
            if away is not None and now - away >= AWAY_S:
                raise again from error
            time.sleep(1)
            return now if away is None else away
        return None

    def versions(self) -> dict[str, str]:
        """Of each NodeBridge, as it was seen last."""
        return {node: one.version for node, one in self._states.items()}

    def _take(self, kind: str, one: State) -> None:
        self._version = one.version
        known = self._states.get(one.node)
        if known is not None and _number(known) > _number(one):
            return  # of the time before it was read by name
        if kind == "DELETED":
            self._states.pop(one.node, None)
        else:
            self._states[one.node] = one


def _number(one: State) -> int:
    """Resource versions of one kind are numbers that grow."""
    return int(one.version) if one.version.isdecimal() else 0


def until(bridges: Bridges, met: Callable[[Mapping[str, State]], bool]) -> None:
    """Follow until `met` says so."""
    for states in bridges.follow():
        if met(states):
            return
