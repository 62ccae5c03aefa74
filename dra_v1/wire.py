"""The bytes of one connection: TCP, and TLS over it where there is any.

TLS runs over memory buffers (`SSLContext.wrap_bio`): asyncio's own TLS keeps 256 KiB for every connection and
offers no way to have less. Knows no HTTP. What was received and not read yet is bounded, then the peer waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from typing import Self, cast
from weakref import WeakKeyDictionary

WAITING_BYTES = 256 * 1024
"""Received and not yet read; with more than this the peer is made to wait."""

_RECORD = 16 * 1024
"""The largest piece TLS knows. A memory buffer keeps the size of the largest piece that ever went through it."""

_RECEIVED = 2 * _RECORD
"""Read from the kernel at once; a fixed buffer, since asyncio otherwise makes one of 256 KiB for every read."""

_ADDRESS_HEAD_START_S = 0.25  # of one address of a name over the next (RFC 8305)


_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def _buffer_of(loop: asyncio.AbstractEventLoop) -> memoryview:
    """What all connections of a loop receive into: each empties it before the loop turns to the next."""
    if (buffer := _buffers.get(loop)) is None:
        buffer = _buffers[loop] = memoryview(bytearray(_RECEIVED))
    return buffer


class Wire(asyncio.BufferedProtocol):
    """One connection; one reader at a time. Open it with `connect`."""

    def __init__(self, tls: ssl.SSLContext | None, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            # As text it would go through a codec with tables of all of Unicode.
            name = host.encode() if host.isascii() else host
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._transport: asyncio.Transport
        self._buffer = _buffer_of(self._loop)
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._paused = False
        self._ended = False
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @classmethod
    async def connect(cls, host: str, port: int, tls: ssl.SSLContext | None) -> Self:
        """A connection that is ready for the first byte.

        Raises:
            OSError: no connection, or TLS failed (`ssl.SSLError` is one).
        """
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: cls(tls, host), host, port, happy_eyeballs_delay=_ADDRESS_HEAD_START_S
        )
        try:
            await wire._ready
        except BaseException:
            wire.abort()
            raise
        return wire

    @property
    def quiet(self) -> bool:
        """Whether it is open and nothing has come that nobody asked for: fit for another request."""
        return not (self._ended or self._chunks or self._transport.is_closing())

    def write(self, data: bytes) -> None:
        """Send, in one piece. Never blocks; what the kernel does not take waits in memory."""
        if self._tls is None:
            self._transport.write(data)
            return
        view, sealed = memoryview(data), []
        for at in range(0, len(data), _RECORD):
            self._tls.write(view[at : at + _RECORD])
            sealed.append(self._outgoing.read())
        self._transport.write(b"".join(sealed))

    async def read(self) -> bytes:
        """What has come, at least one byte; nothing once the peer has ended. Raises `OSError` when it broke."""
        while not self._chunks and not self._ended:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._chunks and self._error is not None:
            raise self._error
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._waiting = 0
        if self._paused and not self._ended:
            self._paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        """Say goodbye and close; for a connection at rest."""
        if self._tls is not None and self._ready.done():
            # It asks for the peer's goodbye, which nobody waits for.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; for a connection in the middle of something."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin TLS."""
        self._transport = cast(asyncio.Transport, transport)
        _set_options(transport.get_extra_info("socket"))
        if self._tls is None:
            self._ready.set_result(None)
        else:
            self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the event loop puts what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came, through TLS."""
        if self._tls is None:
            self._keep(bytes(self._buffer[:nbytes]))
        else:
            self._incoming.write(self._buffer[:nbytes])
            self._unseal()
        if self._waiting > WAITING_BYTES and not self._paused and not self._ended:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """The peer sends no more; with TLS it must have said so, else what came may be cut short."""
        if self._tls is not None and not self._ended:
            self._incoming.write_eof()
            self._unseal()
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is no more, by either side."""
        self._end(error if error is None or isinstance(error, OSError) else OSError(str(error)))

    def _unseal(self) -> None:
        assert self._tls is not None
        if not self._ready.done():
            self._shake_hands()
        try:
            while self._ready.done() and (
                self._incoming.pending or self._tls.pending() or self._incoming.eof
            ):
                data = self._tls.read(_RECORD)
                if not data:
                    self._end(None)
                    return
                self._keep(data)
        except ssl.SSLWantReadError:
            pass  # the rest of the record is still to come
        except ssl.SSLError as error:
            self._end(error)
        self._flush()

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass  # the peer's turn
        except ssl.SSLError as error:
            self._end(error)
        else:
            if not self._ready.done():
                self._ready.set_result(None)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def _keep(self, data: bytes) -> None:
        self._chunks.append(data)
        self._waiting += len(data)

    def _end(self, error: OSError | None) -> None:
        if not self._ended:
            self._ended, self._error = True, error
        if not self._ready.done():
            self._ready.set_exception(error or ConnectionResetError("the server closed the connection"))
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _set_options(made: socket.socket) -> None:
    """Notice a peer that is gone within half a minute, so that a watch does not sleep on; and send at once."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
