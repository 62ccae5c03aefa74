"""A small synchronous client of the API server, for tests.

It speaks JSON over the paths of the API and knows no types. A call costs about a millisecond, where kubectl
costs a hundred; kubectl stays the way to apply YAML.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlencode
from weakref import WeakSet

from tests.cluster.addresses import API_PORT, NODE_ADDRESS

Object = dict[str, Any]
Dial = Callable[[tuple[str, int], float | None], socket]

_PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """The API server refused a request.

    Attributes:
        code: the HTTP status.
        reason: the machine-readable reason, such as `NotFound` or `AlreadyExists`.
        status: the whole Status object.
    """

    def __init__(self, request: str, code: int, status: Object) -> None:
        super().__init__(f"{request}: {code} {status.get('reason', '')}: {status.get('message', '')}")
        self.code = code
        self.reason = str(status.get("reason", ""))
        self.status = status


class Api:
    """Requests to the API server as one user; safe to share between threads."""

    def __init__(self, dial: Dial, authority: Path, token: str) -> None:
        self._dial = dial
        self._authority = authority
        self._token = token
        self._local = threading.local()
        self._open: WeakSet[http.client.HTTPSConnection] = WeakSet()
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def close(self) -> None:
        """Close every connection; a socket left open would keep the node's network namespace alive."""
        for connection in list(self._open):
            connection.close()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        content_type: str = "application/json",
        timeout: float = 30,
    ) -> Object:
        """Send one request and return the decoded answer (`{"text": ...}` where it is not JSON).

        Raises:
            ApiError: the answer was not a success.
            OSError: the API server could not be reached.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        code, kind, content = self._exchange(method, target, data, content_type, timeout)
        answer: Object = json.loads(content) if "json" in kind and content else {"text": content.decode()}
        if code >= 400:
            status = {"message": answer["text"]} if "text" in answer else answer
            raise ApiError(f"{method} {path}", code, status)
        return answer

    def get(self, path: str, **query: object) -> Object:
        """Read one object, or a list object."""
        return self.request("GET", path, query=query)

    def items(self, path: str, **query: object) -> list[Object]:
        """Read the items of a list."""
        found: list[Object] = self.get(path, **query)["items"]
        return found

    def create(self, path: str, body: Object) -> Object:
        """Create an object in the collection at `path`."""
        return self.request("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        """Put an object in place of the one at `path`."""
        return self.request("PUT", path, body)

    def patch(self, path: str, body: object, kind: str = "merge", **query: object) -> Object:
        """Patch an object; `kind` is merge, strategic, json or apply."""
        return self.request("PATCH", path, body, query=query, content_type=_PATCHES[kind])

    def delete(self, path: str, *, grace_seconds: int | None = None) -> None:
        """Delete an object; one that is gone already is fine."""
        body = None if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        try:
            self.request("DELETE", path, body)
        except ApiError as error:
            if error.code != http.client.NOT_FOUND:
                raise

    def watch(self, path: str, *, timeout: float = 60, **query: object) -> Iterator[Object]:
        """Yield `{"type": ..., "object": ...}` as things change, until `timeout` seconds have passed."""
        asked = {**query, "watch": 1, "timeoutSeconds": max(1, int(timeout))}
        connection = self._connect(timeout + 5)
        try:
            connection.request("GET", f"{path}?{urlencode(asked)}", headers=self._headers("application/json"))
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiError(f"WATCH {path}", response.status, {"message": response.read().decode()})
            for line in response:
                yield json.loads(line)
        finally:
            connection.close()

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """Give the path of an object, or of a collection where no name is given.

        Raises:
            ApiError: the API server does not serve that version.
            KeyError: it serves no such kind.
        """
        base = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        if kind not in self._kinds.get(base, {}):
            served = self.get(base)["resources"]
            self._kinds[base] = {
                one["kind"]: (one["name"], one["namespaced"]) for one in served if "/" not in one["name"]
            }
        plural, namespaced = self._kinds[base][kind]
        place = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return f"{base}{place}/{plural}" + (f"/{name}" if name else "")

    def path_of(self, manifest: Object) -> str:
        """Give the path of the object that a manifest describes, in `default` if it names no namespace."""
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace", "default")
        return self.path(manifest["apiVersion"], manifest["kind"], namespace, metadata["name"])

    def apply(self, manifest: Object) -> Object:
        """Apply one object server-side, as the field manager `test`."""
        return self.patch(self.path_of(manifest), manifest, "apply", fieldManager="test", force="true")

    def _exchange(
        self, method: str, target: str, data: bytes | None, content_type: str, timeout: float
    ) -> tuple[int, str, bytes]:
        """Send over the kept connection, once more over a new one if the kept one had gone stale."""
        kept: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        for connection in (kept, None):
            if connection is None:
                connection = self._local.connection = self._connect(timeout)
            try:
                connection.request(method, target, data, self._headers(content_type))
                response = connection.getresponse()
                return response.status, response.headers.get("Content-Type", ""), response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self._local.connection = None
                if connection is not kept:
                    raise
        raise AssertionError("unreachable")

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self._authority))
        connection = http.client.HTTPSConnection(NODE_ADDRESS, API_PORT, context=context, timeout=timeout)
        plain = self._dial((NODE_ADDRESS, API_PORT), timeout)
        connection.sock = context.wrap_socket(plain, server_hostname=NODE_ADDRESS)
        self._open.add(connection)
        return connection

    def _headers(self, content_type: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": content_type,
            "Accept": "application/json",
        }
