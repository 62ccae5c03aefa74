"""Devices that DRA holds and another claim was allocated: the scheduler takes them for free, and is wrong.

That is so while a claim is deallocated, or deleted, whose pod the kubelet has not ended yet (H9): the scheduler would
send claim after claim to the same device, which S3 refuses, while others are free. So it is withdrawn from the slices
until that hold ends. Forgotten by a restart: the next claim that is refused tells it anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.ledger.holds import Hold, Plane
from bridge.ledger.ledger import Ledger
from bridge.platform.pulse import Pulse


class Contest:
    """One group's. Single event loop.

    Args:
        group: its name.
        ledger: where holds end.
        changed: rung when more is contested; the ledger's own changes ring it too.
    """

    def __init__(self, group: str, ledger: Ledger, changed: Pulse) -> None:
        self._group = group
        self._ledger = ledger
        self._changed = changed
        self._holds: frozenset[int] = frozenset()

    @property
    def holds(self) -> frozenset[int]:
        """Numbers of the holds for which another claim was refused, as far as they go on."""
        account = self._ledger.account
        if any(account.get(hold_id) is None for hold_id in self._holds):
            self._holds = frozenset(i for i in self._holds if account.get(i) is not None)
        return self._holds

    def refused(self, uid: str, blockers: Iterable[Hold]) -> None:
        """A claim was refused for these holds; its own are no contest."""
        others = {
            hold.id
            for hold in blockers
            if hold.plane is Plane.DRA and hold.group == self._group and hold.holder.uid != uid
        }
        if not others <= self._holds:
            self._holds |= others
            self._changed.ring()
