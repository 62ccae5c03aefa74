"""NodePrepareResources at several numbers of held claims; memory and idle CPU with the most of them held."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from dra_v1.api import dra_v1_pb2 as pb
from dra_v1.api import dra_v1_pb2_grpc as pb_grpc
from tests.bench.claims import BenchClaim, Claims
from tests.bench.figures import Figure, percentile
from tests.bench.floor import Floor, floor
from tests.bench.scale import DEVICES, REPLICAS, Scale
from tests.bench.stage import LIMIT_S, Daemon, Stage, published

GROUP = "shared"
TOGETHER = 64
_ROUND = 20
"""Measured calls between two clean-ups. Held claims are never fewer than the number they are reported for."""


@dataclass(slots=True)
class Samples:
    """Milliseconds of one level."""

    target: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)


class Bench:
    """The kubelet's part and the scheduler's: who prepares, unprepares, allocates and deallocates."""

    def __init__(
        self, stub: pb_grpc.DRAPluginAsyncStub, daemon: Daemon, claims: Claims, stage: Stage
    ) -> None:
        self._stub = stub
        self._daemon = daemon
        self._claims = claims
        self._stage = stage
        self._held: deque[BenchClaim] = deque()
        self._released = 0

    async def hold(self, count: int) -> list[float]:
        """Hold exactly so many claims, prepared by calls of 64; milliseconds of each full call."""
        took: list[float] = []
        while (missing := count - len(self._held)) > 0:
            batch = await self._claims.allocate(min(missing, TOGETHER))
            took += [await self.prepare(batch)] if len(batch) == TOGETHER else []
            if len(batch) < TOGETHER:
                await self.prepare(batch)
        if missing < 0:
            await self.release(-missing)
        return took

    def any_held(self) -> BenchClaim:
        """One of the claims that are held."""
        return self._held[0]

    async def prepare(self, claims: Sequence[BenchClaim]) -> float:
        """One call; milliseconds. Raises RuntimeError unless every claim was prepared."""
        request = pb.NodePrepareResourcesRequest(claims=[claim.wire for claim in claims])
        started = time.perf_counter()
        response = await self._stub.NodePrepareResources(request)
        took = (time.perf_counter() - started) * 1000
        for claim in claims:
            answer = response.claims[claim.uid]
            if answer.error or not answer.devices:
                raise RuntimeError(f"claim {claim.name} was not prepared: {answer.error or 'no devices'}")
        self._held.extend(claims)
        return took

    async def release(self, count: int) -> None:
        """Unprepare the claims held longest, deallocate them, and wait until the daemon has let them go."""
        gone = [self._held.popleft() for _ in range(count)]
        await self._claims.deallocate(gone)
        request = pb.NodeUnprepareResourcesRequest(claims=[claim.wire for claim in gone])
        response = await self._stub.NodeUnprepareResources(request)
        if errors := [answer.error for answer in response.claims.values() if answer.error]:
            raise RuntimeError(f"unprepare failed: {errors[0]}")
        self._released += count
        await self._stage.until(self._all_released, "the daemon to release claims")

    def _all_released(self) -> bool:
        self._released -= sum(line["message"] == "released" for line in self._daemon.log_lines())
        return self._released == 0

    async def level(self, held: int, scale: Scale, beside: Floor) -> Samples:
        """Measure at so many held claims."""
        samples = Samples()
        for _ in range(scale.calls_of_64):
            await self.hold(held - TOGETHER)
            samples.together += await self.hold(held)
        while len(samples.target) < scale.calls:
            for claim in await self._claims.allocate(_ROUND):
                samples.floor.append(await beside.with_get(claim.path))
                samples.target.append(await self.prepare([claim]))
            await self.hold(held)
        return samples


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """All of it."""
    config = stage.configure(GROUP, REPLICAS)
    most = max(scale.held)
    async with stage.running(config, DEVICES) as daemon, stage.admin() as api, floor(stage) as beside:
        names = [name for names in (await published(api, daemon.driver)).values() for name in names]
        claims = Claims(api, daemon.driver, stage.cluster.node_name, names, REPLICAS)
        await claims.create(most + _ROUND)
        async with grpc.aio.insecure_channel(f"unix:{daemon.dra_socket}") as channel:
            bench = Bench(pb_grpc.DRAPluginStub(channel), daemon, claims, stage)
            await bench.level(scale.held[0], scale.warm_up(), beside)
            levels = {held: await bench.level(held, scale, beside) for held in scale.held}
            await bench.hold(most)
            figures = _prepare_figures(levels)
            figures.append(_memory(daemon, most))
            figures += await _idle(daemon, scale, most)
            held = bench.any_held()
        figures += await _restart(stage, config, daemon, held, scale, most)
    return figures


async def _restart(
    stage: Stage, config: Path, daemon: Daemon, held: BenchClaim, scale: Scale, count: int
) -> list[Figure]:
    """Start again with everything held: until a held claim is answered for, until both planes are registered."""
    answered: list[float] = []
    registered: list[float] = []
    for _ in range(scale.starts):
        await asyncio.to_thread(daemon.stop)
        started = time.perf_counter()
        daemon = stage.start(config, again=True)
        await _first_answer(daemon, held)
        answered.append(time.perf_counter() - started)
        await stage.until(daemon.ready, "the kubelet to register both planes", 0.01)
        registered.append(time.perf_counter() - started)
    await asyncio.to_thread(daemon.stop)
    name = f"restart with {count} holds"
    return [
        Figure(f"{name} to the first answer, p50", percentile(answered, 50), "s", 2.0),
        Figure(f"{name} to the first answer, worst", max(answered), "s", 2.0),
        Figure(f"{name} to both planes registered, p50", percentile(registered, 50), "s", 2.0),
    ]


async def _first_answer(daemon: Daemon, claim: BenchClaim) -> None:
    """Ask for a claim that is held, as a kubelet does that has just found the socket, until it is answered."""
    request = pb.NodePrepareResourcesRequest(claims=[claim.wire])
    backoff = (
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.min_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 20),
    )
    async with grpc.aio.insecure_channel(f"unix:{daemon.dra_socket}", options=backoff) as channel:
        stub: pb_grpc.DRAPluginAsyncStub = pb_grpc.DRAPluginStub(channel)
        response = await stub.NodePrepareResources(request, wait_for_ready=True, timeout=LIMIT_S)
    if not response.claims[claim.uid].devices:
        raise RuntimeError(f"a held claim was not answered for: {response.claims[claim.uid].error}")


def _prepare_figures(levels: dict[int, Samples]) -> list[Figure]:
    figures: list[Figure] = []
    for held, samples in levels.items():
        for percent, limit in ((50, 2.0), (99, 3.0)):
            value, bottom = percentile(samples.target, percent), percentile(samples.floor, percent)
            figures.append(Figure(f"Prepare, {held} claims held, p{percent}", value, "ms", limit, bottom))
    first, last = (percentile(levels[held].target, 50) for held in (min(levels), max(levels)))
    figures.append(
        Figure(f"Prepare p50, {max(levels)} held beside {min(levels)} held", last, "ms", 1.3, first)
    )
    for held, samples in levels.items():
        name = f"Prepare of {TOGETHER} claims in one call, {held} held after it"
        figures.append(Figure(f"{name}, p50", percentile(samples.together, 50), "ms", 150))
        figures.append(Figure(f"{name}, p90", percentile(samples.together, 90), "ms", 150))
    return figures


def _memory(daemon: Daemon, held: int) -> Figure:
    return Figure(f"resident memory, {DEVICES} devices, {held} claims", daemon.resident_mib(), "MiB", 64)


async def _idle(daemon: Daemon, scale: Scale, held: int) -> list[Figure]:
    await asyncio.sleep(
        3
    )  # what the last change started has to be over; there is no event for "nothing more"
    asked = _asked(daemon)
    before, started = daemon.cpu_s(), time.monotonic()
    await asyncio.sleep(scale.idle_s)
    share = (daemon.cpu_s() - before) / (time.monotonic() - started)
    return [
        Figure(f"idle CPU, {DEVICES} devices, {held} claims", share * 100, "%", 0.3),
        Figure("requests at rest, besides watches", _asked(daemon) - asked, "", 0),
    ]


def _asked(daemon: Daemon) -> float:
    return sum(count for what, count in daemon.requests().items() if not what.startswith("watch "))
