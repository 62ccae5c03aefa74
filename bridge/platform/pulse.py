"""A pulse: news without content, for many listeners, coalesced by those who are busy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

PACE_S = 0.005
"""What pulses within so many seconds is one pulse: a burst must not cost a projection for each hold of it."""


class Listening:
    """One listener's end. What pulses while it is busy is one pulse."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake the listener, now or when it waits next."""
        self._event.set()

    async def wait(self) -> None:
        """Return soon after the next pulse, or after one since the last return."""
        await self._event.wait()
        await asyncio.sleep(PACE_S)
        self._event.clear()


class Pulse:
    """Rings all who listen. Single event loop."""

    def __init__(self) -> None:
        self._listeners: set[Listening] = set()

    def ring(self) -> None:
        """Something changed."""
        for listener in self._listeners:
            listener.ring()

    @contextlib.contextmanager
    def listen(self) -> Iterator[Listening]:
        """Listen while the context lasts."""
        listener = Listening()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
