"""One server over kept connections: what is reused, what is asked again, what is closed, and how bodies end."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dra_v1 import http, wire
from dra_v1.http import CONNECTIONS, Http, HttpError, NoAnswer
from dra_v1.kube_config import tls_context

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIMIT_S = 20.0

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Behaviour = Callable[[int, int], bytes | None]


class Server:
    """Answers the n-th request of the m-th connection with raw bytes; None closes the connection unanswered."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.url = ""
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.changed = asyncio.Condition()
        self.hold: Callable[[], Awaitable[object]] | None = None

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S), self.changed:
            await self.changed.wait_for(holds)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections, self.open = self.connections, self.connections + 1, self.open + 1
        try:
            await self._converse(number, reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client closed
        finally:
            self.open -= 1
            writer.close()
            await self._tell()

    async def _converse(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for turn in range(1000):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
            if lengths:
                self.bodies.append(await reader.readexactly(int(lengths[0].partition(":")[2])))
            await self._tell()
            if self.hold is not None:
                await self.hold()
            answer = self.behaviour(number, turn)
            if answer is None:
                return
            writer.write(answer)
            await writer.drain()
            if b"connection: close" in answer[:200].lower() or b"\r\n\r\n" not in answer:
                return


@asynccontextmanager
async def running(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(behaviour)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[Http]:
    made = Http(server.url, tls, (("Accept", "application/json"),))
    try:
        async with asyncio.timeout(LIMIT_S):
            yield made
    finally:
        made.close()


async def test_requests_share_one_connection_and_carry_what_they_must() -> None:
    async with running(lambda number, turn: OK) as server, client(server) as api:
        assert (await api.request("GET", "/a?b=c", (("Authorization", "Bearer t"),))).body == b"ok"
        await api.request("PUT", "/a", (("Content-Type", "application/json"),), b"{}" * 200_000)
    assert server.connections == 1
    host = server.url.removeprefix("http://")
    assert server.heads[0] == (
        f"GET /a?b=c HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nAuthorization: Bearer t\r\n\r\n"
    )
    assert "Content-Length: 400000\r\n" in server.heads[1]
    assert server.bodies == [b"{}" * 200_000]


async def test_a_burst_opens_few_connections_and_a_stream_has_its_own() -> None:
    gate = asyncio.Event()
    async with running(lambda number, turn: OK) as server, client(server) as api:
        server.hold = gate.wait
        burst = [asyncio.ensure_future(api.request("GET", f"/{n}")) for n in range(20)]
        await server.until(lambda: len(server.heads) == CONNECTIONS)
        stream = api.stream("/watch")
        opened = asyncio.ensure_future(stream.__aenter__())
        await server.until(lambda: any(head.startswith("GET /watch") for head in server.heads))
        assert server.connections == CONNECTIONS + 1
        gate.set()
        assert {answer.body for answer in await asyncio.gather(*burst)} == {b"ok"}
        _, pieces = await opened
        assert b"".join([piece async for piece in pieces]) == b"ok"
        await stream.__aexit__(None, None, None)
        await server.until(lambda: server.open == CONNECTIONS)
    assert server.connections == CONNECTIONS + 1


@pytest.mark.parametrize(
    ("method", "repeated"),
    [("GET", True), ("PUT", True), ("DELETE", True), ("POST", False), ("PATCH", False)],
)
async def test_a_kept_connection_that_ends_unanswered_is_asked_again_only_where_that_is_safe(
    method: str, repeated: bool
) -> None:
    async with (
        running(lambda number, turn: OK if number or not turn else None) as server,
        client(server) as api,
    ):
        await api.request("GET", "/")
        if repeated:
            assert (await api.request(method, "/", body=b"{}")).status == 200
        else:
            with pytest.raises(NoAnswer, match="instead of answering"):
                await api.request(method, "/", body=b"{}")
    assert len(server.heads) == (3 if repeated else 2)


async def test_a_fresh_connection_that_ends_unanswered_is_told() -> None:
    async with running(lambda number, turn: None) as server, client(server) as api:
        with pytest.raises(NoAnswer, match="instead of answering"):
            await api.request("GET", "/")
    assert server.connections == 1


async def test_an_answer_that_broke_off_is_told_and_not_asked_again() -> None:
    cut = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nok"
    async with running(lambda number, turn: cut if turn else OK) as server, client(server) as api:
        await api.request("GET", "/")
        with pytest.raises(HttpError, match="cut short"):
            await api.request("GET", "/")
    assert len(server.heads) == 2


async def test_a_connection_that_the_server_closed_meanwhile_carries_no_request() -> None:
    async with running(lambda number, turn: OK) as server, client(server) as api:
        server.behaviour = lambda number, turn: OK + b"HTTP/1.1 408 Request Timeout\r\n\r\n"
        await api.request("GET", "/")
        server.behaviour = lambda number, turn: OK
        assert (await api.request("POST", "/", body=b"{}")).status == 200
    assert server.connections == 2
    assert len(server.heads) == 2


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n" + b"z" * 700_000, b"z" * 700_000),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["informational", "chunked", "large", "none"],
)
async def test_bodies_end_where_the_server_says(answer: bytes, body: bytes) -> None:
    async with running(lambda number, turn: answer) as server, client(server) as api:
        for _ in range(2):
            assert (await api.request("GET", "/")).body == body
    assert server.connections == 1


async def test_a_connection_that_the_server_gives_up_is_not_kept() -> None:
    last = b"HTTP/1.1 503 Busy\r\nConnection: close\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno"
    async with running(lambda number, turn: last) as server, client(server) as api:
        for _ in range(2):
            answer = await api.request("GET", "/")
            assert (answer.status, answer.retry_after, answer.body) == (503, "7", b"no")
    assert server.connections == 2


async def test_cancelling_closes_the_connection() -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nha"
    async with running(lambda number, turn: half) as server, client(server) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await api.request("GET", "/")
        await server.until(lambda: server.open == 0)
        server.behaviour = lambda number, turn: OK
        assert (await api.request("GET", "/")).body == b"ok"
    assert server.connections == 2


async def test_what_is_no_http_is_told() -> None:
    async with running(lambda number, turn: b"SSH-2.0-OpenSSH_9.9\r\n") as server, client(server) as api:
        with pytest.raises(HttpError, match="not HTTP"):
            await api.request("GET", "/")


async def test_a_reader_that_does_not_read_makes_the_server_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 * 2**20
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    full, received = asyncio.Event(), wire.Wire.buffer_updated
    waiting: list[int] = []

    def watched(self: wire.Wire, nbytes: int) -> None:
        received(self, nbytes)
        waiting.append(self._waiting)
        if self._paused:
            full.set()

    monkeypatch.setattr(wire.Wire, "buffer_updated", watched)
    async with (
        running(lambda number, turn: endless) as server,
        client(server) as api,
        api.stream("/") as (_, pieces),
    ):
        await full.wait()
        assert sum([len(piece) async for piece in pieces]) == size
    assert max(waiting) <= wire.WAITING_BYTES + wire._RECEIVED


async def test_idle_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.05)
    async with running(lambda number, turn: OK) as server, client(server) as api:
        await asyncio.gather(*(api.request("GET", "/") for _ in range(3)))
        await server.until(lambda: server.open == 0)
        assert (await api.request("GET", "/")).body == b"ok"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "crt", folder / "key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


def serving_tls(files: tuple[Path, Path], *, ask: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files[0])
    return context


async def test_tls_carries_large_bodies_both_ways_and_keeps_the_connection(
    certificate: tuple[Path, Path],
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"z" * 900_000
    tls = tls_context(ca_file=str(certificate[0]))
    async with (
        running(lambda number, turn: answer, serving_tls(certificate)) as server,
        client(server, tls) as api,
    ):
        for _ in range(3):
            assert (await api.request("PUT", "/", body=b"y" * 300_000)).body == b"z" * 900_000
    assert server.bodies == [b"y" * 300_000] * 3
    assert server.connections == 1


async def test_tls_of_a_stranger_is_refused(certificate: tuple[Path, Path]) -> None:
    async with (
        running(lambda number, turn: OK, serving_tls(certificate)) as server,
        client(server, tls_context()) as api,
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            await api.request("GET", "/")
    assert server.heads == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_client_certificate_is_shown(certificate: tuple[Path, Path], known: bool) -> None:
    tls = tls_context(ca_file=str(certificate[0]))
    if known:
        tls.load_cert_chain(*certificate)
    async with (
        running(lambda number, turn: OK, serving_tls(certificate, ask=True)) as server,
        client(server, tls) as api,
    ):
        if known:
            assert (await api.request("GET", "/")).body == b"ok"
        else:
            with pytest.raises(NoAnswer):
                await api.request("GET", "/")
            assert server.heads == []


async def test_giving_up_during_the_handshake_closes_the_connection(certificate: tuple[Path, Path]) -> None:
    async with running(lambda number, turn: OK) as server:
        server.url = server.url.replace("http:", "https:")
        async with client(server, tls_context(ca_file=str(certificate[0]))) as api:
            connecting = asyncio.ensure_future(api.request("GET", "/"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(connecting, 0.2)
        await server.until(lambda: server.open == 0)


@pytest.mark.parametrize("server", ["127.0.0.1:6443", "https://127.0.0.1", "ftp://x"])
async def test_a_server_that_cannot_be_asked_is_refused(server: str) -> None:
    with pytest.raises(ValueError, match="not the URL"):
        Http(server, None)
