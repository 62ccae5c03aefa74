"""The DRA device health services, v1 and v1alpha1, over one driver's reports (kubelet-contract B.3).

The driver is asked once and every stream gets what it said last, so that no stream takes news from another. While
the driver is silent about why, nothing is claimed: streams end, and the kubelet shows Unknown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import grpc

from dra_v1 import points
from dra_v1.api import health_v1_pb2 as v1
from dra_v1.api import health_v1_pb2_grpc as v1_grpc
from dra_v1.api import health_v1alpha1_pb2 as v1alpha1
from dra_v1.api import health_v1alpha1_pb2_grpc as v1alpha1_grpc
from dra_v1.backoff import Backoff
from dra_v1.driver import DeviceHealth, ReportsHealth

log = logging.getLogger(__name__)

KUBELET_TIMEOUT_S: Final = 30
"""After so long without news of a device the kubelet shows it as Unknown, unless the device says otherwise."""

_PER_TIMEOUT = 3  # sent so often within it: two may be late before anybody sees a wrong Unknown
_MESSAGE_LIMIT = 1024


class HealthService:
    """Asks the driver and feeds the streams.

    Args:
        driver: reports complete lists.
        driver_name: for the log.
        backoff: how long to wait before the driver is asked again after its report ended.
    """

    def __init__(self, driver: ReportsHealth, driver_name: str, *, backoff: Backoff | None = None) -> None:
        self._driver = driver
        self._driver_name = driver_name
        self._backoff = backoff or Backoff(first_s=1.0)
        self._latest: tuple[DeviceHealth, ...] | None = None
        self._lost = ""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to ask the driver."""
        if self._task is None:
            self._task = asyncio.create_task(self._consume(), name=f"health of {self._driver_name}")

    async def stop(self) -> None:
        """Stop asking. Streams end with their server."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def lists(self) -> AsyncGenerator[tuple[DeviceHealth, ...], None]:
        """Complete lists: at once, on each change, and again in time; ends when the driver's report ends."""
        while not self._lost:
            changed, latest = self._changed, self._latest
            if latest is not None:
                yield latest
            try:
                async with asyncio.timeout(_resend_s(latest or ())):
                    await changed.wait()
            except TimeoutError:
                continue

    @property
    def lost(self) -> str:
        """Why there is no report now; empty while there is one, or may be soon."""
        return self._lost

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve both versions."""
        v1_grpc.add_DRAResourceHealthServicer_to_server(_V1(self), server)
        v1alpha1_grpc.add_DRAResourceHealthServicer_to_server(_V1Alpha1(self), server)

    async def _consume(self) -> None:
        while True:
            try:
                async for devices in self._driver.health():
                    self._backoff.reset()
                    self._set(tuple(devices), "")
                why = "the driver's health report ended"
            except Exception as error:  # noqa: BLE001  the driver's code is its author's
                why = f"the driver's health report failed: {type(error).__name__}: {error}"
            wait_s = self._backoff.next()
            log.error("no health report", extra={"driver": self._driver_name, "error": why, "wait_s": wait_s})
            self._set(None, why)
            await asyncio.sleep(wait_s)
            self._set(None, "")

    def _set(self, latest: tuple[DeviceHealth, ...] | None, lost: str) -> None:
        self._latest, self._lost = latest, lost
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _V1(v1_grpc.DRAResourceHealthServicer):
    def __init__(self, service: HealthService) -> None:
        self._service = service

    async def NodeWatchResources(
        self,
        request: v1.NodeWatchResourcesRequest,
        context: grpc.aio.ServicerContext[v1.NodeWatchResourcesRequest, v1.NodeWatchResourcesResponse],
    ) -> AsyncGenerator[v1.NodeWatchResourcesResponse, None]:
        async for devices in self._service.lists():
            points.reached(points.Point.HEALTH_SENDING_V1)
            yield _response(devices)
            points.reached(points.Point.HEALTH_SENT_V1)
        await context.abort(grpc.StatusCode.UNAVAILABLE, self._service.lost)


class _V1Alpha1(v1alpha1_grpc.DRAResourceHealthServicer):
    def __init__(self, service: HealthService) -> None:
        self._service = service

    async def NodeWatchResources(
        self,
        request: v1alpha1.NodeWatchResourcesRequest,
        context: grpc.aio.ServicerContext[
            v1alpha1.NodeWatchResourcesRequest, v1alpha1.NodeWatchResourcesResponse
        ],
    ) -> AsyncGenerator[v1alpha1.NodeWatchResourcesResponse, None]:
        async for devices in self._service.lists():
            points.reached(points.Point.HEALTH_SENDING_V1ALPHA1)
            # The same bytes: only the package differs.
            yield v1alpha1.NodeWatchResourcesResponse.FromString(_response(devices).SerializeToString())
            points.reached(points.Point.HEALTH_SENT_V1ALPHA1)
        await context.abort(grpc.StatusCode.UNAVAILABLE, self._service.lost)


def _response(devices: Sequence[DeviceHealth]) -> v1.NodeWatchResourcesResponse:
    now = time.time()
    return v1.NodeWatchResourcesResponse(
        devices=[
            v1.DeviceHealth(
                device=v1.DeviceIdentifier(pool_name=device.pool, device_name=device.device),
                health=v1.HealthStatus.Value(device.status.name),
                last_updated_time=int(now if device.updated is None else device.updated),
                health_check_timeout_seconds=device.timeout_s,
                message=_cut(device.message),
            )
            for device in devices
        ]
    )


def _cut(message: str) -> str:
    return message if len(message) <= _MESSAGE_LIMIT else f"{message[: _MESSAGE_LIMIT - 3]}..."


def _resend_s(devices: Sequence[DeviceHealth]) -> float:
    shortest = min(
        (device.timeout_s for device in devices if device.timeout_s > 0), default=KUBELET_TIMEOUT_S
    )
    return max(1.0, min(shortest, KUBELET_TIMEOUT_S) / _PER_TIMEOUT)
