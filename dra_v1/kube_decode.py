"""From the bytes of the API server to JSON, watch events and typed errors; no connection is touched here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Literal, cast

from dra_v1.kube_errors import ApiError, Json, error_for

LINE_BYTES = 16 * 2**20
"""The longest line of a watch. etcd stores at most 1.5 MiB of an object."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch.

    Attributes:
        type: BOOKMARK events carry nothing but a resource version.
        object: the object after the change; for DELETED as it was last.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: Json


async def lines(stream: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Whole lines of a stream. Raises `OSError` for one above `LINE_BYTES`, which no API server sends."""
    pending: list[bytes] = []
    length = 0
    async for chunk in stream:
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            line = b"".join((*pending, piece))
            pending.clear()
            length = 0
            if line:
                yield line
        if rest:
            pending.append(rest)
            length += len(rest)
            if length > LINE_BYTES:
                raise OSError(f"a line of the watch has more than {LINE_BYTES} bytes")


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


def failure(status: int, retry_after: str, raw: bytes, verb: str, path: str) -> ApiError:
    """The typed error of an answer of 400 and above; `retry_after` is the header of that name, or empty."""
    try:
        body = json.loads(raw)
    except ValueError:
        body = {"message": raw[:300].decode(errors="replace").strip()}
    wait_s = float(retry_after) if retry_after.isdigit() else 0.0
    return error_for(status, body if isinstance(body, dict) else {}, verb, path, wait_s)
