"""Booking: what only waits for a claim's deallocation is asked about, and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bridge.ledger.holds import ClaimHolder, Phase, Refused
from bridge.planes.deallocation import Deallocations

_LEAVING = (Phase.RELEASING, Phase.RESERVED)

PAUSES_S = (0.1, 0.2, 0.4, 0.8)
"""Between looks at a claim that is only still to be deallocated. A pod that the device plugin refuses has failed for
good, and the kubelet gives away at once what a pod with a claim for its own resource name has just left."""


async def book(
    act: Callable[[], Awaitable[object]], deallocations: Deallocations, *, patient: bool = False
) -> None:
    """Book by `act`, once more if another claim that is not prepared stood in the way and has let go.

    Scheduler or kubelet gave the device away because they know already: here and now we ask. `patient`: ask again for
    a second or two, as long as nothing but a claim that was unprepared stands in the way. Raises what `act` does.
    """
    pauses = iter(PAUSES_S if patient else ())
    first = True
    while True:
        try:
            await act()
            return
        except Refused as refused:
            leaving = {h.holder for h in refused.blockers if h.phase in _LEAVING}
            if not leaving:
                raise
            if not first:
                pause = next(pauses, None)
                if pause is None or any(h.phase is not Phase.RELEASING for h in refused.blockers):
                    raise
                await asyncio.sleep(pause)
        first = False
        for other in leaving:
            assert isinstance(other, ClaimHolder), "only claims are reserved or released"
            await deallocations.check_now(other.uid)
