"""What went wrong, as a user reads it: the one catcher of all commands.

A command raises `Problem` where the user can do something about it; the group of commands turns it into a line and
an exit code. Nobody else prints and exits for an error of the cluster.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class Problem(Exception):
    """What was being done, to what, why it failed, and what to do.

    Attributes:
        code: the exit code; 1: it went wrong, 2: what was asked for makes no sense.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Commands(TyperGroup):
    """Commands whose problems are told as text."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except Problem as problem:
            typer.echo(f"bridge: {problem}", err=True)
            raise typer.Exit(problem.code) from None
