"""What can go wrong between this process and the API server, as types a caller can decide by.

Every error says what was asked (verb and path), what the server answered and, for missing rights, which
rule is missing. Knows no HTTP client: the client raises these, everything above it sees only these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
"""A JSON object as the API server sends it; typed values begin where it is decoded."""

_VERSIONED = 3


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names, in the words of an RBAC rule.

    Attributes:
        group: API group, empty for the core group.
        resource: plural name; `discovery` for paths that name no resource.
        namespace: namespace, empty for cluster-scoped resources.
        name: object name, empty for a collection.
        subresource: `status` and the like, else empty.
    """

    group: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def rule(self) -> str:
        """The resource as an RBAC rule spells it: `resourceclaims/status`."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


def target(path: str) -> Target:
    """Read an API path: `/apis/resource.k8s.io/v1/namespaces/a/resourceclaims/b` names a ResourceClaim."""
    pieces = [piece for piece in path.split("?", 1)[0].split("/") if piece]
    if pieces[:1] == ["api"]:
        group, rest = "", pieces[2:]
    elif pieces[:1] == ["apis"] and len(pieces) >= _VERSIONED:
        group, rest = pieces[1], pieces[3:]
    else:
        return Target("", "discovery")
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return Target(group, "discovery")
    name, sub = [*rest, "", ""][1:3]
    return Target(group, rest[0], namespace, name, sub)


class ApiError(Exception):
    """The API server did not do what it was asked.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: the machine-readable reason of the server's Status object, empty where it sent none.
        message: the server's own words.
        verb: Kubernetes verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`).
        path: the path asked for.
        retry_after: seconds the server asked to wait, 0 where it did not.
    """

    def __init__(
        self, status: int, reason: str, message: str, verb: str, path: str, retry_after: float = 0.0
    ) -> None:
        super().__init__(status, reason, message, verb, path)
        self.status = status
        self.reason = reason
        self.message = message
        self.verb = verb
        self.path = path
        self.retry_after = retry_after

    def advice(self) -> str:
        """What the reader can do; empty where the server's message says all there is."""
        return ""

    def __str__(self) -> str:
        code = f"{self.status} {self.reason}".strip() if self.status else self.reason
        text = f"{self.verb} {self.path} failed: {code}: {self.message}"
        advice = self.advice()
        return f"{text}; {advice}" if advice else text


class NotFound(ApiError):
    """There is no such object (404), or no such API."""

    @property
    def unserved(self) -> bool:
        """Whether the server does not serve the path at all, rather than lacking one object of it."""
        return self.reason != "NotFound"


class Conflict(ApiError):
    """The object changed since it was read, or a precondition did not hold (409)."""


class AlreadyExists(Conflict):
    """An object of that name exists (409)."""


class Forbidden(ApiError):
    """The caller is known and lacks the right (403)."""

    def advice(self) -> str:
        """Name the RBAC rule that is missing."""
        what = target(self.path)
        where = f' in namespace "{what.namespace}"' if what.namespace else ""
        return (
            f'grant this ServiceAccount the verb "{self.verb}" on resource "{what.rule}" of API group '
            f'"{what.group}"{where} (RBAC), and see that no admission policy forbids it'
        )


class Unauthorized(ApiError):
    """The server does not accept the credentials (401), or they cannot be read."""

    def advice(self) -> str:
        """Point at the credentials."""
        return (
            "check that the token or client certificate is the right one for this cluster and has not expired"
        )


class Gone(ApiError):
    """The resource version asked for is too old (410): list again."""


class Unreachable(ApiError):
    """No answer: no connection, it broke, or the time ran out."""

    def advice(self) -> str:
        """Point at the connection."""
        return "check that the API server runs and can be reached from this node"


class Invalid(ApiError):
    """The server refuses the object or the request as malformed (400, 422)."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
}


def error_for(status: int, body: Json, verb: str, path: str, retry_after: float = 0.0) -> ApiError:
    """The typed error for an answer; `body` is the server's Status object, or empty where it sent none."""
    reason = str(body.get("reason", "")) if body.get("kind") == "Status" else ""
    message = str(body.get("message") or "the server gave no reason")
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(status, ApiError)
    return kind(status, reason, message, verb, path, retry_after)


def retryable(error: BaseException) -> bool:
    """Whether the same read may succeed when it is simply asked again."""
    return isinstance(error, Unreachable) or (
        isinstance(error, ApiError) and (error.status == 429 or error.status >= 500)
    )
