"""What keeps the daemon from starting, and what ends it."""

from __future__ import annotations


class StartError(Exception):
    """The daemon cannot start; the text says why and what to do."""


class Broken(Exception):
    """A part of the daemon ended that must not end; the text says which and why."""
