"""Defects planted into a daemon, to see that a campaign finds them: the proof that the proof can fail.

Applied in the daemon's own process before it begins; all else is as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

DOUBLE_USE, LOST_DEVICE, STUCK_POD = "double-use", "lost-device", "stuck-pod"
HIDDEN = "crypto-acc1"


def plant(name: str) -> None:
    """Plant one. Raises KeyError for an unknown one, AttributeError where the daemon has changed beyond it."""
    PLANTS[name]()


def _double_use() -> None:
    """What the ledger refuses is handed out all the same."""
    from bridge.ledger.holds import Refused
    from bridge.ledger.ledger import Ledger

    def heedless(honest: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **more: Any) -> Any:
            try:
                return await honest(*args, **more)
            except Refused:
                return ()

        return call

    _replace(Ledger, "grant", heedless(Ledger.grant))
    _replace(Ledger, "reserve", heedless(Ledger.reserve))
    _replace(Ledger, "prepare", heedless(Ledger.prepare))


def _lost_device() -> None:
    """One device is never in a slice."""
    from bridge.planes import projection

    honest = projection._offers

    def hiding(*args: Any) -> Any:
        hidden = any(getattr(arg, "name", "") == HIDDEN for arg in args)
        return () if hidden else honest(*args)

    _replace(projection, "_offers", hiding)


def _stuck_pod() -> None:
    """Of some claims, and always of the same, Prepare never comes back."""
    from bridge.planes.dra import DraPlane
    from dra_v1.claims import Claim

    honest = DraPlane.prepare

    async def hanging(self: DraPlane, claims: Sequence[Claim]) -> Any:
        if any("1" in claim.ref.name.partition("-")[0] for claim in claims):
            await asyncio.Event().wait()
        return await honest(self, claims)

    _replace(DraPlane, "prepare", hanging)


def _replace(owner: object, name: str, new: object) -> None:
    """Put something in the place of what must be there."""
    getattr(owner, name)
    setattr(owner, name, new)


PLANTS: dict[str, Callable[[], None]] = {
    DOUBLE_USE: _double_use,
    LOST_DEVICE: _lost_device,
    STUCK_POD: _stuck_pod,
}
