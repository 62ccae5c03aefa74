"""A small asynchronous JSON client for the Kubernetes API.

Get, list, create, replace, patch, delete and watch over one pool of kept-alive connections; nothing is
modelled, objects are JSON. Made for a daemon that runs on every node: a read costs little more than its round
trip, and the whole client a few MiB. Errors are the types of `dra_v1.kube_errors`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast

import aiohttp
import tenacity

from dra_v1 import kube_config
from dra_v1.kube_config import Connection, KubeConfigError, Token
from dra_v1.kube_decode import WatchEvent, event, failure, json_object, lines
from dra_v1.kube_errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    Json,
    NotFound,
    Unauthorized,
    Unreachable,
    retryable,
    target,
)

__all__ = [
    "AlreadyExists",
    "ApiError",
    "Conflict",
    "Connection",
    "Forbidden",
    "Gone",
    "Invalid",
    "Json",
    "KubeApi",
    "KubeConfigError",
    "NotFound",
    "Token",
    "Unauthorized",
    "Unreachable",
    "WatchEvent",
]

log = logging.getLogger(__name__)

RequestHook = Callable[[str, str, int, float], None]
"""Called once per request with (verb, resource, HTTP status or 0 for no answer, seconds)."""

JsonBody = Json | list[Json]
PatchKind = Literal["merge", "json", "strategic-merge", "apply"]
_PATCH_TYPES: Mapping[str, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic-merge": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}

CONCURRENT_REQUESTS = 16
"""Requests in flight at once. More connections only add handshakes."""

_KEEPALIVE_S = 75.0  # below the 90 s after which the API server closes an idle connection
_ERROR = 400


class KubeApi:
    """One API server, as one identity.

    Args:
        server: base URL, `https://host:port`.
        tls: TLS context with CA and client certificate (`kube_config.tls_context`); None for plain http.
        token: bearer token, or None.
        token_file: file with a bearer token, read again whenever it changes; wins over `token`.
        timeout_s: seconds for one request, waiting for a free connection included; watches excepted.
        on_request: called after every request, see `RequestHook`.
        user_agent: how the API server's audit log names this program.
    """

    def __init__(
        self,
        server: str,
        *,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        token_file: Path | None = None,
        timeout_s: float = 10.0,
        on_request: RequestHook | None = None,
        user_agent: str = "dra-v1-python",
    ) -> None:
        self.server = server.rstrip("/")
        self.on_request = on_request
        self.timeout_s = timeout_s
        self._tls = tls
        self._token = Token(token or "", token_file)
        self._user_agent = user_agent
        self._slots = asyncio.Semaphore(CONCURRENT_REQUESTS)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def connect(cls, connection: Connection, *, on_request: RequestHook | None = None) -> Self:
        """A client for a connection described elsewhere."""
        token = connection.token
        return cls(
            connection.server,
            tls=connection.tls,
            token=token.fixed,
            token_file=token.file,
            on_request=on_request,
        )

    @classmethod
    def in_cluster(cls, *, on_request: RequestHook | None = None) -> Self:
        """A client with the pod's ServiceAccount. Raises `KubeConfigError` outside a pod."""
        return cls.connect(kube_config.in_cluster(), on_request=on_request)

    @classmethod
    def from_kubeconfig(
        cls, path: Path | str, context: str | None = None, *, on_request: RequestHook | None = None
    ) -> Self:
        """A client as a kubeconfig file describes it. Raises `KubeConfigError`."""
        return cls.connect(kube_config.from_kubeconfig(Path(path), context), on_request=on_request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; running watches end with `Unreachable`."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(
        self,
        path: str,
        *,
        timeout_s: float | None = None,
        attempts: int = 1,
        params: Mapping[str, str] | None = None,
    ) -> Json:
        """Read one object; `attempts` above 1 asks again where asking again can help."""
        return await self._read("get", path, params, timeout_s, attempts)

    async def list(
        self,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        attempts: int = 1,
    ) -> Json:
        """Read a collection; selectors go into `params` (`fieldSelector`, `labelSelector`)."""
        return await self._read("list", path, params, timeout_s, attempts)

    async def create(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
        """Create an object in the collection `path`; the stored object. Raises `AlreadyExists`."""
        return await self._request("create", "POST", path, body=body, timeout_s=timeout_s)

    async def replace(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
        """Put an object; with `metadata.resourceVersion` only over that very version, else `Conflict`."""
        return await self._request("update", "PUT", path, body=body, timeout_s=timeout_s)

    async def patch(
        self,
        path: str,
        body: JsonBody,
        *,
        kind: PatchKind = "merge",
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        """Patch an object; `kind="apply"` is server-side apply and needs `fieldManager` in `params`."""
        return await self._request(
            "patch",
            "PATCH",
            path,
            params=params,
            body=body,
            content_type=_PATCH_TYPES[kind],
            timeout_s=timeout_s,
        )

    async def delete(
        self,
        path: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Delete an object; with `uid` or `resource_version` only that very one, else `Conflict`."""
        conditions = {"uid": uid, "resourceVersion": resource_version}
        wanted = {key: value for key, value in conditions.items() if value}
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if wanted:
            body["preconditions"] = wanted
        await self._request("delete", "DELETE", path, body=body, timeout_s=timeout_s)

    async def watch(
        self,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        resource_version: str = "",
        timeout_s: int = 300,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events of a collection after `resource_version`, bookmarks included; ends when the server ends it.

        The server ends it after `timeout_s` seconds: go on from the last resource version.

        Raises:
            Gone: the resource version is too old, list again (H34).
            Unreachable: the connection broke or went silent.
            ApiError: the server refused.
        """
        query = {
            **(params or {}),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_s),
        }
        if resource_version:
            query["resourceVersion"] = resource_version
        started = time.monotonic()
        try:
            async with self._open().get(
                self.server + path,
                params=query,
                headers=self._headers("watch", path),
                timeout=aiohttp.ClientTimeout(total=timeout_s + 30, sock_connect=self.timeout_s),
            ) as response:
                self._count("watch", path, response.status, started)
                if response.status >= _ERROR:
                    raise failure(response, await response.read(), "watch", path)
                async for line in lines(response.content):
                    yield event(line, path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(
                0, type(error).__name__, str(error) or "no answer in time", "watch", path
            ) from error

    async def _read(
        self, verb: str, path: str, params: Mapping[str, str] | None, timeout_s: float | None, attempts: int
    ) -> Json:
        if attempts == 1:
            return await self._request(verb, "GET", path, params=params, timeout_s=timeout_s)
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            retry=tenacity.retry_if_exception(retryable),
            reraise=True,
        )
        return await retrying(self._request, verb, "GET", path, params=params, timeout_s=timeout_s)

    async def _request(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: JsonBody | None = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> Json:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        status, started = 0, time.monotonic()
        headers = self._headers(verb, path, content_type if data is not None else "")
        try:
            async with (
                asyncio.timeout(timeout_s or self.timeout_s),
                self._slots,
                self._open().request(
                    method,
                    self.server + path,
                    params=params,
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                status = response.status
                raw = await response.read()
                if status >= _ERROR:
                    raise failure(response, raw, verb, path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status = 0
            said = str(error) or f"no answer within {timeout_s or self.timeout_s:g} s"
            raise Unreachable(0, type(error).__name__, said, verb, path) from error
        finally:
            self._count(verb, path, status, started)
        return json_object(raw, status, verb, path)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=0,  # `_slots` limits requests; a watch must not take a place from them
                keepalive_timeout=_KEEPALIVE_S,
                ssl=self._tls if self._tls is not None else False,
                socket_factory=_socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": self._user_agent,
                },
            )
        return self._session

    def _headers(self, verb: str, path: str, content_type: str = "") -> dict[str, str]:
        headers = {"Content-Type": content_type} if content_type else {}
        try:
            token = self._token.current()
        except OSError as error:
            raise Unauthorized(0, "NoToken", f"cannot read the token file: {error}", verb, path) from error
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _count(self, verb: str, path: str, status: int, started: float) -> None:
        if self.on_request is not None:
            self.on_request(verb, target(path).rule, status, time.monotonic() - started)


def _socket(address: tuple[object, ...]) -> socket.socket:
    """A socket that notices a peer that is gone within half a minute, so that a watch does not sleep on."""
    family, kind, protocol = cast(tuple[int, int, int], address[:3])
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
