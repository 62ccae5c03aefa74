"""List, then watch, for ever: the state of a small collection as a stream that survives every gap.

Each gap (410 Gone, a broken connection, a refused watch) ends in a fresh list, and a list is the truth (H34).
Meant for collections that a node may follow: its own slices, its own pods, one named object.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from dra_v1.backoff import Backoff
from dra_v1.kube import ApiError, Gone, Json, KubeApi, NotFound, WatchEvent

log = logging.getLogger(__name__)

MAX_WAIT_S = 30.0

STEADY_S = 5.0
"""A watch that has stood for so long has mended the gap before it; one that breaks sooner is waited with longer."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole collection as it is now; whatever was known before is void."""

    items: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object changed since."""

    event: WatchEvent


@dataclass(frozen=True, slots=True)
class Lost:
    """The collection cannot be read now; it is asked again after `wait_s` seconds."""

    error: ApiError
    wait_s: float


Followed = Listed | Changed | Lost


def _whole(body: Json) -> Json:
    return body


Turn = Callable[[], Awaitable[None]]
"""Awaited before a request that nobody waits for: a budget of requests says when it may be made."""


async def at_once() -> None:
    """No budget: now."""


async def follow(
    api: KubeApi,
    path: str,
    params: Mapping[str, str] | None = None,
    *,
    max_wait_s: float = MAX_WAIT_S,
    keep: Callable[[Json], Json] = _whole,
    page: int = 0,
    turn: Turn = at_once,
) -> AsyncGenerator[Followed, None]:
    """Follow a collection until cancelled: `Listed` first and after every gap, `Changed` in between.

    `keep` makes of each object what is kept of it; its resource version is read before. `page` lists so many at
    a time (0: all at once). Both spare memory where objects are big and few of their fields matter. `turn` is
    awaited before each request. Gaps that follow each other are waited with, ever longer, whatever made them.

    Raises:
        NotFound: the server does not serve this path (any longer).
        Invalid: the server does not know a selector in `params`.
    """
    backoff = Backoff(max_s=max_wait_s)
    now = asyncio.get_running_loop().time
    while True:
        listed_at = float("inf")
        try:
            async with aclosing(_once(api, path, params or {}, keep, page, turn)) as stream:
                async for found in stream:
                    if isinstance(found, Listed):
                        listed_at = now()
                    else:
                        backoff.reset()
                    yield found
        except NotFound:
            raise
        except ApiError as error:
            if error.status in (400, 422):
                raise
            if now() - listed_at >= STEADY_S:
                backoff.reset()
            wait_s = max(backoff.next(), error.retry_after)
            if isinstance(error, Gone):
                log.info("the watch fell behind; listing again", extra={"path": path, "error": str(error)})
            else:
                yield Lost(error, wait_s)
            await asyncio.sleep(wait_s)


async def _once(
    api: KubeApi,
    path: str,
    params: Mapping[str, str],
    keep: Callable[[Json], Json],
    page: int,
    turn: Turn,
) -> AsyncGenerator[Listed | Changed, None]:
    """One list and every watch that can go on from it; ends by an error only."""
    items, version = await _list(api, path, params, keep, page, turn)
    yield Listed(items)
    while True:
        # Spread over the fleet: the watches of all nodes must not end in the same second.
        span = random.randint(240, 420)  # noqa: S311  not a secret
        await turn()
        events = api.watch(path, params=params, resource_version=version, timeout_s=span)
        async with aclosing(events) as stream:
            async for event in stream:
                version = str(event.object.get("metadata", {}).get("resourceVersion", version))
                if event.type != "BOOKMARK":
                    yield Changed(WatchEvent(event.type, keep(event.object)))


async def _list(
    api: KubeApi,
    path: str,
    params: Mapping[str, str],
    keep: Callable[[Json], Json],
    page: int,
    turn: Turn,
) -> tuple[tuple[Json, ...], str]:
    """What is kept of all objects, and the resource version to watch from: that of the list's beginning."""
    kept: list[Json] = []
    asked = {**params, "limit": str(page)} if page else dict(params)
    while True:
        await turn()
        listing = await api.list(path, params=asked)
        kept += [keep(item) for item in listing.get("items") or ()]
        meta = listing.get("metadata") or {}
        if not meta.get("continue"):
            return tuple(kept), str(meta.get("resourceVersion", ""))
        asked = {**asked, "continue": str(meta["continue"])}
