"""What a history does, step by step: made from a seed alone, kept as JSON, replayed and cut down.

Times are milliseconds. A plan says nothing of what will come of its steps; whoever executes one passes over those
that no longer make sense (a pod that has ended already), so that any part of a plan is a plan.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

Args = dict[str, int | str | bool]


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        what: `pod`, `shared`, `delete`, `lull`, `wait`, `calm`, or a sort of fault.
        args: what it needs to know.
        rest: how long to wait before the next one.
    """

    what: str
    args: Args = field(default_factory=dict)
    rest: int = 0

    def __str__(self) -> str:
        args = " ".join(f"{key}={value}" for key, value in self.args.items())
        return f"{self.what} {args} rest={self.rest}".replace("  ", " ")


@dataclass(frozen=True, slots=True)
class Scene:
    """The node that a history is played on.

    Attributes:
        seed: of the choices that the simulated kubelet and scheduler leave to chance.
        devices: how many accelerators it has.
        profile: the Kubernetes release.
        binding: the group's setting: whether the scheduler waits for the bridge's reservation.
    """

    seed: int
    devices: int
    profile: str
    binding: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A node and what happens on it."""

    scene: Scene
    steps: tuple[Step, ...]

    def dump(self) -> str:
        """As JSON, a step a line."""
        steps = ",\n".join(json.dumps(asdict(step)) for step in self.steps)
        return f'{{"scene": {json.dumps(asdict(self.scene))}, "steps": [\n{steps}\n]}}\n'

    @staticmethod
    def load(path: Path) -> Plan:
        """Read what `dump` wrote."""
        raw = json.loads(path.read_text())
        return Plan(Scene(**raw["scene"]), tuple(Step(**step) for step in raw["steps"]))


CRASH = "daemon killed"

WEIGHT_OF_CRASHES = 260.0
"""The weight of `CRASH` that makes all operations crashes, as far as small shares tell; measured."""

BETWEEN_CALMS = 150
"""Steps between two calms."""

FAULTS: dict[str, float] = {
    CRASH: 3.0,
    "daemon told to end": 0.4,
    "daemon stopped for a while": 0.4,
    "kubelet restarted": 0.5,
    "kubelet away": 0.3,
    "kubelet checkpoint damaged": 0.4,
    "kubelet checkpoint lost": 0.4,
    "ledger damaged": 0.12,
    "ledger lost": 0.15,
    "socket deleted": 0.5,
    "device unplugged": 0.8,
    "API server unavailable": 0.4,
    "API server unreachable": 0.2,
    "API server forbids": 0.4,
    "API server slow": 0.4,
    "watches dropped": 0.5,
    "watch history forgotten": 0.2,
    "scheduler stale": 18.0,
    "clock stepped": 0.6,
    "disk full": 0.4,
    "runtime silent": 0.3,
    "slices deleted": 0.3,
}
"""Sorts of faults of the node and the cluster, with the weight of each."""

OF_PODS: dict[str, float] = {"deleted by force": 4.0, "container killed": 3.0, "claim made anew": 2.0}
"""Faults that happen to a pod."""


NEED_THE_RUNTIME = frozenset({"deleted by force", "kubelet checkpoint damaged", "kubelet checkpoint lost"})
WITHOUT_RUNTIME = frozenset({"runtime silent"})
"""No seed has faults of both: what the kubelet has forgotten and still runs is seen by the runtime alone."""


NOT_ON_1_32 = frozenset({"claim made anew"})
"""That kubelet knows claims by name alone: it gives the new claim's pod what was prepared for the old claim, and asks
no driver (H6; newer ones compare UIDs)."""


def sorts() -> frozenset[str]:
    """All sorts of faults."""
    return frozenset(FAULTS) | frozenset(OF_PODS)


class Maker:
    """Makes the steps of one seed, without end."""

    def __init__(
        self, seed: int, without: frozenset[str] = frozenset(), crashes: float | None = None
    ) -> None:
        self._random = choice = random.Random(seed)
        self.scene = Scene(
            seed,
            choice.choice((4, 6, 8, 8, 12)),
            choice.choice(("1.37", "1.37", "1.37", "1.34", "1.32")),
            choice.choice(("auto", "off", "off")),
        )
        without |= choice.choice((NEED_THE_RUNTIME, WITHOUT_RUNTIME))
        if self.scene.profile == "1.32":
            without |= NOT_ON_1_32
        weights: dict[str, float] = {"pod": 100.0, "shared": 4.0, "delete": 12.0}
        weights |= {sort: weight for sort, weight in (FAULTS | OF_PODS).items() if sort not in without}
        if crashes is not None and CRASH in weights:
            weights[CRASH] = crashes * WEIGHT_OF_CRASHES
        self._whats, self._weights = list(weights), list(weights.values())
        self._made = 0
        self._recent: list[str] = []

    def steps(self) -> Iterator[Step]:
        """Steps, a calm among them at times."""
        while True:
            for _ in range(BETWEEN_CALMS):
                (what,) = self._random.choices(self._whats, self._weights)
                yield from self._make(what)
            yield Step("calm")

    def _make(self, what: str) -> Iterator[Step]:
        make: dict[str, Callable[[], Iterator[Step]]] = {
            "pod": self._pod,
            "shared": self._shared,
            "claim made anew": self._again,
            "scheduler stale": self._stale,
            CRASH: self._killed,
        }
        if what in make:
            yield from make[what]()
        elif what in ("delete", *OF_PODS):
            if self._recent:
                yield Step(what, {"pod": self._random.choice(self._recent)}, self._short())
        else:
            args: Args = {
                "for": self._random.choice((30, 100, 300, 800)),
                "pick": self._random.randrange(1000),
            }
            yield Step(what, args, self._short())

    def _short(self) -> int:
        return self._random.choice((0, 0, 0, 5, 20, 40))

    def _name(self, prefix: str) -> str:
        self._made += 1
        name = f"{prefix}{self._made}"
        self._recent = [*self._recent[-11:], name]
        return name

    def _pod(self, plane: str = "") -> Iterator[Step]:
        choice = self._random
        plane = plane or choice.choices(("device-plugin", "dra"), (70, 30))[0]
        args: Args = {
            "name": self._name("p" if plane == "device-plugin" else "c"),
            "plane": plane,
            "count": choice.choices((1, 2, 3), (80, 15, 5))[0],
            "run": choice.choices((0, 20, 60, 150, 400, 1500), (20, 30, 25, 15, 8, 2))[0],
            "stop": choice.choices((0, 30, 200, 700), (70, 15, 10, 5))[0],
            "fails": choice.random() < 0.1,
            "init": choice.random() < 0.1,
        }
        yield Step("pod", args, self._short())

    def _shared(self) -> Iterator[Step]:
        args: Args = {
            "name": self._name("s"),
            "pods": self._random.choice((2, 3)),
            "run": self._random.choice((20, 100, 400)),
            "apart": self._random.choice((0, 0, 50, 150)),
        }
        yield Step("shared", args, self._short())

    def _again(self) -> Iterator[Step]:
        """A claim of a fixed name, its pod deleted by force, and the claim made anew for another pod."""
        run = self._random.choice((100, 400))
        stop = self._random.choice((0, 100, 500))
        yield Step("claim made anew", {"name": self._name("a"), "run": run, "stop": stop}, self._short())

    def _stale(self) -> Iterator[Step]:
        """Duels: slow news, and pods of both planes that each want more than half of the devices, at once."""
        yield Step("lull")
        slow = ("API server slow", "API server slow", "API server slow", "daemon stopped for a while", "")
        if delay := self._random.choice(slow):
            yield Step(delay, {"for": self._random.choice((300, 500)), "pick": 3}, 0)
        yield Step("scheduler stale", {"for": self._random.choice((300, 500))}, 0)
        most = self.scene.devices // 2 + 1
        for _ in range(self._random.choice((2, 3, 4))):
            for plane in self._random.sample(("device-plugin", "dra"), 2):
                count = self._random.choice((most, most, most + 1))
                run = self._random.choice((0, 20, 60))
                for step in self._pod(plane):
                    yield Step(step.what, {**step.args, "count": count, "run": run, "init": False}, 0)
            yield Step("wait", rest=self._random.choice((20, 60, 100)))

    def _killed(self) -> Iterator[Step]:
        """Killed some time from now, and maybe again while it starts, and started again after a while."""
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            args: Args = {
                "after": self._random.choice((0, 1, 2, 3, 5, 8, 13, 20, 35, 60)),
                "down": self._random.choice((0, 0, 0, 20, 100)),
            }
            yield Step("daemon killed", args, self._random.choice((0, 5, 20, 40, 80)))
