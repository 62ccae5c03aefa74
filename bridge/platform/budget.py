"""A budget of requests: so many a second, and a few more at once. What is over it waits its turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

RATE = 50.0
BURST = 100.0
"""What a kubelet itself may ask the API server for by default (kubeAPIQPS, kubeAPIBurst)."""

SPREAD_S = 1.0
"""Within so many seconds a daemon that starts asks for the first time; see `spread`."""


class Budget:
    """A token bucket. Single event loop; turns are taken in the order of asking.

    Args:
        rate: requests a second.
        burst: requests at once after a rest.
        clock: seconds that never go back.

    Attributes:
        taken: requests let through.
        waited: how many of them had to wait.
    """

    def __init__(
        self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.taken = self.waited = 0
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    async def take(self) -> None:
        """Return when one more request may be made."""
        wait_s = self.claim()
        if wait_s:
            await asyncio.sleep(wait_s)

    def claim(self) -> float:
        """Use up one request; seconds to wait before making it."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left -= 1
        self.taken += 1
        if self._left >= 0:
            return 0.0
        self.waited += 1
        return -self._left / self._rate


async def spread() -> None:
    """Wait for a random moment: restarts of a whole fleet must not ask at once."""
    await asyncio.sleep(random.uniform(0, SPREAD_S))  # noqa: S311  not a secret
