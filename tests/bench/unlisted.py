"""The daemon as it is, but that it does not look for orphans: the claims measured here have no pods, so the kubelet
lists none of them, and each would be asked for as one that it has lost (H21). On a node at rest there is no such claim.

`python -m tests.bench.unlisted run …` is `bridge run …` with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

PROGRAM = "bridge.daemon"


def _command() -> None:
    from bridge import cli

    become = os.execve

    def other(path: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        become(path, [__spec__.name if part == PROGRAM else part for part in argv], env)

    os.execve = other  # type: ignore[assignment]
    cli.main()


def _daemon() -> None:
    from bridge.daemon import orphans

    orphans.LOOK_S = 24 * 3600.0
    import bridge.daemon.__main__  # noqa: F401  it is the program


if __name__ == "__main__":
    _command() if sys.argv[1] == "run" else _daemon()
