"""Device health as the kubelet follows it: one NodeWatchResources stream per driver (kubelet-contract B.3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from bridge.sandbox.kubelet.context import Context, rpc_text
from bridge.sandbox.tasks import spawn
from dra_v1.api import health_v1_pb2 as v1
from dra_v1.api import health_v1alpha1_pb2 as v1alpha1
from dra_v1.api import health_v1alpha1_pb2_grpc as v1alpha1_grpc
from dra_v1.api.health_v1_pb2_grpc import DRAResourceHealthStub

if TYPE_CHECKING:
    from dra_v1.api.health_v1_pb2_grpc import DRAResourceHealthAsyncStub


DEFAULT_TIMEOUT = 30.0
MESSAGE_LIMIT = 1024
SERVICES = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")

_WORDS = {0: "Unknown", 1: "Healthy", 2: "Unhealthy"}


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """Health of one device, valid until `until` (monotonic)."""

    word: str
    message: str
    until: float


class HealthWatch:
    """The health of all drivers' devices.

    Attributes:
        on_change: called with a driver's name when what its stream says has changed.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._health: dict[str, dict[tuple[str, str], DeviceHealth]] = {}
        self.on_change: Callable[[str], None] = lambda driver: None

    def of(self, driver: str, pool: str, device: str) -> DeviceHealth | None:
        """Return a device's health, None where its driver says nothing; `Unknown` once it is out of date."""
        found = self._health.get(driver, {}).get((pool, device))
        if found is not None and found.until < time.monotonic():
            return DeviceHealth("Unknown", found.message, found.until)
        return found

    def follow(
        self, driver: str, channel: grpc.aio.Channel, versions: Sequence[str]
    ) -> asyncio.Task[None] | None:
        """Follow a driver's stream for ever, if it advertises one and this release looks at it."""
        service = next((v for v in versions if v in SERVICES), None)
        if service is None or not self._context.profile.has("ResourceHealthStatus"):
            return None
        return spawn(self._context.observe, f"health of {driver}", self._follow(driver, channel, service))

    async def _follow(self, driver: str, channel: grpc.aio.Channel, service: str) -> None:
        while True:
            try:
                if service == SERVICES[0]:
                    stub: DRAResourceHealthAsyncStub = DRAResourceHealthStub(channel)
                    async for answer in stub.NodeWatchResources(v1.NodeWatchResourcesRequest()):
                        self._take(driver, answer.devices)
                else:
                    old: v1alpha1_grpc.DRAResourceHealthAsyncStub = v1alpha1_grpc.DRAResourceHealthStub(
                        channel
                    )
                    async for older in old.NodeWatchResources(v1alpha1.NodeWatchResourcesRequest()):
                        same = v1.NodeWatchResourcesResponse.FromString(older.SerializeToString())
                        self._take(driver, same.devices)
                why = "the driver ended the stream"
            except grpc.aio.AioRpcError as error:
                why = rpc_text(error)
            self._health.pop(driver, None)
            self._context.tell("HealthStreamEnded", driver, why=why)
            self.on_change(driver)
            await asyncio.sleep(self._context.timings.health_reconnect)

    def _take(self, driver: str, devices: Iterable[v1.DeviceHealth]) -> None:
        now = time.monotonic()
        taken: dict[tuple[str, str], DeviceHealth] = {}
        for device in devices:
            timeout = device.health_check_timeout_seconds or DEFAULT_TIMEOUT
            text = device.message
            if len(text) > MESSAGE_LIMIT:
                text = text[: MESSAGE_LIMIT - 3] + "..."
            key = (device.device.pool_name, device.device.device_name)
            taken[key] = DeviceHealth(_WORDS.get(device.health, "Unknown"), text, now + timeout)
        before = {key: (health.word, health.message) for key, health in self._health.get(driver, {}).items()}
        self._health[driver] = taken
        if before != {key: (health.word, health.message) for key, health in taken.items()}:
            unhealthy = sorted(name for (_, name), health in taken.items() if health.word == "Unhealthy")
            self._context.tell("HealthListed", driver, devices=len(taken), unhealthy=unhealthy)
            self.on_change(driver)
