"""What keeps the daemon's pauses short, apart from loading little. Every node of a cluster pays for it."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def freeze() -> None:
    """Keep what start-up made out of later collections: walking it stops the event loop for milliseconds."""
    gc.collect()
    gc.freeze()
    trim()


def trim() -> None:
    """Give the kernel the pages that nobody uses any more: glibc does it by itself only at the end of its heap."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
