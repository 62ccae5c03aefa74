"""What went wrong, and what a command takes, as a user reads it: what all commands have in common.

A command raises `Problem` where the user can do something about it; the group of commands turns it into a line and
an exit code. Nobody else prints and exits for an error of the cluster. The library's own words for types, `<bool>` or
`<list[str]>`, and for errors, `Value error, …`, are those of a programmer: here they become those of a user.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
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


_LIST = re.compile(r"list\[(.*)\]")
_WORDS = {"bool": "", "str": "TEXT", "path": "PATH", "Path": "PATH", "int": "NUMBER", "float": "NUMBER"}
_LIBRARY = "Value error, "


def word(shown: str) -> str:
    """What a parameter takes, from the name of its type: `TEXT`; nothing for a switch, choices as they are."""
    plain = shown.removeprefix("<").removesuffix(">")
    plain = _LIST.sub(r"\1", plain)
    return _WORDS.get(plain, plain)


class Commands(TyperGroup):
    """Commands whose problems, and whose parameters, are told as text."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as wrong:
            wrong.message = wrong.message.removeprefix(_LIBRARY)
            raise
        except Problem as problem:
            typer.echo(f"bridge: {problem}", err=True)
            raise typer.Exit(problem.code) from None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of the commands, which tells of its parameters in words."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is not None:
            _say(command, ctx)
        return command

    def get_params(self, ctx: Any) -> Any:
        """The options of all commands together."""
        params: Any = super().get_params(ctx)
        for param in params:
            _name(param)
        return params


def _say(command: Any, ctx: Any) -> None:
    for param in command.get_params(ctx):
        _name(param)


def _name(param: Any) -> None:
    """Have a parameter say what it takes; once."""
    shown: Callable[[Any], str] | None = getattr(param, "display_type", None)
    if shown is None or isinstance(shown, functools.partial):
        return  # an earlier release of the library, which has words of its own; or done
    param.display_type = functools.partial(_shown, shown)
    if param.param_type_name == "argument":
        param.metavar = param.metavar or param.name.upper()
        name = f"{param.metavar}..." if param.nargs != 1 else param.metavar
        param.get_usage_pieces = lambda ctx: [name if param.required else f"[{name}]"]


def _shown(shown: Callable[[Any], str], ctx: Any) -> str:
    return word(shown(ctx))
