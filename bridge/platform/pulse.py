"""A pulse: news without content, for many listeners, coalesced by those who are busy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

PACE_S = 0.005
"""What pulses within so many seconds is one pulse: a burst must not cost a projection for each hold of it."""

REST = 9
"""A listener rests so many times as long as it has worked: followers together must not take the event loop from
those who wait for an answer."""

LONGEST_REST_S = 0.1


class Listening:
    """One listener's end. What pulses while it is busy is one pulse."""

    def __init__(self, rest_s: float) -> None:
        self._event = asyncio.Event()
        self._rest_s = rest_s
        self._woke = time.monotonic()

    def ring(self) -> None:
        """Wake the listener, now or when it waits next."""
        self._event.set()

    async def wait(self) -> None:
        """Return soon after the next pulse, or after one since the last return."""
        now = time.monotonic()
        rested = max(now + min(REST * (now - self._woke), LONGEST_REST_S), self._woke + self._rest_s)
        await self._event.wait()
        await asyncio.sleep(max(PACE_S, rested - time.monotonic()))
        self._event.clear()
        self._woke = time.monotonic()


class Pulse:
    """Rings all who listen. Single event loop."""

    def __init__(self) -> None:
        self._listeners: set[Listening] = set()

    def ring(self) -> None:
        """Something changed."""
        for listener in self._listeners:
            listener.ring()

    @contextlib.contextmanager
    def listen(self, rest_s: float = 0.0) -> Iterator[Listening]:
        """Listen while the context lasts; at least `rest_s` seconds lie between two pulses that are heard."""
        listener = Listening(rest_s)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
