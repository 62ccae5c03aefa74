"""One watch over HTTP: initial events, changes as a field selector sees them, bookmarks, timeout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from bridge.sandbox.cluster.objects import ApiProblem, Object, dig, namespace_of
from bridge.sandbox.cluster.registry import Registry, selected
from bridge.sandbox.cluster.resources import Resource
from bridge.sandbox.cluster.store import Change, Watcher

BOOKMARK_SECONDS = 5.0

Terms = Mapping[str, tuple[bool, str]]


def event_of(change: Change, namespace: str | None, terms: Terms) -> tuple[str, Object] | None:
    """Return the event that a selective watch shows for a change: entering is ADDED, leaving is DELETED."""

    def inside(obj: Object | None) -> bool:
        return obj is not None and namespace in (None, namespace_of(obj)) and selected(obj, terms)

    match inside(change.before), inside(change.after):
        case False, True:
            return "ADDED", change.object
        case True, True:
            return "MODIFIED", change.object
        case True, False:
            return "DELETED", change.object
    return None


async def stream(
    registry: Registry,
    request: web.Request,
    resource: Resource,
    namespace: str | None,
    terms: Terms,
    shown: Callable[[Object], Object],
    ended: asyncio.Event,
) -> web.StreamResponse:
    """Answer a watch request until its timeout, the client's leave or `ended`.

    A resourceVersion that has been forgotten is told as an ERROR event with code 410 in a 200 answer, which is
    what clients of a real server meet most.
    """
    query = request.query
    since = query.get("resourceVersion", "")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    try:
        await response.prepare(request)
    except ConnectionResetError:
        return response  # the client has gone already

    async def send(kind: str, obj: Object) -> None:
        await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")

    fresh = since in ("", "0") or query.get("sendInitialEvents") == "true"
    try:
        watcher = registry.store.watch(resource, registry.store.revision if fresh else int(since))
    except ApiProblem as problem:
        await send("ERROR", problem.as_status())
        return response
    bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
    try:
        async with asyncio.timeout(float(query.get("timeoutSeconds", 3000))):
            if fresh:
                for obj in registry.store.all(resource, namespace):
                    if selected(obj, terms):
                        await send("ADDED", shown(obj))
                if bookmarks and query.get("sendInitialEvents") == "true":
                    await send("BOOKMARK", _bookmark(registry, resource, shown, initial_end=True))
            await _follow(registry, watcher, namespace, terms, shown, send, ended, bookmarks)
    except (TimeoutError, ConnectionResetError):
        return response
    finally:
        registry.store.unwatch(watcher)
    return response


async def _follow(
    registry: Registry,
    watcher: Watcher,
    namespace: str | None,
    terms: Terms,
    shown: Callable[[Object], Object],
    send: Callable[[str, Object], Awaitable[None]],
    ended: asyncio.Event,
    bookmarks: bool,
) -> None:
    stop = asyncio.create_task(ended.wait())
    try:
        while True:
            change = asyncio.create_task(watcher.queue.get())
            try:
                done, _ = await asyncio.wait(
                    {change, stop}, timeout=BOOKMARK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                change.cancel()  # of no effect on one that is done
            if stop in done:
                return
            if not done:
                if bookmarks:
                    await send("BOOKMARK", _bookmark(registry, watcher.resource, shown))
                continue
            if (got := change.result()) is None:
                return
            if (event := event_of(got, namespace, terms)) is not None:
                kind, obj = event
                body = shown(obj)
                body["metadata"]["resourceVersion"] = str(got.revision)
                await send(kind, body)
    finally:
        stop.cancel()


def _bookmark(
    registry: Registry, resource: Resource, shown: Callable[[Object], Object], initial_end: bool = False
) -> Object:
    kind = shown({"metadata": {}})
    metadata: Object = {"resourceVersion": str(registry.store.revision)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"kind": resource.kind, "apiVersion": dig(kind, "apiVersion"), "metadata": metadata}
