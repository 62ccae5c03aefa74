"""What `/healthz` and `/readyz` say: conditions by name, and whether the event loop still turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

BEAT_S = 5.0
STALLED_S = 30.0
"""An event loop that has not turned for so long is broken: a Prepare must be answered within it (H40)."""


class Checks:
    """Conditions, each a function that gives what is wrong, or nothing. Read from another thread."""

    def __init__(self) -> None:
        self._ready: dict[str, Callable[[], str]] = {"start": lambda: "the daemon is starting"}
        self._last_beat = time.monotonic()
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Have something called when the node has become ready or not, or not for another reason; within a beat."""
        self._listeners.append(changed)

    def add(self, name: str, condition: Callable[[], str]) -> None:
        """One more condition of readiness."""
        self._ready[name] = condition

    def remove(self, name: str) -> None:
        """A condition no more."""
        self._ready.pop(name, None)

    def started(self) -> None:
        """Start-up is over: from now on the conditions alone count."""
        self._ready.pop("start", None)

    async def beat(self) -> None:
        """Show that the loop turns, and look at the conditions, which tell nobody when they change; until cancelled."""
        last: list[str] = []
        while True:
            self._last_beat = time.monotonic()
            wrong = self.ready()
            if wrong != last:
                last = wrong
                for changed in self._listeners:
                    changed()
            await asyncio.sleep(BEAT_S)

    def health(self) -> list[str]:
        """What is so wrong that a restart would help."""
        silent = time.monotonic() - self._last_beat
        return [f"the event loop has not turned for {silent:.0f} s"] if silent > STALLED_S else []

    def ready(self) -> list[str]:
        """What keeps the node from serving."""
        found = [(name, condition()) for name, condition in list(self._ready.items())]
        return self.health() + [f"{name}: {wrong}" for name, wrong in found if wrong]
