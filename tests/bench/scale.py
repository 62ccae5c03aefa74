"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

DEVICES = 256
REPLICAS = 4
"""Shares of each device, so that 1000 claims fit."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers of one run.

    Attributes:
        held: numbers of claims held while Prepare is measured.
        calls: measured calls of Prepare at each of them, and of Allocate.
        calls_of_64: calls of 64 claims at each of them.
        plugs: devices plugged.
        starts: starts of the daemon.
        idle_s: seconds over which idle CPU is taken; a whole period of the slow rescan.
        many: devices of the big node.
        pods: whole pods on each plane.
    """

    held: tuple[int, ...] = (64, 256, 1000)
    calls: int = 1000
    calls_of_64: int = 10
    plugs: int = 120
    starts: int = 7
    idle_s: float = 60.0
    many: int = 10_000
    pods: int = 5

    def warm_up(self) -> Self:
        """A little of it, for caches and pools."""
        return replace(self, calls=60, calls_of_64=1)


FULL = Scale()
QUICK = Scale((64, 128), 100, 2, 10, 2, 5.0, 1000, 1)
"""Shows that the bench works; its figures mean little."""
