"""The budget of requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.platform.budget import Budget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_waits_for_nothing_and_what_is_over_it_for_its_turn() -> None:
    clock = Clock()
    budget = Budget(10, 3, clock)
    assert [budget.claim() for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    assert (budget.taken, budget.waited) == (5, 2)
    clock.now = 100.0
    assert [budget.claim() for _ in range(4)] == [0, 0, 0, 0.1], "a rest gives a burst, and no more"


@given(st.lists(st.floats(0, 2), max_size=200))
def test_never_more_than_the_burst_and_the_rate_allow(pauses: list[float]) -> None:
    clock = Clock()
    budget = Budget(5, 4, clock)
    made: list[float] = []
    for pause in pauses:
        clock.now += pause
        made.append(clock.now + budget.claim())
    for first, begin in enumerate(made):
        for last in range(first, len(made)):
            assert last - first + 1 <= 4 + 5 * (made[last] - begin) + 1e-6
