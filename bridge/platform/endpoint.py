"""Reading from another program's unix socket over gRPC: one open channel, and an outcome instead of an exception.

For evidence that may be missing at any time: whoever asks has to say what it does without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from dra_v1.folders import FileIdentity, identity_of
from dra_v1.sockets import grpc_target

MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest answer that is read: what the kubelet itself reads from a runtime. gRPC's 4 MiB are few for a full node."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Evidence that cannot be had now.

    Attributes:
        reason: for people: what was asked, where, and what came instead.
    """

    reason: str


class UnixEndpoint:
    """A gRPC server behind a unix socket.

    The channel stays open between calls. A socket made anew gets a new channel at once, where gRPC alone would go
    on trying the old one with growing pauses.

    Attributes:
        socket: the socket's path.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._channel: grpc.aio.Channel | None = None
        self._dialled: FileIdentity | None = None
        self._dialling = asyncio.Lock()

    async def call(self, what: str, method: Callable[[grpc.aio.Channel], Awaitable[_T]]) -> _T | Unavailable:
        """Make one call; `what` names it in the reason of a failure. The method sets its own timeout."""
        async with self._dialling:
            channel = await self._current()
        if channel is None:
            return Unavailable(f"cannot {what}: there is no socket {self.socket}")
        try:
            return await method(channel)
        except grpc.aio.AioRpcError as error:
            return Unavailable(f"cannot {what} at {self.socket}: {error.code().name}: {error.details()}")
        except grpc.aio.UsageError:
            return Unavailable(f"cannot {what} at {self.socket}: the connection was closed meanwhile")
        except asyncio.CancelledError:
            # A channel that another caller closes ends the calls on it this way too.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return Unavailable(f"cannot {what} at {self.socket}: the connection was closed meanwhile")

    async def _current(self) -> grpc.aio.Channel | None:
        """The channel to the socket that is there now, None if there is none."""
        there = identity_of(self.socket)
        if there is None:
            await self.close()
        elif self._channel is None or there != self._dialled:
            await self.close()
            self._channel = grpc.aio.insecure_channel(
                grpc_target(self.socket),
                options=[
                    ("grpc.default_authority", "localhost"),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_receive_message_length", MESSAGE_BYTES),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                ],
            )
            self._dialled = there
        return self._channel

    async def close(self) -> None:
        """Close the channel. The next call opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
