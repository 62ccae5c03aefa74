"""Who won each race, and what became of the other: from the containers' opens and the API server's audit log. Pure."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.campaign.checker import DOUBLE_USE, Bounds, check
from tests.campaign.journal import DEVICE_PLUGIN, DRA, ENDED, Claim, Line, Open, Pod, merged
from tests.e2e.stage import Group

SHARE = 0.1
"""Each plane wins so much of the races, else it was none."""

_NAMES_HOLDER = re.compile(r"held by|reserved for")


@dataclass(slots=True)
class Race:
    """One race.

    Attributes:
        number: of all.
        group, spare: the device that both want, and those that the claim takes instead.
        slow: for how many seconds the API server did not answer when it began.
        begun: when both planes could act on it.
        pods: UIDs of the pods that stood for each plane, one after the other.
        freed: when the winner was told to end; None if the loser came to run before.
    """

    number: int
    group: Group
    spare: Group
    slow: float
    begun: float = 0.0
    pods: dict[str, list[str]] = field(default_factory=lambda: {DEVICE_PLUGIN: [], DRA: []})
    freed: float | None = None

    @property
    def path(self) -> str:
        """The device."""
        return self.group.path(0)


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it was first seen: when, about whom (a UID), and what it said."""

    t: float
    about: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a race; times in seconds.

    Attributes:
        winner: the plane that had the device; empty if nobody had.
        collided: whether the cluster had given the device to both.
        told: from the race's begin to the first word to the loser of who has the device; None if there was none.
        word: what kind of word that was.
        placed: from the race's begin to a pod's being bound with a spare device.
        elsewhere: from the race's begin to the loser's running on a spare device.
        after: from the winner's being told to end to the loser's running on the same device.
    """

    winner: str
    collided: bool
    told: float | None = None
    word: str = ""
    placed: float | None = None
    elsewhere: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """What is printed, and what is wrong with it; nothing is what is wanted."""

    text: str
    wrong: tuple[str, ...]


def report(arm: str, races: Sequence[Race], lines: Iterable[Line], told: Sequence[Told]) -> Table:
    """Judge all races of an arm."""
    ordered = merged(lines)
    never = Bounds(offered=1e9, runs=1e9, ends=1e9)
    wrong = [str(finding) for finding in check(ordered, never) if finding.what == DOUBLE_USE]
    story = _Story(ordered, told)
    results = [story.result(race) for race in races]
    collided = [r for r in results if r.collided]
    wins = Counter(r.winner for r in collided)
    rows = [
        f"{len(races)} races, arm {arm}; the API server stood still for {_slow(races)}",
        f"the cluster gave the device to both in {len(collided)}; of these won by "
        f"{wins[DEVICE_PLUGIN]} device-plugin, {wins[DRA]} dra; nobody had it in {wins['']}",
        f"the other saw it in time in {sum(not r.collided for r in results)}",
    ]
    for loser, winner in ((DRA, DEVICE_PLUGIN), (DEVICE_PLUGIN, DRA)):
        rows += _row(loser, [r for r in collided if r.winner == winner])
    stuck = [race.number for race, r in zip(races, results, strict=True) if _is_stuck(arm, r)]
    rows.append(f"stuck: {len(stuck)}; double uses: {len(wrong)}")
    if stuck:
        wrong.append(f"stuck in races {stuck}")
    if arm != "binding" and min(wins[DEVICE_PLUGIN], wins[DRA]) < SHARE * len(races):
        wrong.append(f"it was no race: each plane must win {SHARE:.0%} of them, and did {dict(wins)}")
    return Table("\n".join([*rows, *(f"FOUND {text}" for text in wrong)]), tuple(wrong))


def _is_stuck(arm: str, result: Result) -> bool:
    """A loser that never ran; where the cluster can help, a claim's pod also if it had to wait for the winner."""
    if not result.winner:
        return True
    if result.winner == DEVICE_PLUGIN and result.collided and arm != "neither":
        return result.elsewhere is None
    return result.elsewhere is None and result.after is None


def _row(loser: str, results: Sequence[Result]) -> list[str]:
    if not results:
        return [f"{loser} lost: never"]
    words = Counter(r.word or "nothing" for r in results)
    found = [f"{loser} lost {len(results)}: told by {dict(words)}"]
    for what, values in (
        ("  told after", [r.told for r in results if r.told is not None]),
        ("  bound with a spare device after", [r.placed for r in results if r.placed is not None]),
        ("  ran elsewhere after", [r.elsewhere for r in results if r.elsewhere is not None]),
        (
            "  ran on the same device, from the winner's being told to end",
            [r.after for r in results if r.after],
        ),
    ):
        if values:
            found.append(f"{what} {_spread(values)}")
    return found


