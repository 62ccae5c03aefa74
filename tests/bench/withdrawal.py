"""From a hand-out on one plane to its news on the other: list sent, slice stored; and from a reservation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import grpc

from deviceplugin_v1beta1.api import deviceplugin_pb2 as dp
from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as dp_grpc
from dra_v1.api import dra_v1_pb2 as pb
from dra_v1.api import dra_v1_pb2_grpc as pb_grpc
from dra_v1.kube import Json, KubeApi
from tests.bench.claims import COLLECTION, NAMESPACE
from tests.bench.figures import Figure, percentile
from tests.bench.scale import Scale
from tests.bench.stage import Daemon, Stage
from tests.bench.views import Names, Views, views

GROUP = "race"
CLAIM = "race"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Races:
    """The kubelet's part and the scheduler's, one hand-out at a time."""

    def __init__(
        self, stage: Stage, daemon: Daemon, api: KubeApi, seen: Views, stub: pb_grpc.DRAPluginAsyncStub
    ) -> None:
        self._stage, self._daemon, self._api, self._seen, self._stub = stage, daemon, api, seen, stub
        self._wire = pb.Claim()

    async def make_claim(self) -> None:
        """The one claim that everything is allocated to."""
        spec = {"devices": {"requests": [{"name": "d", "exactly": {"deviceClassName": "bench"}}]}}
        made = await self._api.create(COLLECTION, {"metadata": {"name": CLAIM}, "spec": spec})
        self._wire = pb.Claim(namespace=NAMESPACE, name=CLAIM, uid=made["metadata"]["uid"])

    async def nominate(self) -> None:
        """A pod that names the claim and is meant for this node; the scheduler stands still."""
        body: Json = {
            "metadata": {"name": CLAIM},
            "spec": {
                "containers": [{"name": "main", "image": "none"}],
                "resourceClaims": [{"name": "d", "resourceClaimName": CLAIM}],
            },
        }
        await self._api.create(PODS, body)
        nominated = {"status": {"nominatedNodeName": self._stage.cluster.node_name}}
        await self._api.patch(f"{PODS}/{CLAIM}/status", nominated)

    async def prepare(self, device: str) -> float:
        """Milliseconds from a Prepare to the list without its device; everything is given back."""
        await self._allocate(device)
        started = time.perf_counter()
        request = pb.NodePrepareResourcesRequest(claims=[self._wire])
        answer = (await self._stub.NodePrepareResources(request)).claims[self._wire.uid]
        if answer.error:
            raise RuntimeError(f"the claim was not prepared: {answer.error}")
        shown = await self._seen.listed.wait(_without(device))
        await self._deallocate()
        await self._stub.NodeUnprepareResources(pb.NodeUnprepareResourcesRequest(claims=[self._wire]))
        await self._seen.listed.wait(_with(device))
        return (shown - started) * 1000

    async def reserve(self, device: str) -> float:
        """Milliseconds from an allocation that nobody prepares to the list without its device."""
        started = time.perf_counter()
        await self._allocate(device)
        shown = await self._seen.listed.wait(_without(device))
        await self._deallocate()
        await self._seen.listed.wait(_with(device))
        return (shown - started) * 1000

    async def grant(self, device: str) -> float:
        """Milliseconds from an Allocate to the stored slice without its device."""
        socket = self._daemon.device_plugin_socket
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            stub: dp_grpc.DevicePluginAsyncStub = dp_grpc.DevicePluginStub(channel)
            asked = dp.ContainerAllocateRequest(devices_ids=[device])
            await channel.channel_ready()
            started = time.perf_counter()
            await stub.Allocate(dp.AllocateRequest(container_requests=[asked]))
            shown = await self._seen.stored.wait(_without(device))
        return (shown - started) * 1000

    async def _allocate(self, device: str) -> None:
        node = self._stage.cluster.node_name
        result = {"request": "d", "driver": self._daemon.driver, "pool": node, "device": device}
        await self._write({"devices": {"results": [result]}})

    async def _deallocate(self) -> None:
        await self._write(None)

    async def _write(self, allocation: Json | None) -> None:
        await self._api.patch(f"{COLLECTION}/{CLAIM}/status", {"status": {"allocation": allocation}})


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """All of it: half of the devices go to claims and come back, half stay with the device plugin plane."""
    for i in range(2 * scale.plugs):
        stage.plug(f"{GROUP}-{i}")
    config = stage.configure(GROUP)
    async with (
        stage.running(config, 2 * scale.plugs) as daemon,
        stage.admin() as api,
        views(stage, daemon) as seen,
        grpc.aio.insecure_channel(f"unix:{daemon.dra_socket}") as channel,
    ):
        await seen.both(lambda names: len(names) >= 2 * scale.plugs)
        races = Races(stage, daemon, api, seen, pb_grpc.DRAPluginStub(channel))
        await races.make_claim()
        devices = sorted(seen.stored.names)
        ours, theirs = devices[: scale.plugs], devices[scale.plugs :]
        took = {
            "Prepare to ListAndWatch sent": [await _apart(races.prepare(device)) for device in ours],
            "Allocate to slice stored": [await _apart(races.grant(device)) for device in theirs],
        }
        await races.nominate()
        took["claim allocated to ListAndWatch sent"] = [
            await _apart(races.reserve(device)) for device in ours
        ]
    return _figures(took)


async def _apart(race: Awaitable[float]) -> float:
    """One of them, not in step with any pause of the daemon's own."""
    await asyncio.sleep(random.uniform(0.02, 0.06))
    return await race


def _figures(took: Mapping[str, Sequence[float]]) -> list[Figure]:
    return [
        Figure(f"withdrawal, {name}, p{percent}", percentile(samples, percent), "ms", limit)
        for name, samples in took.items()
        for percent, limit in ((50, 50.0), (99, 200.0))
    ]


def _without(device: str) -> Callable[[Names], bool]:
    return lambda names: device not in names


def _with(device: str) -> Callable[[Names], bool]:
    return lambda names: device in names
