"""A small asynchronous JSON client for the Kubernetes API.

Get, list, create, replace, patch, delete and watch over one pool of kept-alive connections; nothing is
modelled, objects are JSON. Made for a daemon that runs on every node: a read costs little more than its round
trip, and the whole client a few MiB. Errors are the types of `dra_v1.kube_errors`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, urlencode

import tenacity

from dra_v1 import kube_config
from dra_v1.http import Headers, Http
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

_ACCEPT: Headers = (("Accept", "application/json"), ("Accept-Encoding", "identity"))
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
        self._http: Http | None = None

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
        http, self._http = self._http, None
        if http is not None:
            http.close()

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
            async with (
                asyncio.timeout(timeout_s + 30),
                self._open().stream(_target(path, query), self._headers("watch", path)) as (answer, body),
            ):
                self._count("watch", path, answer.status, started)
                if answer.status >= _ERROR:
                    raw = b"".join([piece async for piece in body])
                    raise failure(answer.status, answer.retry_after, raw, "watch", path)
                async for line in lines(body):
                    yield event(line, path)
        except OSError as error:
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
        data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        status, started = 0, time.monotonic()
        headers = self._headers(verb, path, content_type if data else "")
        try:
            async with asyncio.timeout(timeout_s or self.timeout_s):
                answer = await self._open().request(method, _target(path, params), headers, data)
            status = answer.status
        except OSError as error:
            said = str(error) or f"no answer within {timeout_s or self.timeout_s:g} s"
            raise Unreachable(0, type(error).__name__, said, verb, path) from error
        finally:
            self._count(verb, path, status, started)
        if status >= _ERROR:
            raise failure(status, answer.retry_after, answer.body, verb, path)
        return json_object(answer.body, status, verb, path)

    def _open(self) -> Http:
        if self._http is None or self._http.server != self.server:
            if self._http is not None:
                self._http.close()
            self._http = Http(self.server, self._tls, (*_ACCEPT, ("User-Agent", self._user_agent)))
        return self._http

    def _headers(self, verb: str, path: str, content_type: str = "") -> Headers:
        headers: Headers = (("Content-Type", content_type),) if content_type else ()
        try:
            token = self._token.current()
        except OSError as error:
            raise Unauthorized(0, "NoToken", f"cannot read the token file: {error}", verb, path) from error
        return (*headers, ("Authorization", f"Bearer {token}")) if token else headers

    def _count(self, verb: str, path: str, status: int, started: float) -> None:
        if self.on_request is not None:
            self.on_request(verb, target(path).rule, status, time.monotonic() - started)


def _target(path: str, params: Mapping[str, str] | None) -> str:
    target = quote(path, safe="/%:@!$&'()*+,;=?~")
    return f"{target}?{urlencode(params)}" if params else target
