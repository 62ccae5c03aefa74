"""Booking for claims: what only waits for another claim's deallocation is asked about once, and tried again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from bridge.ledger.holds import ClaimHolder, Phase, Refused
from bridge.planes.deallocation import Deallocations

_LEAVING = (Phase.RELEASING, Phase.RESERVED)


async def book(act: Callable[[], Awaitable[None]], deallocations: Deallocations) -> None:
    """Book by `act`, once more if another claim that is not prepared stood in the way and has let go.

    The scheduler gave the device away because it knows already: here and now we ask. Raises what `act` does.
    """
    try:
        await act()
    except Refused as refused:
        leaving = {h.holder for h in refused.blockers if h.phase in _LEAVING}
        if not leaving:
            raise
        for other in leaving:
            assert isinstance(other, ClaimHolder), "only claims are reserved or released"
            await deallocations.check_now(other.uid)
        await act()
