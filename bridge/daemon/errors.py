"""What keeps the daemon from starting."""

from __future__ import annotations


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""
