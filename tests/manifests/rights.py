"""The rights that the manifests give, pair by pair of verb and resource, and a cluster in which one of them is missing.

Nothing is listed by hand: what the ClusterRoles say is what there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tests.cluster import Cluster
from tests.manifests.builds import KUSTOMIZE, Object, read

FILES = tuple(KUSTOMIZE / "base" / name for name in ("rbac.yaml", "driver-rbac.yaml"))
ACCOUNT = "device-bridge"
USER = f"system:serviceaccount:{ACCOUNT}:{ACCOUNT}"

LIMIT_S = 10.0
"""The API server's authorizer hears of a changed role by a watch of its own."""

_SUBJECT_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A verb on a resource.

    Attributes:
        role: the ClusterRole that gives it.
        group, resource, verb: as a rule has them.
        named: whether the rule is for objects of some names only.
    """

    role: str
    group: str
    resource: str
    verb: str
    named: bool

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def is_named_in(self, text: str) -> bool:
        """Whether a text says which rule is missing, so that somebody can add it."""
        return bool(
            re.search(rf'verb "{re.escape(self.verb)}" on (resource )?"{re.escape(self.resource)}"', text)
        )


def pairs() -> list[Pair]:
    """Every pair that the shipped ClusterRoles give."""
    return [
        Pair(role["metadata"]["name"], group, resource, verb, "resourceNames" in rule)
        for role in _roles()
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def _roles() -> list[Object]:
    return [one for path in FILES for one in read(path) if one["kind"] == "ClusterRole"]


def _key(pair: Pair | None) -> tuple[str, ...]:
    return () if pair is None else (pair.role, pair.group, pair.resource, pair.verb)


class Rights:
    """The rights in one cluster.

    Args:
        cluster: where the account is.
        drivers: the names for which rules of some names are, in place of those of the manifests.
    """

    def __init__(self, cluster: Cluster, drivers: Sequence[str]) -> None:
        self._cluster = cluster
        self._drivers = list(drivers)

    def give(self) -> None:
        """All of them, as they are shipped; returns when the API server goes by them."""
        self._apply(None)
        self._until(pairs(), allowed=True)

    def take(self, pair: Pair) -> None:
        """All but one; returns when the API server goes by them."""
        self._apply(pair)
        self._until([pair], allowed=False)

    def _apply(self, missing: Pair | None) -> None:
        for role in deepcopy(_roles()):
            name = role["metadata"]["name"]
            role["rules"] = [
                {**rule, "apiGroups": [group], "resources": [resource], "verbs": verbs, **self._names(rule)}
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                if (verbs := [v for v in rule["verbs"] if (name, group, resource, v) != _key(missing)])
            ]
            self._cluster.apply(role)

    def _names(self, rule: Object) -> Object:
        return {"resourceNames": self._drivers} if "resourceNames" in rule else {}

    def _until(self, wanted: Iterable[Pair], *, allowed: bool) -> None:
        for pair in wanted:
            names = self._drivers if pair.named else [""]
            for name in names:
                self._cluster.wait_for(
                    lambda pair=pair, name=name: self._has(pair, name) is allowed,  # type: ignore[misc]
                    LIMIT_S,
                    f"the right to {pair} to be {'there' if allowed else 'gone'}",
                )

    def _has(self, pair: Pair, name: str) -> bool:
        resource, _, subresource = pair.resource.partition("/")
        asked: dict[str, Any] = {
            "group": pair.group,
            "resource": resource,
            "subresource": subresource,
            "verb": pair.verb,
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": USER, "resourceAttributes": {k: v for k, v in asked.items() if v}},
        }
        return bool(self._cluster.api.create(_SUBJECT_REVIEWS, review)["status"]["allowed"])