class _Story:
    """What happened to each pod and claim."""

    def __init__(self, lines: Iterable[Line], told: Sequence[Told]) -> None:
        self._told = sorted(told, key=lambda one: one.t)
        self._pods: dict[str, list[Pod]] = {}
        self._claims: dict[tuple[str, str], list[Claim]] = {}
        self._opens: dict[str, Open] = {}
        for line in lines:
            if isinstance(line, Pod):
                self._pods.setdefault(line.uid, []).append(line)
            elif isinstance(line, Claim):
                self._claims.setdefault((line.namespace, line.name), []).append(line)
            elif isinstance(line, Open):
                self._opens.setdefault(line.pod, line)

    def result(self, race: Race) -> Result:
        firsts = [
            (o.t, plane) for plane in race.pods for o in self._had(race, plane) if o.device == race.path
        ]
        allocated = self._allocated(race)
        bound = self._bound(race.pods[DEVICE_PLUGIN][0])
        if not firsts:
            return Result("", allocated is not None and bound is not None)
        won, winner = min(firsts)
        loser = DRA if winner == DEVICE_PLUGIN else DEVICE_PLUGIN
        freed = race.freed if race.freed is not None else float("inf")
        collided = allocated is not None and bound is not None and max(allocated, bound) < freed
        told, word = self._word(race, loser)
        had = self._had(race, loser)  # elsewhere perhaps before the winner's container has begun
        elsewhere = next((o.t - race.begun for o in had if o.device != race.path), None)
        after = next((o.t - freed for o in had if o.device == race.path and o.t > won), None)
        placed = self._placed(race) - race.begun if loser == DRA and elsewhere is not None else None
        return Result(winner, collided, told, word, placed, elsewhere, after)

    def _had(self, race: Race, plane: str) -> list[Open]:
        return [self._opens[uid] for uid in race.pods[plane] if uid in self._opens]

    def _bound(self, uid: str) -> float | None:
        return next((line.t for line in self._pods.get(uid, ()) if line.node), None)

    def _allocated(self, race: Race) -> float | None:
        """When a claim of the race was first allocated the device itself."""
        return min(
            (t for t, driver, _ in self._allocations(race) if driver == race.group.driver), default=None
        )

    def _placed(self, race: Race) -> float:
        """When a pod was bound whose claim is allocated a spare device."""
        spare = [(t, uid) for t, driver, uid in self._allocations(race) if driver == race.spare.driver]
        return min(max(t, self._bound(uid) or t) for t, uid in spare)

    def _allocations(self, race: Race) -> Iterator[tuple[float, str, str]]:
        """Each time that a claim of the race was seen allocated: when, of which driver, for which pod."""
        for uid in race.pods[DRA]:
            namespace = self._pods[uid][0].namespace
            for name in {name for pod in self._pods[uid] for name in pod.claims}:
                for claim in self._claims.get((namespace, name), ()):
                    for driver, _, _ in claim.devices:
                        yield claim.t, driver, uid

    def _word(self, race: Race, loser: str) -> tuple[float | None, str]:
        """The first event about the loser, or its claim, that says who has the device; else its end at admission."""
        about = set(race.pods[loser])
        about |= {
            claim.uid
            for uid in race.pods[loser]
            for pod in self._pods.get(uid, ())
            for name in pod.claims
            for claim in self._claims.get((pod.namespace, name), ())
        }
        for one in self._told:
            if one.about in about and _NAMES_HOLDER.search(one.text):
                return one.t - race.begun, one.reason
        failed = next(
            (line.t for line in self._pods.get(race.pods[loser][0], ()) if line.phase in ENDED), None
        )
        return (None, "") if failed is None else (failed - race.begun, "its status, without the holder")


def _slow(races: Sequence[Race]) -> str:
    slow = [race.slow for race in races]
    return f"{min(slow):.2f} to {max(slow):.2f} s"


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    p90 = ordered[int(len(ordered) * 0.9)] if len(ordered) > 1 else ordered[0]
    return f"p50 {statistics.median(ordered):.2f} s, p90 {p90:.2f} s, most {ordered[-1]:.2f} s"
