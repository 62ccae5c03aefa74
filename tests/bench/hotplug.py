"""Hot-plug: from `mknod` to the device on both planes, ListAndWatch sent and slice stored."""

from __future__ import annotations

import asyncio
import random
import time

from tests.bench.figures import Figure, percentile
from tests.bench.prepare import GROUP
from tests.bench.scale import DEVICES, REPLICAS, Scale
from tests.bench.stage import Stage
from tests.bench.views import Names, Views, views

_NAME = f"{GROUP}-plugged"


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """Plug one device beside all others, and unplug it again, so many times."""
    config = stage.configure(GROUP, REPLICAS)
    async with stage.running(config, DEVICES) as daemon, views(stage, daemon) as seen:
        await seen.both(lambda names: len(names) >= DEVICES)
        took = [await _plug(stage, seen) for _ in range(scale.plugs)]
    name = "hot-plug, mknod to both planes advertised"
    return [
        Figure(f"{name}, p50", percentile(took, 50), "ms", 150),
        Figure(f"{name}, p99", percentile(took, 99), "ms", 500),
    ]


async def _plug(stage: Stage, seen: Views) -> float:
    started = time.perf_counter()
    stage.plug(_NAME)
    shown = await seen.both(_shows)
    stage.unplug(_NAME)
    await seen.both(lambda names: not _shows(names))
    await asyncio.sleep(random.uniform(0.02, 0.06))  # not in step with any pause of the daemon's own
    return (shown - started) * 1000


def _shows(names: Names) -> bool:
    """By its name, or by that of a share; the name ends with a hash that only the daemon knows."""
    return any(_NAME in name for name in names)
