"""Booking: what only waits for a claim's deallocation is asked about, and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bridge.ledger.holds import Phase, Refused
from bridge.planes.deallocation import Deallocations

T = TypeVar("T")

PATIENCE_S = 2.0
"""How long a hand-out that cannot be tried again may wait for a claim that was unprepared. A pod that the device plugin
refuses has failed for good, and the kubelet gives away at once what a pod with a claim for the same resource name has
just left; but it admits no other pod meanwhile."""

PAUSE_S = 0.1
"""Between two questions whether a claim is deallocated."""


async def book(act: Callable[[], Awaitable[T]], deallocations: Deallocations) -> T:
    """Book by `act`, once more if another claim that is not prepared stood in the way and has let go.

    The scheduler gave the device away because it knows already: here and now we ask. Gives and raises what `act` does.
    """
    try:
        return await act()
    except Refused as refused:
        leaving = _claims(refused, Phase.RELEASING, Phase.RESERVED)
        if not leaving:
            raise
        await deallocations.ask(leaving)
        return await act()


async def book_patiently(act: Callable[[], Awaitable[T]], deallocations: Deallocations) -> T:
    """Book by `act`; as long as a claim that was unprepared is among what stands in the way, ask for a while.

    It may be all that is in the way even where others are named: a shared device has many holders.

    Gives and raises what `act` does.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE_S
    while True:
        try:
            return await act()
        except Refused as refused:
            left = end - loop.time()
            leaving = _claims(refused, Phase.RELEASING)
            if left <= 0 or not leaving:
                raise
            if not await deallocations.ask(leaving, within=left):
                await asyncio.sleep(min(PAUSE_S, left))


def _claims(refused: Refused, *phases: Phase) -> frozenset[str]:
    """UIDs of the claims that stand in the way, in one of these phases; only claims are reserved or released."""
    return frozenset(hold.holder.uid for hold in refused.blockers if hold.phase in phases)
