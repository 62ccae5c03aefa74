"""Releases of the device plugin plane over random histories: a missing source never makes one earlier (S4).

The histories are of a pod that really runs until a moment; what the sources show of it follows the rules of the real
ones (kubelet-contract A.8): each may forget the pod early, but for the runtime, which shows it until its containers
end, and the API server, which says that it ended only then, or when somebody deleted it by force.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.ledger.evidence import (
    UNKNOWN_GRACE_S,
    Absent,
    Grace,
    Sighting,
    continued,
    look_at,
    may_release,
)
from bridge.ledger.holds import Hold, Phase, Plane, PodHolder

RES = "device-bridge.io/acc"
KEY = (RES, "acc0")
NAME = ("default", "p")
POD = PodHolder(*NAME, "c", "uid-p")
GRACE = Grace(unmatched=60, confirm=1, degraded=600)

MASKS = {
    "podresources": lambda s: replace(s, listed=None, active=frozenset()),
    "checkpoint": lambda s: replace(s, checkpointed=None),
    "runtime": lambda s: replace(s, live=None),
    "pods": lambda s: replace(s, ended=frozenset(), ended_names=frozenset(), graces={}),
    "a kubelet that is up long enough": lambda s: replace(s, kubelet_stable=False),
    "the device's own word": lambda s: replace(s, used={}),
}


@dataclass(frozen=True)
class World:
    """When, in seconds, each source stops showing a pod; `ends` is when its containers have really ended.

    `deleted`: when the API server lost it; by force if before `ends`. `grace`: of the pod.
    """

    ends: float
    unlisted: float
    unnoted: float
    deleted: float
    grace: float
    grace_known: bool
    uid_known: bool

    def at(self, now: float) -> Sighting:
        running = now < self.ends
        return Sighting(
            now,
            listed={KEY: PodHolder(*NAME, "c")} if now < self.unlisted else {},
            active=frozenset({NAME}) if now < self.unlisted else frozenset(),
            checkpointed={KEY: frozenset({"uid-p"})} if now < self.unnoted else {},
            live={NAME: frozenset({"uid-p"})} if running else {},
            ended=frozenset({"uid-p"}) if now >= self.deleted else frozenset(),
            ended_names=frozenset({NAME}) if now >= self.deleted else frozenset(),
            graces={NAME: self.grace} if self.grace_known else {},
            used={("acc", "acc0"): running},
            kubelet_stable=True,
        )

    def hold(self, phase: Phase) -> Hold:
        pod = POD if self.uid_known else PodHolder(*NAME, "c")
        return Hold(1, Plane.DEVICE_PLUGIN, phase, "acc", "acc0", "acc0", pod, (), 0.0)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A pod's containers end at most its grace period after it was deleted, by force or not. The kubelet may forget
    what it has at any time: its checkpoint was lost (H14)."""
    ends = draw(st.floats(0, 10_000))
    grace = draw(st.one_of(st.sampled_from([30.0, UNKNOWN_GRACE_S]), st.floats(0, UNKNOWN_GRACE_S)))
    known = draw(st.booleans())
    earliest = max(0.0, ends - grace)
    return World(
        ends=ends,
        unlisted=draw(st.floats(0, ends)),
        unnoted=draw(st.one_of(st.just(0.0), st.floats(0, ends + 500))),
        deleted=draw(st.one_of(st.just(earliest), st.floats(earliest, ends + 500))),
        grace=grace,
        grace_known=known,
        uid_known=draw(st.booleans()),
    )


def released(hold: Hold, sightings: Iterable[Sighting], grace: Grace = GRACE) -> float | None:
    """When a hold ends over these sightings; None for never."""
    absence = None
    for sighting in sightings:
        absence = continued(absence, look_at(hold, RES, sighting), sighting.at)
        if may_release(hold, absence, sighting.at, grace):
            return sighting.at
    return None


def looks(steps: list[float]) -> list[float]:
    moments, now = [], 0.0
    for step in steps:
        now += step
        moments.append(now)
    return moments


