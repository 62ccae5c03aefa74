"""How long to wait before the next try: growing, jittered, bounded, and reset by success."""

from __future__ import annotations

import tenacity


class Backoff:
    """Waiting times for a loop that never gives up.

    Args:
        first_s: upper bound of the first wait, in seconds; it doubles with each failure.
        max_s: upper bound of all waits.
        floor_s: lower bound of all waits.
    """

    def __init__(self, first_s: float = 0.2, max_s: float = 30.0, floor_s: float = 0.02) -> None:
        self._wait = tenacity.wait_random_exponential(multiplier=first_s, max=max_s, min=floor_s)
        self._state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        wait = self._wait(self._state)
        self._state.attempt_number += 1
        return wait

    def reset(self) -> None:
        """A success: the next failure waits shortly again."""
        self._state.attempt_number = 1
