"""A claim is read as its driver sees it, or it is said in words why it cannot be used."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dra_v1.claims import (
    AllocatedDevice,
    Claim,
    ClaimError,
    ClaimProblem,
    ClaimRef,
    Consumer,
    decode_claim,
    fetch_claims,
)
from dra_v1.kube import KubeApi
from dra_v1.resource_api import ResourceApi
from tests.unit.fake_api import FakeApi, Json, serving

DRIVER = "acc.example.com"


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with serving(FakeApi()) as api:
        yield api


def result(request: str, device: str, driver: str = DRIVER, **more: object) -> Json:
    return {"request": request, "driver": driver, "pool": "node1", "device": device, **more}


def opaque(source: str, requests: list[str], value: str, driver: str = DRIVER) -> Json:
    return {"source": source, "requests": requests, "opaque": {"driver": driver, "parameters": {"v": value}}}


def body(
    name: str = "c", uid: str = "u", results: list[Json] | None = None, config: list[Json] | None = None
) -> Json:
    allocation = {
        "devices": {
            "results": results if results is not None else [result("r", "acc0")],
            "config": config or [],
        },
        "allocationTimestamp": "2026-01-02T03:04:05Z",
    }
    consumers = [
        {"resource": "pods", "name": "p", "uid": "pod-uid"},
        {"resource": "podgroups", "apiGroup": "scheduling.k8s.io", "name": "g", "uid": "group-uid"},
    ]
    return {
        "metadata": {"namespace": "ns", "name": name, "uid": uid},
        "status": {"allocation": allocation, "reservedFor": consumers},
    }


def decoded(raw: Json) -> Claim:
    claim = decode_claim(raw, DRIVER)
    assert claim is not None
    return claim


def test_results_of_other_drivers_are_not_ours() -> None:
    claim = decoded(
        body(results=[result("r", "gpu0", "gpu.example.com"), result("r/big", "acc1", adminAccess=True)])
    )
    assert claim.results == (AllocatedDevice("r/big", "node1", "acc1", admin_access=True),)
    assert claim.results[0].base_request == "r"


def test_shares_and_conditions_are_kept() -> None:
    raw = result("r", "nx", shareID="id", consumedCapacity={"credits": "4"}, bindingConditions=["ready"])
    (device,) = decoded(body(results=[raw])).results
    assert (device.share_id, device.consumed_capacity, device.binding_conditions) == (
        "id",
        {"credits": "4"},
        ("ready",),
    )


def test_consumers_of_any_kind_the_time_and_the_origin_are_kept() -> None:
    raw = body()
    assert not decoded(raw).extended_resource
    raw["metadata"]["annotations"] = {"resource.kubernetes.io/extended-resource-claim": "true"}
    claim = decoded(raw)
    assert claim.extended_resource
    assert claim.allocated_at == "2026-01-02T03:04:05Z"
    assert claim.consumers == (
        Consumer("pods", "p", "pod-uid"),
        Consumer("podgroups", "g", "group-uid", "scheduling.k8s.io"),
    )


def test_configuration_of_a_main_request_covers_its_subrequests_class_before_claim() -> None:
    config = [
        opaque("FromClaim", ["r"], "claim, main request"),
        opaque("FromClaim", ["r/big"], "claim, this subrequest"),
        opaque("FromClaim", ["r/small"], "another subrequest"),
        opaque("FromClass", [], "class"),
        opaque("FromClaim", [], "another driver", "gpu.example.com"),
        opaque("FromClaim", ["other"], "another request"),
        {"source": "FromClaim", "requests": []},
    ]
    claim = decoded(body(results=[result("r/big", "acc0"), result("other", "acc1")], config=config))
    texts = [[entry["v"] for entry in claim.config_for(one)] for one in claim.results]
    assert texts == [["class", "claim, main request", "claim, this subrequest"], ["class", "another request"]]


async def errors(fake: FakeApi, *refs: ClaimRef) -> dict[str, ClaimError | Claim]:
    async with KubeApi(fake.url, timeout_s=5) as kube:
        return await fetch_claims(ResourceApi(kube), refs, DRIVER)


async def test_h6_a_claim_made_anew_under_its_name_is_not_the_one_asked_for(fake: FakeApi) -> None:
    fake.claims["c"] = body(uid="new")
    found = (await errors(fake, ClaimRef("ns", "c", "old")))["old"]
    assert isinstance(found, ClaimError)
    assert found.problem is ClaimProblem.REPLACED
    assert "ns/c was deleted and re-created" in str(found)
    assert "asks for UID old, the API server has new" in str(found)


async def test_every_claim_gets_its_own_answer(fake: FakeApi) -> None:
    fake.claims = {
        "good": body("good", "good"),
        "waiting": {**body("waiting", "waiting"), "status": {}},
        "foreign": body("foreign", "foreign", [result("r", "gpu0", "gpu.example.com")]),
        "secret": body("secret", "secret"),
        "sick": body("sick", "sick"),
    }
    trouble = {"secret": (403, "Forbidden", "no"), "sick": (422, "Invalid", "odd")}
    fake.fail = lambda method, path: trouble.get(path.rpartition("/")[2])
    names = ("good", "waiting", "foreign", "secret", "sick", "gone")
    found = await errors(fake, *(ClaimRef("ns", name, name) for name in names))
    assert isinstance(found["good"], Claim)
    problems = {uid: one.problem for uid, one in found.items() if isinstance(one, ClaimError)}
    assert problems == {
        "waiting": ClaimProblem.NOT_ALLOCATED,
        "foreign": ClaimProblem.NOT_OURS,
        "secret": ClaimProblem.FORBIDDEN,
        "sick": ClaimProblem.FAILED,
        "gone": ClaimProblem.MISSING,
    }
    assert 'the verb "get" on resource "resourceclaims"' in str(found["secret"])
    assert "does not exist any longer" in str(found["gone"])
    assert "has no device of driver acc.example.com" in str(found["foreign"])


async def test_h33_an_api_server_that_is_away_is_told_as_that() -> None:
    async with KubeApi("http://127.0.0.1:9") as kube:
        resources = ResourceApi(kube)
        found = await fetch_claims(resources, [ClaimRef("ns", "c", "u")], DRIVER, attempts=1)
    assert isinstance(error := found["u"], ClaimError)
    assert error.problem is ClaimProblem.UNREACHABLE
