"""When a device plugin hold may end (S4): the verdict as a table, and what never may happen as properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ledger.evidence import (
    UNKNOWN_GRACE_S,
    Absence,
    Absent,
    Grace,
    InUse,
    Seen,
    Sighting,
    Trust,
    Unsure,
    continued,
    look_at,
    may_release,
)
from bridge.ledger.holds import Hold, Phase, Plane, PodHolder

RES = "device-bridge.io/acc"
KEY = (RES, "acc0")
POD = PodHolder("default", "p", "c", "uid-p")
HELD = Hold(1, Plane.DEVICE_PLUGIN, Phase.HELD, "acc", "acc0", "acc0", POD, (), 0.0)
GRANTED = replace(HELD, phase=Phase.GRANTED, holder=PodHolder())
ENDED = frozenset({("default", "p")})
NOBODY = Sighting(0.0, listed={}, checkpointed={}, live={}, kubelet_stable=True)
ABSENT = Absent(Trust.WHOLE)


@pytest.mark.parametrize(
    ("what", "hold", "sighting", "seen"),
    [
        ("nobody has it", HELD, NOBODY, ABSENT),
        ("podresources does not answer", HELD, replace(NOBODY, listed=None), Unsure),
        ("the kubelet has just started (H13)", HELD, replace(NOBODY, kubelet_stable=False), Unsure),
        ("the checkpoint cannot be read", HELD, replace(NOBODY, checkpointed=None), Unsure),
        ("podresources lists it", HELD, replace(NOBODY, listed={KEY: POD}), InUse),
        (
            "a listed one counts at once, stable or not",
            HELD,
            replace(NOBODY, listed={KEY: POD}, kubelet_stable=False),
            InUse,
        ),
        (
            "h11: an init container has it: in the checkpoint, not in podresources",
            GRANTED,
            replace(
                NOBODY,
                checkpointed={KEY: frozenset({"uid-i"})},
                live={("default", "i"): frozenset({"uid-i"})},
            ),
            InUse,
        ),
        (
            "h10: a stale checkpoint entry of a pod that is gone from kubelet, runtime and API server",
            HELD,
            replace(NOBODY, checkpointed={KEY: frozenset({"uid-p"})}, ended=frozenset({"uid-p"})),
            ABSENT,
        ),
        (
            "h11: a checkpoint entry of a pod without a sandbox: it waits for its volumes, or is between two",
            HELD,
            replace(NOBODY, checkpointed={KEY: frozenset({"uid-p"})}, active=frozenset({("default", "p")})),
            Unsure,
        ),
        (
            "h11: the same before any pod was matched, and not even listed",
            GRANTED,
            replace(NOBODY, checkpointed={KEY: frozenset({"uid-i"})}),
            Unsure,
        ),
        (
            "one owner of two has ended, the other has not",
            HELD,
            replace(NOBODY, checkpointed={KEY: frozenset({"uid-p", "uid-q"})}, ended=frozenset({"uid-p"})),
            Unsure,
        ),
        (
            "h9: deleted by force, gone from the kubelet's lists, containers still running",
            HELD,
            replace(NOBODY, live={("default", "p"): frozenset({"uid-p"})}),
            InUse,
        ),
        (
            "h9: the same before the UID was learned",
            replace(HELD, holder=PodHolder("default", "p", "c")),
            replace(NOBODY, live={("default", "p"): frozenset({"whatever"})}),
            InUse,
        ),
        (
            "another pod of the same name",
            HELD,
            replace(
                NOBODY,
                live={("default", "p"): frozenset({"uid-later"})},
                active=frozenset({("default", "p")}),
            ),
            ABSENT,
        ),
        (
            "no runtime, and the API server says that the pod has ended: its grace is waited for",
            HELD,
            replace(NOBODY, live=None, ended_names=ENDED, graces={("default", "p"): 45.0}),
            Absent(Trust.NO_RUNTIME, 45.0),
        ),
        (
            "the same, and nobody knows its grace",
            HELD,
            replace(NOBODY, live=None, ended_names=ENDED),
            Absent(Trust.NO_RUNTIME, UNKNOWN_GRACE_S),
        ),
        ("no runtime, and no word of the API server", HELD, replace(NOBODY, live=None), Unsure),
        (
            "no runtime, and the kubelet lists the pod",
            HELD,
            replace(NOBODY, live=None, ended_names=ENDED, active=ENDED),
            Unsure,
        ),
        (
            "no runtime, and no pod was ever matched",
            GRANTED,
            replace(NOBODY, live=None),
            Absent(Trust.NO_RUNTIME),
        ),
        (
            "no runtime, and the checkpoint names it",
            HELD,
            replace(NOBODY, live=None, ended_names=ENDED, checkpointed={KEY: frozenset({"uid-p"})}),
            Unsure,
        ),
        ("the device says that it is in use", HELD, replace(NOBODY, used={("acc", "acc0"): True}), Unsure),
        ("the device says that it is not", HELD, replace(NOBODY, used={("acc", "acc0"): False}), ABSENT),
    ],
)
def test_what_a_sighting_says(what: str, hold: Hold, sighting: Sighting, seen: Seen | type) -> None:
    result = look_at(hold, RES, sighting)
    if isinstance(seen, type):
        assert isinstance(result, seen), what
    else:
        assert result == seen, what


LOST = replace(NOBODY, checkpointed=None, checkpoint_lost=True)
POD_ENDED = frozenset({("default", "p")})


@pytest.mark.parametrize(
    ("what", "hold", "sighting", "seen"),
    [
        ("it is listed", HELD, replace(LOST, listed={KEY: POD}), InUse(POD, "podresources")),
        (
            "its pod runs",
            HELD,
            replace(LOST, live={("default", "p"): frozenset({"uid-p"})}),
            InUse(POD, "runtime"),
        ),
        ("nobody says that its pod ended", HELD, LOST, Unsure),
        ("it ended, by name", HELD, replace(LOST, ended_names=POD_ENDED), Absent(Trust.NO_CHECKPOINT)),
        ("it ended, by UID", HELD, replace(LOST, ended=frozenset({"uid-p"})), Absent(Trust.NO_CHECKPOINT)),
        (
            "it ended, and the runtime is silent",
            HELD,
            replace(LOST, live=None, ended_names=POD_ENDED),
            Unsure,
        ),
        ("the kubelet is young", HELD, replace(LOST, kubelet_stable=False, ended_names=POD_ENDED), Unsure),
        ("whose it is was never known", GRANTED, LOST, Absent(Trust.NO_CHECKPOINT, UNKNOWN_GRACE_S)),
    ],
)
def test_h14_without_the_kubelets_checkpoint(
    what: str, hold: Hold, sighting: Sighting, seen: Seen | type
) -> None:
    result = look_at(hold, RES, sighting)
    assert isinstance(result, seen) if isinstance(seen, type) else result == seen, what


def test_a_use_that_another_hold_of_the_device_explains_keeps_no_hold() -> None:
    sighting = replace(NOBODY, used={("acc", "acc0"): True})
    assert look_at(HELD, RES, sighting, alone=False) == ABSENT


def test_the_uid_is_learned_where_checkpoint_and_runtime_agree() -> None:
    sighting = replace(
        NOBODY,
        listed={KEY: PodHolder("default", "p", "c")},
        checkpointed={KEY: frozenset({"uid-p", "uid-stale"})},
        live={("default", "p"): frozenset({"uid-p"})},
    )
    assert look_at(GRANTED, RES, sighting) == InUse(POD, "podresources")


GRACE = Grace(unmatched=60, confirm=1, degraded=600)


@pytest.mark.parametrize(
    ("hold", "absence", "age", "ends"),
    [
        (HELD, None, 1e6, False),
        (HELD, Absence(10, 10, Trust.WHOLE), 1e6, False),  # one sighting is none
        (HELD, Absence(10, 11, Trust.WHOLE), 11, True),
        (HELD, Absence(10, 609, Trust.NO_RUNTIME), 1e6, False),
        (HELD, Absence(10, 610, Trust.NO_RUNTIME), 1e6, True),
        (HELD, Absence(10, 654, Trust.NO_RUNTIME, 45), 1e6, False),
        (HELD, Absence(10, 655, Trust.NO_RUNTIME, 45), 1e6, True),
        (HELD, Absence(10, 609, Trust.NO_CHECKPOINT), 1e6, False),  # H14
        (HELD, Absence(10, 610, Trust.NO_CHECKPOINT), 1e6, True),
        (GRANTED, Absence(10, 30, Trust.WHOLE), 59, False),  # H12: admission may be under way
        (GRANTED, Absence(10, 30, Trust.WHOLE), 60, True),
    ],
)
def test_when_a_hold_may_end(hold: Hold, absence: Absence | None, age: float, ends: bool) -> None:
    assert may_release(hold, absence, age, GRACE) is ends


sightings = st.one_of(
    st.just(ABSENT),
    st.just(Absent(Trust.NO_RUNTIME)),
    st.just(Unsure("?")),
    st.just(InUse(POD, "podresources")),
)


@given(st.lists(st.tuples(sightings, st.floats(0.1, 100)), min_size=1, max_size=30))
def test_no_hold_ends_within_the_grace_after_it_was_last_seen_or_in_doubt(
    history: list[tuple[Seen, float]],
) -> None:
    now, absence, last_doubt = 0.0, None, 0.0
    for seen, step in history:
        now += step
        absence = continued(absence, seen, now)
        if not isinstance(seen, Absent):
            last_doubt = now
        if may_release(HELD, absence, 1e9, GRACE):
            assert now - last_doubt >= GRACE.confirm
            assert isinstance(seen, Absent)