steps = st.one_of(
    st.lists(st.floats(0.5, 400), min_size=1, max_size=60),
    st.floats(0.5, 400).map(lambda pause: [pause] * 60),
)
BLIND = frozenset({"runtime", "the device's own word"})
"""Nobody sees the containers themselves: the hardest case, and the only one in which something is released."""

masks = st.one_of(st.just(BLIND), st.sets(st.sampled_from(sorted(MASKS))))


@settings(max_examples=400)
@given(worlds(), steps, masks)
def test_no_hold_ends_while_its_containers_run_whatever_sources_are_missing(
    world: World, pauses: list[float], missing: Set[str]
) -> None:
    sightings = []
    for now in looks(pauses):
        sighting = world.at(now)
        for name in missing:
            sighting = MASKS[name](sighting)
        sightings.append(sighting)
    end = released(world.hold(Phase.HELD), sightings)
    assert end is None or end >= world.ends


@settings(max_examples=400)
@given(worlds(), steps, st.lists(masks, min_size=60, max_size=60), st.sampled_from(Phase))
def test_a_missing_source_never_releases_earlier_than_the_whole_set(
    world: World, pauses: list[float], missing: list[Set[str]], phase: Phase
) -> None:
    """Sources come and go from look to look."""
    whole = [world.at(now) for now in looks(pauses)]
    masked = []
    for sighting, names in zip(whole, missing, strict=False):
        for name in names - {"the device's own word"}:
            sighting = MASKS[name](sighting)
        masked.append(sighting)
    hold = world.hold(phase)
    early, late = released(hold, masked), released(hold, whole)
    assert early is None or (late is not None and early >= late)


@given(worlds(), steps, masks, st.data())
def test_a_release_that_may_be_stays_allowed_as_time_goes_on(
    world: World, pauses: list[float], missing: Set[str], data: st.DataObject
) -> None:
    """Monotone in time: more agreeing sightings never take a release back."""
    hold = world.hold(Phase.HELD)
    absence, allowed = None, False
    for now in looks(pauses):
        sighting = world.at(now)
        for name in missing:
            sighting = MASKS[name](sighting)
        seen = look_at(hold, RES, sighting)
        absence = continued(absence, seen, now)
        if allowed and isinstance(seen, Absent):
            assert may_release(hold, absence, now, GRACE)
        allowed = may_release(hold, absence, now, GRACE)
        later = data.draw(st.floats(0, 1e6))
        if allowed:
            assert may_release(hold, absence, now + later, GRACE), "and age alone takes none back"


@given(worlds(), st.floats(0, 15_000), masks)
def test_one_look_releases_nothing(world: World, now: float, missing: Set[str]) -> None:
    sighting = world.at(now)
    for name in missing:
        sighting = MASKS[name](sighting)
    hurried = Grace(unmatched=0, confirm=0, degraded=-UNKNOWN_GRACE_S)
    assert released(world.hold(Phase.HELD), [sighting], hurried) is None, "however short the waits are"


@given(worlds(), steps, masks)
def test_h13_a_kubelet_that_has_only_just_started_releases_nothing(
    world: World, pauses: list[float], missing: Set[str]
) -> None:
    sightings = []
    for now in looks(pauses):
        sighting = replace(world.at(now), kubelet_stable=False)
        for name in missing:
            sighting = MASKS[name](sighting)
        sightings.append(sighting)
    assert released(world.hold(Phase.HELD), sightings) is None


@given(worlds())
def test_a_hold_whose_pod_is_gone_from_everywhere_ends_within_the_confirmation(world: World) -> None:
    """The other side: nothing is lost, and in the whole set nothing waits longer than it must."""
    gone = max(world.ends, world.unlisted, world.unnoted, world.deleted)
    moments = [gone + 1, gone + 1 + 1.001 * GRACE.confirm]
    assert released(world.hold(Phase.HELD), [world.at(now) for now in moments]) == moments[-1]
