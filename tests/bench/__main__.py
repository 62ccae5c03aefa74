"""`python -m tests.bench`: measure, print, write `bench.json`; 1 if a limit is not met."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tests.bench import allocate, hotplug, pods, prepare, start, withdrawal
from tests.bench.figures import Figure, table, write
from tests.bench.prepare import GROUP
from tests.bench.scale import DEVICES, FULL, QUICK, Scale
from tests.bench.stage import REPOSITORY, Stage
from tests.cluster import Cluster

PARTS: Mapping[str, Callable[[Stage, Scale], Awaitable[list[Figure]]]] = {
    "start": start.measure,
    "prepare": prepare.measure,
    "allocate": allocate.measure,
    "hotplug": hotplug.measure,
    "withdrawal": withdrawal.measure,
    "pods": pods.measure,
    "many": start.measure_many,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    options = _parser().parse_args(arguments)
    scale = QUICK if options.quick else FULL
    with Cluster() as cluster:
        stage = Stage(cluster)
        for i in range(DEVICES):
            stage.plug(f"{GROUP}-{i}")
        # They act on every claim that is written, and would only compete for the processors.
        for name in ("kube-scheduler", "kube-controller-manager"):
            cluster.stop_component(name)
        with cluster.in_network():
            figures = asyncio.run(_measure(stage, scale, options.only))
    print(table(figures))
    write(figures, options.output)
    return 0 if all(figure.ok for figure in figures) else 1


async def _measure(stage: Stage, scale: Scale, parts: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    for part in parts:
        started = time.monotonic()
        figures += await PARTS[part](stage, scale)
        print(f"{part}: measured in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", type=_parts, default=list(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a little of everything; the figures mean little"
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "bench.json")
    return parser


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - PARTS.keys():
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(sorted(unknown))}")
    return parts


if __name__ == "__main__":
    sys.exit(main())
