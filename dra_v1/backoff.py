"""How long to wait: before the next try of what failed, and before doing again what others keep undoing."""

from __future__ import annotations

import time

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


class Allowance:
    """Writes that may be made at once, refilled at one in two seconds."""

    def __init__(self) -> None:
        self._used = 0.0
        self._at = time.monotonic()

    def take(self, count: int, capacity: int) -> float:
        """Use up `count`; seconds to wait first."""
        now = time.monotonic()
        self._used = max(0.0, self._used - (now - self._at) / 2) + count
        self._at = now
        return min(30.0, max(0.0, (self._used - capacity) * 2)) if count else 0.0
