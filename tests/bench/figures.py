"""What a run measured: percentiles, the table, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result.

    Attributes:
        name: what was measured.
        value: in `unit`.
        unit: ms, s, MiB or %.
        limit: the most that `ratio` may be where there is a floor, else the most that `value` may be.
        floor: the same statistic of the floor, in `unit`.
    """

    name: str
    value: float
    unit: str
    limit: float
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many floors it is."""
        return self.value / self.floor if self.floor else None

    @property
    def ok(self) -> bool:
        """Whether it is within its limit."""
        return (self.value if self.ratio is None else self.ratio) <= self.limit

    def row(self) -> dict[str, object]:
        """As `bench.json` has it."""
        order = ("name", "value", "unit", "floor", "ratio", "limit", "ok")
        facts = {**asdict(self), "ratio": self.ratio, "ok": self.ok}
        return {key: round(v, 4) if isinstance(v := facts[key], float) else v for key in order}


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent of all are not above (nearest rank)."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def table(figures: Sequence[Figure]) -> str:
    """For people."""
    head = ("", "value", "unit", "floor", "ratio", "limit", "")
    rows = [head, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 2, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cells(figure: Figure) -> tuple[str, ...]:
    bound = f"{figure.limit:g} x" if figure.ratio is not None else f"{figure.limit:g} {figure.unit}"
    return (
        figure.name,
        f"{figure.value:.2f}",
        figure.unit,
        "" if figure.floor is None else f"{figure.floor:.2f}",
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        bound,
        "ok" if figure.ok else "TOO MUCH",
    )


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the JSON."""
    path.write_text(json.dumps([figure.row() for figure in figures], indent=1) + "\n")
