"""Whether a command of a page makes sense, without running it: programs, subcommands, options and targets.

`bridge` is parsed by its own command line; options and arguments that it does not know are errors. Of the other
programs only those may be named that are known here.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from bridge.cli import app
from tests.docs.pages import REPOSITORY

OTHERS = {"kubectl", "python", "podman", "rm", "."}
"""`kubectl` is run on the real node, or its options are looked up there."""

_USAGE: Any = typer.BadParameter.__base__
"""The error of whatever parses typer's command lines."""

_TARGET = re.compile(r"^([a-z0-9-]+):", re.M)


def calls(command: str) -> Iterator[list[str]]:
    """The programs that a line runs, each with its arguments; what is in `$(…)` for itself, redirections left out."""
    for inner in re.findall(r"\$\(([^)]*)\)", command):
        yield from calls(inner)
    plain = re.sub(r"\$\([^)]*\)", "$VALUE", command)
    words = shlex.split(plain)
    while words:
        at = words.index("|") if "|" in words else len(words)
        call, words = words[:at], words[at + 1 :]
        if ">" in call:
            call = call[: call.index(">")]
        if call and not re.fullmatch(r"\w+=.*", call[0]):
            yield call


def problem(command: str) -> str:
    """What is wrong with a line; empty if nothing is. `kubectl exec … -- bridge …` is looked into."""
    for call in calls(command):
        found = _of(call)
        if found:
            return f"{shlex.join(call)}: {found}"
    return ""


def _of(call: list[str]) -> str:
    match call:
        case ["bridge", *arguments]:
            return _bridge(arguments)
        case ["make", *targets]:
            known = set(_TARGET.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8")))
            unknown = [word for word in targets if "=" not in word and word not in known]
            return f"no such target: {unknown}" if unknown else ""
        case ["kubectl", *arguments] if "--" in arguments:
            inside = arguments[arguments.index("--") + 1 :]
            return _bridge(inside[1:]) if inside[0] == "bridge" else ""
        case ["python", script, *_]:
            return "" if (REPOSITORY / script).is_file() else "no such script"
        case [program, *_] if program in OTHERS:
            return ""
        case _:
            return "a program that the checks do not know"


def _bridge(arguments: list[str]) -> str:
    command: Any = typer.main.get_command(app)
    context, name, rest = None, "bridge", list(arguments)
    try:
        while True:
            context = command.make_context(name, list(rest), parent=context)
            if not hasattr(command, "resolve_command"):
                return ""
            name, command, rest = command.resolve_command(context, rest)
    except typer.Exit:
        return ""  # --help
    except _USAGE as error:
        return str(error)
