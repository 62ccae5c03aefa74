"""From the bytes of the API server to JSON, watch events and typed errors; no connection is touched here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, cast

import aiohttp

from dra_v1.kube_errors import ApiError, Json, error_for


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch.

    Attributes:
        type: BOOKMARK events carry nothing but a resource version.
        object: the object after the change; for DELETED as it was last.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Json


async def lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length; the reader's own iterator refuses long ones, and a full slice is long."""
    pending: list[bytes] = []
    async for chunk in stream.iter_any():
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            line = b"".join((*pending, piece))
            pending.clear()
            if line:
                yield line
        if rest:
            pending.append(rest)


def event(line: bytes, path: str) -> WatchEvent:
    """One line of a watch. Raises the typed error that an ERROR event carries, `Gone` above all."""
    raw = json_object(line, 200, "watch", path)
    what, body = str(raw.get("type")), cast(Json, raw.get("object") or {})
    if what == "ERROR":
        raise error_for(int(body.get("code") or 500), body, "watch", path)
    return WatchEvent(cast(Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"], what), body)


def json_object(raw: bytes, status: int, verb: str, path: str) -> Json:
    """The JSON object of an answer. Raises `ApiError` where it is something else (a proxy's page)."""
    try:
        decoded = json.loads(raw)
    except ValueError as error:
        raise ApiError(status, "NotJson", f"the answer is not JSON: {error}", verb, path) from error
    if not isinstance(decoded, dict):
        raise ApiError(status, "NotJson", "the answer is not a JSON object", verb, path)
    return decoded


def failure(response: aiohttp.ClientResponse, raw: bytes, verb: str, path: str) -> ApiError:
    """The typed error of an answer of 400 and above."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = {"message": raw[:300].decode(errors="replace").strip()}
    after = response.headers.get("Retry-After", "")
    return error_for(
        response.status,
        body if isinstance(body, dict) else {},
        verb,
        path,
        float(after) if after.isdigit() else 0.0,
    )
