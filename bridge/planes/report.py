"""What the planes report: one call for each hand-out and refusal, fanned out to log and metrics by the daemon.

A protocol; the planes know neither Prometheus nor log formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bridge.ledger.holds import Plane


class Report(Protocol):
    """Where the planes tell what they did."""

    def handed_out(
        self, plane: Plane, group: str, devices: Sequence[str], holder: str, seconds: float
    ) -> None:
        """Devices were handed out, durably; `seconds` from the call to the answer."""
        ...

    def refused(self, plane: Plane, group: str, devices: Sequence[str], holder: str, why: str) -> None:
        """A request was refused, with the text that the caller got."""
        ...

    def ended(self, plane: Plane, group: str, devices: Sequence[str], holder: str, why: str) -> None:
        """Holds ended; the devices are free again."""
        ...
