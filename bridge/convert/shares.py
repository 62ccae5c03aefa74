"""Who of a pod's containers has which of its devices, as the kubelet gives them out. Pure.

Devices of one resource stand in a row. Containers of `containers` and sidecars each have a stretch of their own; an
init container that ends leaves its devices to those after it (kubelet-contract A.4), so its stretch may overlap theirs.
The row is then exactly as long as what the scheduler counts, and is cut wherever a stretch begins or ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise

from bridge.convert.values import Path


class Role(Enum):
    """How long a container has its devices."""

    INIT = auto()
    SIDECAR = auto()
    MAIN = auto()


@dataclass(frozen=True, slots=True)
class Asker:
    """A container that asks for devices of one resource.

    Attributes:
        container: its path in the pod spec.
        amount: how many, above 0.
    """

    container: Path
    role: Role
    amount: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Devices that the same containers have."""

    amount: int
    containers: frozenset[Path]


def pieces(askers: Sequence[Asker]) -> tuple[Piece, ...]:
    """The row of devices, cut into pieces; askers in the order of the pod, init containers first."""
    stretches: list[tuple[int, int, Path]] = []
    kept = 0
    for asker in askers:
        stretches.append((kept, kept + asker.amount, asker.container))
        if asker.role is not Role.INIT:
            kept += asker.amount
    cuts = sorted({edge for begin, end, _ in stretches for edge in (begin, end)})
    return tuple(
        Piece(
            end - begin, frozenset(path for first, last, path in stretches if first <= begin and end <= last)
        )
        for begin, end in pairwise(cuts)
    )


def amounts(row: Sequence[Piece]) -> Mapping[frozenset[Path], int]:
    """How many devices each set of containers has in common: equal for two rows that give the same."""
    found: dict[frozenset[Path], int] = {}
    for piece in row:
        found[piece.containers] = found.get(piece.containers, 0) + piece.amount
    return found
