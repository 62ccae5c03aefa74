"""`kubectl_complete-bridge`: what kubectl asks for completions of `kubectl bridge …`.

kubectl passes the words behind `bridge`, the last of them unfinished, and reads one candidate a line, then a directive.
"""

from __future__ import annotations

import os
import shlex
import sys

NO_FILES = ":4"
"""The directive: no file names where there is no candidate (cobra's ShellCompDirectiveNoFileComp)."""


def main() -> None:
    """Answer kubectl."""
    from bridge.cli import app

    words = sys.argv[1:] or [""]
    os.environ["COMP_WORDS"] = shlex.join(["bridge", *words])
    os.environ["COMP_CWORD"] = str(len(words))
    os.environ["_BRIDGE_COMPLETE"] = "complete_bash"
    try:
        app(prog_name="bridge", args=[], complete_var="_BRIDGE_COMPLETE")
    finally:
        print(NO_FILES)
