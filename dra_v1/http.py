"""HTTP/1.1 to one server over a few kept-alive connections.

Requests share at most `CONNECTIONS`; every stream has one of its own beside them. A connection goes back only
when its answer was read to the end. No proxies, redirects, cookies or compression: an API server needs none.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from dra_v1.wire import Wire

CONNECTIONS = 8
"""For requests at once: n of them take n / 8 round trips. Each more costs a handshake on the first burst and
about 90 KiB for as long as it is kept."""

KEEP_ALIVE_S = 75.0
"""Below the 90 s after which the API server closes an idle connection, so that ours is the first to close."""

_HEAD_BYTES = 64 * 1024
_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})  # RFC 9110, 9.2.2
_PORTS = {"http": 80, "https": 443}
Headers = tuple[tuple[str, str], ...]


class HttpError(OSError):
    """What came is not an HTTP answer, or not all of one."""


class NoAnswer(HttpError):
    """The connection ended before the first byte of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and as much of its body as was asked for.

    Attributes:
        status: HTTP status.
        retry_after: the header of that name, empty where there is none.
        body: the whole body; of a stream nothing.
    """

    status: int
    retry_after: str
    body: bytes = b""


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection and where its conversation stands."""

    wire: Wire
    http: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    )
    idle_since: float = 0.0

    def send(self, request: h11.Request, body: bytes) -> None:
        """A whole request, in one write."""
        pieces = [self.http.send(request)]
        if body:
            pieces.append(self.http.send(h11.Data(data=body)))
        pieces.append(self.http.send(h11.EndOfMessage()))
        self.wire.write(b"".join(piece for piece in pieces if piece))

    async def head(self) -> h11.Response:
        """The head of the answer."""
        try:
            data = await self.wire.read()
        except OSError as error:
            raise NoAnswer(str(error)) from error
        if not data:
            raise NoAnswer("the server closed the connection instead of answering")
        self.http.receive_data(data)
        while True:
            match await self._next():
                case h11.InformationalResponse():
                    continue
                case h11.Response() as head:
                    return head
                case other:
                    raise HttpError(f"expected an answer, not {other!r}")

    async def piece(self) -> bytes:
        """The next piece of the answer's body, none at its end."""
        event = await self._next()
        return event.data if isinstance(event, h11.Data) else b""

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.wire.read())
        except h11.RemoteProtocolError as error:
            raise HttpError(f"the answer is cut short or not HTTP: {error}") from error
        return event

    @property
    def at_rest(self) -> bool:
        """Whether the answer was read to its end and the server keeps the connection."""
        states = self.http.our_state, self.http.their_state
        return states == (h11.DONE, h11.DONE) and not self.http.trailing_data[0] and self.wire.quiet


class Http:
    """One server, `https://host:port` with or without a path; see the module."""

    def __init__(self, server: str, tls: ssl.SSLContext | None, headers: Headers = ()) -> None:
        parts = urlsplit(server)
        if parts.scheme not in _PORTS or not parts.hostname or (parts.scheme == "https" and tls is None):
            raise ValueError(f"{server!r} is not the URL of an HTTP server, or https without a TLS context")
        self.server = server
        self._host, self._port = parts.hostname, parts.port or _PORTS[parts.scheme]
        self._tls = tls if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        self._headers: Headers = (("Host", parts.netloc.rpartition("@")[2]), *headers)
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._closed = False
        self._checked_for: Headers = ()
        self._checked = h11.Request(method="GET", target="/", headers=[*self._headers]).headers
        self._idle: list[_Connection] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._busy: set[_Connection] = set()

    def close(self) -> None:
        """Close every connection; what is under way ends with `OSError`."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in self._idle:
            connection.wire.close()
        self._idle.clear()
        for connection in self._busy:
            connection.wire.abort()

    async def request(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        """One request and its whole answer. The caller limits the time; cancelling closes the connection.

        Raises:
            OSError: no connection, it broke, or what came is not HTTP (`HttpError`).
        """
        async with self._slots:
            connection, head = await self._exchange(method, self._compose(method, path, headers, body), body)
            try:
                pieces: list[bytes] = []
                while piece := await connection.piece():
                    pieces.append(piece)
            finally:
                self._give_back(connection)
        return _answer(head, b"".join(pieces))

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Headers = ()
    ) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
        """One GET on a connection of its own; the answer's body comes piece by piece.

        Raises:
            OSError: as `request`.
        """
        connection, head = await self._exchange("GET", self._compose("GET", path, headers, b""), b"")
        try:
            yield _answer(head), _pieces(connection)
        finally:
            self._give_back(connection)

    def _compose(self, method: str, path: str, headers: Headers, body: bytes) -> h11.Request:
        target = self._prefix + path
        if body:
            length = ("Content-Length", str(len(body)))
            return h11.Request(method=method, target=target, headers=[*self._headers, *headers, length])
        if headers != self._checked_for:
            asked = h11.Request(method=method, target=target, headers=[*self._headers, *headers])
            self._checked, self._checked_for = asked.headers, headers
        return h11.Request(method=method, target=target, headers=self._checked)

    async def _exchange(
        self, method: str, asked: h11.Request, body: bytes
    ) -> tuple[_Connection, h11.Response]:
        """Send and read the head of the answer.

        A kept connection may be closed by the server in the very moment it is used. Then nothing comes back, and
        whether the request was taken is unknown: one that may be repeated is, on a fresh connection.
        """
        kept = self._take()
        if kept is not None:
            try:
                return kept, await self._ask(kept, asked, body)
            except NoAnswer:
                if method not in _IDEMPOTENT:
                    raise
        fresh = _Connection(await Wire.connect(self._host, self._port, self._tls))
        return fresh, await self._ask(fresh, asked, body)

    async def _ask(self, connection: _Connection, asked: h11.Request, body: bytes) -> h11.Response:
        self._busy.add(connection)
        try:
            connection.send(asked, body)
            return await connection.head()
        except BaseException:
            self._busy.discard(connection)
            connection.wire.abort()
            raise

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.wire.quiet:
                return connection
            connection.wire.abort()
        return None

    def _give_back(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if self._closed or not connection.at_rest:
            connection.wire.abort()
        elif len(self._idle) >= CONNECTIONS:
            connection.wire.close()
        else:
            connection.http.start_next_cycle()
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._close_old)

    def _close_old(self) -> None:
        """Close what nobody used for long. The last one used is the last of the list."""
        self._sweep, loop = None, asyncio.get_running_loop()
        while self._idle and (left := self._idle[0].idle_since + KEEP_ALIVE_S - loop.time()) <= 0:
            self._idle.pop(0).wire.close()
        if self._idle:
            self._sweep = loop.call_later(left, self._close_old)


def _answer(head: h11.Response, body: bytes = b"") -> Answer:
    after = next((value for name, value in head.headers if name == b"retry-after"), b"")
    return Answer(head.status_code, after.decode("latin-1"), body)


async def _pieces(connection: _Connection) -> AsyncIterator[bytes]:
    while piece := await connection.piece():
        yield piece
