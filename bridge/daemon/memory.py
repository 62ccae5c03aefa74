"""What keeps the daemon's pauses short, apart from loading little. Every node of a cluster pays for it."""

from __future__ import annotations

import gc


def freeze() -> None:
    """Keep what start-up made out of later collections: walking it stops the event loop for milliseconds."""
    gc.collect()
    gc.freeze()
