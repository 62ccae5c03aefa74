"""What a campaign has done and found, in numbers that add up over workers, and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.campaign.checker import DOUBLE_USE, LOST, STUCK
from tests.campaign.plan import CRASH


@dataclass(slots=True)
class Counts:
    """Operations by kind and plane.

    Attributes:
        operations: (kind, plane) to number; kind is Allocate, Prepare, Unprepare or pod end, and of no plane `fault`.
        contended: how many Allocates and Prepares asked for a device that the other plane wanted too.
        refusals: by kind of call.
        faults: by sort; each is an operation.
        pods: by plane, as they were made.
    """

    operations: Counter[str] = field(default_factory=Counter)
    contended: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    pods: Counter[str] = field(default_factory=Counter)

    def operation(self, kind: str, plane: str, *, contended: bool = False) -> None:
        """Count one."""
        self.operations[f"{kind}/{plane}"] += 1
        self.contended += contended

    def refused(self, kind: str) -> None:
        """Count a refusal of an operation that is counted already."""
        self.refusals[kind] += 1

    def fault(self, sort: str) -> None:
        """Count one."""
        self.faults[sort] += 1

    @property
    def total(self) -> int:
        """All operations."""
        return self.operations.total() + self.faults.total()

    @property
    def crashes(self) -> int:
        """How often the daemon was killed."""
        return self.faults[CRASH]

    def on(self, plane: str) -> int:
        """Operations of one plane."""
        return sum(n for kind, n in self.operations.items() if kind.endswith(f"/{plane}"))

    def add(self, other: Counts) -> None:
        """Add another's."""
        self.operations += other.operations
        self.contended += other.contended
        self.refusals += other.refusals
        self.faults += other.faults
        self.pods += other.pods

    def dump(self) -> dict[str, object]:
        """As JSON."""
        return {
            "operations": dict(self.operations),
            "contended": self.contended,
            "refusals": dict(self.refusals),
            "faults": dict(self.faults),
            "pods": dict(self.pods),
        }

    @classmethod
    def load(cls, raw: dict[str, dict[str, int] | int]) -> Counts:
        """Read what `dump` wrote."""
        made = cls()
        for name, value in raw.items():
            setattr(made, name, Counter(value) if isinstance(value, dict) else value)
        return made


def summary(where: str, seeds: int, counts: Counts, findings: Counter[str], seconds: float) -> str:
    """The last line of a campaign. `findings`: number by what was found."""
    total = max(counts.total, 1)
    kinds = ", ".join(f"{n} {kind.replace('/', ' on ')}" for kind, n in counts.operations.most_common())
    faults = ", ".join(f"{n} {sort}" for sort, n in counts.faults.most_common())
    return (
        f"campaign on the {where} node: {counts.total} operations over {seeds} seeds"
        f" ({kinds}, {counts.faults.total()} faults;"
        f" {100 * counts.on('device-plugin') / total:.0f} % device-plugin, {100 * counts.on('dra') / total:.0f} % dra,"
        f" {100 * counts.contended / total:.1f} % contended;"
        f" refused {counts.refusals['Allocate']} Allocates and {counts.refusals['Prepare']} Prepares),"
        f" {counts.pods.total()} pods, {counts.crashes} crashes, {len(counts.faults)} sorts of faults ({faults});"
        f" {findings[DOUBLE_USE]} double uses, {findings[LOST]} lost, {findings[STUCK]} stuck; {seconds:.0f} s"
    )
