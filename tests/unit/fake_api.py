"""A small API server on loopback: claims, slices and nodes with resource versions, watches and scripted trouble.

Only what the library under test relies on, in the manner of the real one: Status objects for errors, conflicts on
stale resource versions, 410 for expired watches, plain text for unserved paths.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Json = dict[str, Any]


class FakeApi:
    """State and script of the server; `url` once it runs."""

    def __init__(self, version: str = "v1") -> None:
        self.versions = (version,) if version else ()
        self.url = ""
        self.slices: dict[str, Json] = {}
        self.claims: dict[str, Json] = {}
        self.nodes: dict[str, Json] = {"node1": {"metadata": {"name": "node1", "uid": "node-uid"}}}
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Json] = []
        self.headers: list[str] = []
        self.fail: Callable[[str, str], tuple[int, str, str] | None] = lambda method, path: None
        self.hold: asyncio.Event | None = None
        self.keeps: Callable[[Json], Json] = lambda spec: spec
        self.watch_answers: list[str] = []
        self._revision = 100
        self._uid = 0
        self._events: list[tuple[int, str, Json]] = []
        self._watchers: set[asyncio.Queue[tuple[str, Json] | None]] = set()
        self._pulse = asyncio.Event()

    def pulse(self, *_: object) -> None:
        """Something happened: conditions that somebody waits for are looked at again."""
        self._pulse.set()

    async def until(self, holds: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for a condition; it is looked at whenever something happened here."""
        async with asyncio.timeout(seconds):
            while not holds():
                self._pulse.clear()
                await self._pulse.wait()

    def writes(self) -> list[str]:
        return [f"{m} {p.rpartition('/')[2]}" for m, p in self.requests if m in ("POST", "PUT", "DELETE")]

    def bump(self) -> str:
        self._revision += 1
        return str(self._revision)

    def store(self, body: Json, kind: str) -> Json:
        meta = dict(body["metadata"])
        self._uid += kind == "ADDED"
        meta["resourceVersion"] = self.bump()
        meta.setdefault("uid", f"slice-{self._uid}")
        stored = {**body, "metadata": meta, "spec": self.keeps(body["spec"])}
        self.slices[meta["name"]] = stored
        self._tell(kind, stored)
        return stored

    def wipe(self, *names: str) -> None:
        """Delete slices as the kubelet does, all of them unless named."""
        for name in names or tuple(self.slices):
            gone = self.slices.pop(name)
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": self.bump()}}
            self._tell("DELETED", gone)

    def edit(self, name: str, change: Callable[[Json], None]) -> None:
        """Somebody else changes a slice."""
        body = json.loads(json.dumps(self.slices[name]))
        change(body)
        self.store(body, "MODIFIED")

    def end_watches(self) -> None:
        for queue in self._watchers:
            queue.put_nowait(None)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def _tell(self, kind: str, body: Json) -> None:
        for queue in self._watchers:
            queue.put_nowait((kind, body))
        self.pulse()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append(("WATCH" if "watch" in request.query else request.method, path))
        self.pulse()
        self.headers.append(request.headers.get("Authorization", ""))
        if self.hold is not None:
            await self.hold.wait()
        if trouble := self.fail(request.method, path):
            return status(*trouble)
        if path == "/apis/resource.k8s.io":
            if not self.versions:
                return web.Response(status=404, text="404 page not found")
            return web.json_response(
                {"kind": "APIGroup", "versions": [{"version": v} for v in self.versions]}
            )
        pieces = path.strip("/").split("/")
        if pieces[:3] == ["api", "v1", "nodes"]:
            return found(self.nodes.get(pieces[3]), "nodes", pieces[3])
        if len(pieces) < 4 or pieces[2] not in self.versions:
            return web.Response(status=404, text="404 page not found")
        if pieces[3] == "namespaces":
            return found(self.claims.get(pieces[6]), "resourceclaims", pieces[6])
        if "watch" in request.query:
            return await self._watch(request)
        return await self._slices(request, pieces[4] if len(pieces) > 4 else "")

    async def _slices(self, request: web.Request, name: str) -> web.Response:
        known = self.slices.get(name)
        if request.method == "GET" and not name:
            items = [body for body in self.slices.values() if selected(body, request.query["fieldSelector"])]
            return web.json_response(
                {"kind": "List", "metadata": {"resourceVersion": str(self._revision)}, "items": items}
            )
        body = await request.json() if request.can_read_body else {}
        self.bodies.append(body)
        if request.method == "POST":
            if body["metadata"]["name"] in self.slices:
                return status(409, "AlreadyExists", "it exists")
            return web.json_response(self.store(body, "ADDED"), status=201)
        if known is None:
            return status(404, "NotFound", f"{name} not found")
        if request.method == "PUT":
            if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
                return status(409, "Conflict", "the object has been modified")
            return web.json_response(self.store(body, "MODIFIED"))
        if request.method == "DELETE":
            wanted = body.get("preconditions", {})
            if any(known["metadata"][key] != value for key, value in wanted.items()):
                return status(409, "Conflict", "the preconditions do not hold")
            self.wipe(name)
            return web.json_response({"kind": "Status", "status": "Success"})
        return web.json_response(known)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        answer = self.watch_answers.pop(0) if self.watch_answers else ""
        if answer == "410":
            return status(410, "Expired", "too old resource version")
        response = web.StreamResponse()
        await response.prepare(request)
        if answer == "ERROR":
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        queue: asyncio.Queue[tuple[str, Json] | None] = asyncio.Queue()
        self._watchers.add(queue)
        self.pulse()
        try:
            while (event := await queue.get()) is not None:
                line = json.dumps({"type": event[0], "object": event[1]}).encode() + b"\n"
                await response.write(line)
        finally:
            self._watchers.discard(queue)
        return response


def selected(body: Json, selector: str) -> bool:
    spec = body["spec"]
    pairs = dict(term.split("=") for term in selector.split(","))
    return all(spec[key.removeprefix("spec.")] == value for key, value in pairs.items())


def found(body: Json | None, resource: str, name: str) -> web.Response:
    return (
        status(404, "NotFound", f'{resource} "{name}" not found') if body is None else web.json_response(body)
    )


def status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code)


@asynccontextmanager
async def serving(fake: FakeApi, port: int = 0) -> AsyncIterator[FakeApi]:
    """Serve on loopback for as long as the context lasts."""
    app = web.Application(client_max_size=16 * 2**20)
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        fake.end_watches()
        await runner.cleanup()


def slice_devices(fake: FakeApi) -> dict[str, list[str]]:
    """What is stored: device names by slice name."""
    return {
        name: [device["name"] for device in body["spec"].get("devices") or ()]
        for name, body in sorted(fake.slices.items())
    }
