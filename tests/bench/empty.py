"""The floor's server: a `grpc.aio` server that does nothing, as a process of its own. Argument: its socket."""

from __future__ import annotations

import asyncio
import sys

import grpc

from dra_v1.api import dra_v1_pb2 as pb
from dra_v1.api import dra_v1_pb2_grpc as pb_grpc


class Empty(pb_grpc.DRAPluginServicer):
    """Answers at once with nothing."""

    async def NodePrepareResources(
        self,
        request: pb.NodePrepareResourcesRequest,
        context: grpc.aio.ServicerContext[pb.NodePrepareResourcesRequest, pb.NodePrepareResourcesResponse],
    ) -> pb.NodePrepareResourcesResponse:
        return pb.NodePrepareResourcesResponse()

    async def NodeUnprepareResources(
        self,
        request: pb.NodeUnprepareResourcesRequest,
        context: grpc.aio.ServicerContext[
            pb.NodeUnprepareResourcesRequest, pb.NodeUnprepareResourcesResponse
        ],
    ) -> pb.NodeUnprepareResourcesResponse:
        return pb.NodeUnprepareResourcesResponse()


async def serve(path: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    pb_grpc.add_DRAPluginServicer_to_server(Empty(), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
