"""Cuts a plan that fails down to a short one that fails too: first its end alone, then piece by piece.

A history is no pure function of its plan, so a part counts as innocent only after it went well `TRIES` times.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from tests.campaign.plan import Step

TRIES = 2

Fails = Callable[[Sequence[Step]], Awaitable[bool]]


async def shrink(steps: Sequence[Step], fails: Fails, seconds: float) -> tuple[Step, ...]:
    """Return the shortest failing part that was found in the time given; `steps` themselves if none was."""
    until = time.monotonic() + seconds

    async def guilty(part: Sequence[Step]) -> bool:
        for _ in range(TRIES):
            if time.monotonic() > until:
                return False
            if part and await fails(part):
                return True
        return False

    found = await _end_of(tuple(steps), guilty)
    pieces = 2
    while len(found) > 1 and time.monotonic() < until:
        size = -(-len(found) // pieces)
        for start in range(0, len(found), size):
            left = found[:start] + found[start + size :]
            if await guilty(left):
                found, pieces = left, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(pieces * 2, len(found))
    return found


async def _end_of(steps: tuple[Step, ...], guilty: Fails) -> tuple[Step, ...]:
    """The shortest of some ends that fails: what goes wrong has its cause, as a rule, shortly before."""
    length = 8
    while length < len(steps):
        if await guilty(steps[-length:]):
            return steps[-length:]
        length *= 3
    return steps
