"""From the start of `bridge run` to both planes registered and advertised; the same with very many devices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.bench.figures import Figure, percentile
from tests.bench.prepare import GROUP
from tests.bench.scale import DEVICES, REPLICAS, Scale
from tests.bench.stage import Daemon, Stage
from tests.bench.views import views

MANY = "many"


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """Several starts, each with an empty ledger and without slices from before."""
    config = stage.configure(GROUP, REPLICAS)
    await _start(stage, config, DEVICES)  # byte code and page cache: an installed program has them
    took = [await _start(stage, config, DEVICES) for _ in range(scale.starts)]
    name = f"start to both planes registered and advertised, {DEVICES} devices"
    return [
        Figure(f"{name}, p50", percentile(took, 50), "s", 2.0),
        Figure(f"{name}, worst", max(took), "s", 2.0),
    ]


async def measure_many(stage: Stage, scale: Scale) -> list[Figure]:
    """One start with so many devices that nothing may be quadratic."""
    for i in range(scale.many):
        stage.plug(f"{MANY}-{i}")
    took = await _start(stage, stage.configure(MANY), scale.many)
    return [Figure(f"{scale.many} devices discovered, projected, published", took, "s", 10.0)]


async def _start(stage: Stage, config: Path, devices: int) -> float:
    """Seconds from the start of the process."""
    await stage.delete_slices()
    started = time.perf_counter()
    daemon = stage.start(config)
    try:
        async with views(stage, daemon) as seen:
            registered = asyncio.create_task(_registered(stage, daemon))
            shown = await seen.both(lambda names: len(names) >= devices)
            return max(shown, await registered) - started
    finally:
        await asyncio.to_thread(daemon.stop)


async def _registered(stage: Stage, daemon: Daemon) -> float:
    """When the kubelet had taken both planes."""
    await stage.until(daemon.ready, "the kubelet to register both planes", 0.01)
    return time.perf_counter()
