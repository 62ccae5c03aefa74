"""What this daemon may do, asked of the API server before it relies on it."""

from __future__ import annotations

from dataclasses import dataclass

from dra_v1.kube import KubeApi

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True)
class Right:
    """One RBAC rule: a verb on a resource, perhaps on one name only."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        named = f', resourceNames ["{self.name}"]' if self.name else ""
        return f'verb "{self.verb}" on "{self.resource}" of API group "{self.group}"{named}'


async def missing(api: KubeApi, *rights: Right) -> tuple[Right, ...]:
    """Those of the rights that this daemon lacks in all namespaces. Raises ApiError."""
    return tuple([right for right in rights if not await _has(api, right)])


async def _has(api: KubeApi, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    asked = {
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "verb": right.verb,
        "name": right.name,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
    }
    answer = await api.create(_REVIEWS, body)
    return bool((answer.get("status") or {}).get("allowed"))


async def minor_version(api: KubeApi) -> int:
    """The server's minor release: 37 of 1.37. Raises ApiError; ValueError if it does not say one."""
    found = await api.get("/version")
    return int("".join(c for c in str(found.get("minor", "")) if c.isdigit()))
