"""How far each group is between two modes: what the ledger keeps of it, so that a switch outlives the daemon.

Values only; which one follows which is decided by `bridge.planes.modes`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bridge.config import Mode


class Gate(enum.StrEnum):
    """How one plane of a group stands to what is free.

    OPENING is offered and not yet confirmed by kubelet or API server; CLOSING is withdrawn and not yet confirmed;
    WAITING is the device plugin's alone: the kubelet was told, the Node does not yet say so.
    """

    OPEN = "open"
    OPENING = "opening"
    CLOSING = "closing"
    WAITING = "waiting"
    CLOSED = "closed"

    @property
    def offers(self) -> bool:
        """Whether what is free is offered."""
        return self in (Gate.OPEN, Gate.OPENING)


@dataclass(frozen=True, slots=True)
class Switch:
    """One group's way from a mode to another; with both the same it has arrived.

    Attributes:
        group: its name.
        mode: the last one that it was wholly in.
        target: the one that it goes to.
        device_plugin, dra: how far the planes are.
        since: wall clock, when it came to stand so; for people only.
    """

    group: str
    mode: Mode
    target: Mode
    device_plugin: Gate
    dra: Gate
    since: float
