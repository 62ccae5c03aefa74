"""The pure parts of a plan: who asks for a resource, and what else weighs."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.cli.fleet.finding import Finding, Weight, minor
from bridge.cli.fleet.findings import code
from bridge.cli.fleet.workloads import Use, uses

NAME = "power-dev-plugin/dev"
Json = dict[str, Any]


def spec(*asked: int, init: tuple[int, ...] = (), sidecar: int = 0, field: str = "limits") -> Json:
    def container(count: int) -> Json:
        return {"resources": {field: {NAME: str(count)}}} if count else {}

    first: list[Json] = [container(one) for one in init]
    if sidecar:
        first.append({**container(sidecar), "restartPolicy": "Always"})
    return {"containers": [container(one) for one in asked], "initContainers": first}


def made(name: str, spec: Json, owner: tuple[str, str] | None = None, phase: str = "Running") -> Json:
    owners = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else []
    meta = {"name": name, "namespace": "shop", "ownerReferences": owners}
    return {"metadata": meta, "spec": spec, "status": {"phase": phase}}


def template(spec: Json) -> Json:
    return {"template": {"spec": spec}}


def test_pods_are_counted_at_the_owner_of_their_owner() -> None:
    asks = spec(1)
    found = uses(
        {
            "Deployment": [made("web", template(asks))],
            "ReplicaSet": [made("web-1", template(asks), ("Deployment", "web"))],
            "CronJob": [made("nightly", {"jobTemplate": {"spec": template(asks)}})],
            "Job": [made("nightly-1", template(asks), ("CronJob", "nightly")), made("over", template(asks))],
            "Pod": [
                made("web-1-a", asks, ("ReplicaSet", "web-1")),
                made("web-1-b", asks, ("ReplicaSet", "web-1")),
                made("alone", spec(2)),
                made("ended", asks, phase="Succeeded"),
                made("foreign-0", asks, ("CloneSet", "foreign")),
                made("nothing", spec(0)),
            ],
        },
        NAME,
    )
    assert found == [
        Use("CloneSet", "shop", "foreign", 1, 1),
        Use("CronJob", "shop", "nightly", 1, 0),
        Use("Deployment", "shop", "web", 1, 2),
        Use("Pod", "shop", "alone", 2, 1),
    ]
    assert [str(one) for one in found[2:]] == ["Deployment shop/web (2 pods)", "Pod shop/alone"]


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        (spec(1, 2), 3),
        (spec(1, init=(3,)), 3),
        (spec(1, init=(1,), sidecar=2), 3),
        (spec(2, field="requests"), 2),
        (spec(0, 0), 0),
    ],
)
def test_how_many_a_pod_asks_for(asked: Json, count: int) -> None:
    assert sum(one.each for one in uses({"Pod": [made("pod", asked)]}, NAME)) == count


def test_versions() -> None:
    assert [minor("v1.37.1"), minor("1.32.2+k3s1"), minor("unknown"), minor("")] == [37, 32, None, None]


def test_only_what_blocks_fails() -> None:
    ok, warning, blocks = (Finding("x", weight, "") for weight in (Weight.OK, Weight.WARNING, Weight.BLOCKS))
    assert [code([ok]), code([ok, warning]), code([warning, blocks])] == [0, 0, 1]
