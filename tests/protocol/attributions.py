"""When the daemon in this process has learned which pod has a device. Import `known` to have it as a fixture."""

from __future__ import annotations

import asyncio

import pytest

from bridge.ledger.holds import PodHolder
from bridge.ledger.ledger import Ledger


class Attributions:
    """Tells when the daemon has recorded a pod as holder."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._more = asyncio.Event()

    def note(self, pod: PodHolder) -> None:
        self.seen.add(pod.name if pod.uid else "")
        self._more.set()

    async def wait(self, pod: str) -> None:
        """Wait until the ledger has a pod as holder, UID and all."""
        async with asyncio.timeout(10):
            while pod not in self.seen:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Attributions:
    """Attributions; the daemon looks at its sources without pausing."""
    for pause in ("SOON_S", "UNDECIDED_S", "SETTLED_S"):
        monkeypatch.setattr(f"bridge.ledger.reconcile.{pause}", 0.005)
    attributions, attribute = Attributions(), Ledger.attribute

    async def noted(ledger: Ledger, hold_id: int, pod: PodHolder) -> None:
        await attribute(ledger, hold_id, pod)
        attributions.note(pod)

    monkeypatch.setattr(Ledger, "attribute", noted)
    return attributions
