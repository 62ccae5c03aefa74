"""Allocate, durable: one ID a call, each handed out for the first time."""

from __future__ import annotations

import time

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as pb
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as pb_grpc
from tests.bench.figures import Figure, percentile
from tests.bench.floor import floor
from tests.bench.prepare import GROUP
from tests.bench.scale import DEVICES, REPLICAS, Scale
from tests.bench.stage import Stage

_WARM_UP = 20


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """Floor and target interleaved call by call."""
    config = stage.configure(GROUP, REPLICAS)
    target: list[float] = []
    bottom: list[float] = []
    async with (
        stage.running(config, DEVICES) as daemon,
        floor(stage) as beside,
        grpc.aio.insecure_channel(f"unix:{daemon.device_plugin_socket}") as channel,
    ):
        stub: pb_grpc.DevicePluginAsyncStub = pb_grpc.DevicePluginStub(channel)
        for device in (await _first_list(stub))[: scale.calls + _WARM_UP]:
            bottom.append(await beside.without_get())
            target.append(await _allocate(stub, device))
    target, bottom = target[_WARM_UP:], bottom[_WARM_UP:]
    return [
        Figure("Allocate, p50", percentile(target, 50), "ms", 2.0, percentile(bottom, 50)),
    ]


async def _first_list(stub: pb_grpc.DevicePluginAsyncStub) -> list[str]:
    call = stub.ListAndWatch(pb.Empty())
    async for message in call:
        call.cancel()
        return [device.ID for device in message.devices if device.health == "Healthy"]
    raise RuntimeError("ListAndWatch ended without a list")


async def _allocate(stub: pb_grpc.DevicePluginAsyncStub, device: str) -> float:
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=[device])])
    started = time.perf_counter()
    response = await stub.Allocate(request)
    took = (time.perf_counter() - started) * 1000
    if not response.container_responses[0].devices:
        raise RuntimeError(f"Allocate of {device} gave no device nodes")
    return took
