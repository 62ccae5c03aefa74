"""Ends each node's daemon with `kill -9` in the middle of each switch: when its ledger says that it is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bridge.ledger.store import LedgerError
from bridge.ledger.switches import Switch
from bridge.planes.modes import is_settled
from tests.cluster import Member
from tests.journey.fleet import Fleet

LOOK_S = 0.002


class Killer:
    """Waits at each node for one switch.

    Attributes:
        struck: what the ledger of each node said when its daemon was killed.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.struck: dict[str, Switch] = {}
        self.problems: list[BaseException] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Strike once at each node during a `with` block; in the end each has been struck."""
        over = threading.Event()
        nodes = self._fleet.cluster.nodes
        threads = [threading.Thread(target=self._run, args=(node, over)) for node in nodes]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not self.problems, self.problems
        assert set(self.struck) == {node.name for node in nodes}, (
            "a switch was over before it could be caught"
        )

    def _run(self, node: Member, over: threading.Event) -> None:
        try:
            self._wait(node, over)
        except BaseException as error:  # noqa: BLE001 - told by who waits for the thread
            self.problems.append(error)

    def _wait(self, node: Member, over: threading.Event) -> None:
        while not over.wait(LOOK_S):
            try:
                switch = self._fleet.gates(node)
            except LedgerError:
                continue  # between two writes it may be unreadable from outside
            if switch is not None and not is_settled(switch):
                self._fleet.kill(node)
                self.struck[node.name] = switch
                return
