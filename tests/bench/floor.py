"""The floor: the least that a durable answer in Python can cost on this machine, in this minute.

An empty RPC to an empty `grpc.aio` server in a process of its own, one GET of a claim by the daemon's own kind of
client, one fdatasync on the file system of the ledger, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from dra_v1.api import dra_v1_pb2 as pb
from dra_v1.api import dra_v1_pb2_grpc as pb_grpc
from dra_v1.kube import KubeApi
from tests.bench.stage import Stage

_BLOCK = b"\1" * 4096


class Floor:
    """Takes the parts of the floor; each call gives milliseconds."""

    def __init__(self, stub: pb_grpc.DRAPluginAsyncStub, api: KubeApi, descriptor: int) -> None:
        self._stub = stub
        self._api = api
        self._descriptor = descriptor

    async def with_get(self, path: str) -> float:
        """The floor of a Prepare; `path` is a claim's in the API."""
        started = time.perf_counter()
        await self._stub.NodePrepareResources(pb.NodePrepareResourcesRequest())
        await self._api.get(path)
        self._sync()
        return (time.perf_counter() - started) * 1000

    async def without_get(self) -> float:
        """The floor of an Allocate."""
        started = time.perf_counter()
        await self._stub.NodePrepareResources(pb.NodePrepareResourcesRequest())
        self._sync()
        return (time.perf_counter() - started) * 1000

    def _sync(self) -> None:
        os.pwrite(self._descriptor, _BLOCK, 0)
        os.fdatasync(self._descriptor)


@contextlib.asynccontextmanager
async def floor(stage: Stage) -> AsyncIterator[Floor]:
    """A floor while the context lasts, with the daemon's identity at the API server."""
    folder = stage.outside(stage.state_dir)
    socket, file = folder / "floor.sock", folder / "floor"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    module = [sys.executable, "-m", "tests.bench.empty", str(stage.state_dir / "floor.sock")]
    server = stage.popen(module, "floor")
    try:
        os.pwrite(descriptor, _BLOCK, 0)
        os.fsync(descriptor)
        await stage.until(socket.exists, "the floor's server")
        async with (
            grpc.aio.insecure_channel(f"unix:{socket}") as channel,
            KubeApi.from_kubeconfig(stage.kubeconfig) as api,
        ):
            stub: pb_grpc.DRAPluginAsyncStub = pb_grpc.DRAPluginStub(channel)
            # The socket is there a moment before anybody listens on it.
            await stub.NodePrepareResources(pb.NodePrepareResourcesRequest(), wait_for_ready=True)
            yield Floor(stub, api, descriptor)
    finally:
        await asyncio.to_thread(server.stop)
        os.close(descriptor)
        for path in (socket, file):
            Path(path).unlink(missing_ok=True)
