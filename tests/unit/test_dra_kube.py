"""The API client says what went wrong and to whom, follows its credentials, and survives gaps."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from dra_v1.follow import Changed, Listed, Lost, follow
from dra_v1.kube import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeApi,
    KubeConfigError,
    NotFound,
    Unauthorized,
    Unreachable,
)
from dra_v1.kube_config import from_kubeconfig, in_cluster
from dra_v1.kube_errors import Target, target
from dra_v1.resource_api import NoResourceApi, ResourceApi
from tests.unit.fake_api import FakeApi, Json, serving

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
OURS = {"fieldSelector": "spec.driver=d,spec.nodeName=n"}


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with serving(FakeApi()) as api:
        yield api


def a_slice(name: str, devices: int = 0) -> Json:
    filler = [{"name": f"device-{n}", "attributes": {"text": {"string": "x" * 60}}} for n in range(devices)]
    return {"metadata": {"name": name}, "spec": {"driver": "d", "nodeName": "n", "devices": filler}}


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/v1/nodes/n", Target("", "nodes", "", "n")),
        ("/api/v1/namespaces/ns/pods", Target("", "pods", "ns")),
        ("/api/v1/namespaces/ns", Target("", "namespaces", "", "ns")),
        ("/apis/g/v1/namespaces/ns/claims/c/status", Target("g", "claims", "ns", "c", "status")),
        ("/apis/g", Target("", "discovery")),
        ("/apis/g/v1", Target("g", "discovery")),
    ],
)
def test_a_path_names_what_an_rbac_rule_names(path: str, named: Target) -> None:
    assert target(path) == named


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, "BadRequest", "m"), Invalid),
        ((401, "Unauthorized", "m"), Unauthorized),
        ((403, "Forbidden", "m"), Forbidden),
        ((404, "NotFound", "m"), NotFound),
        ((409, "Conflict", "m"), Conflict),
        ((409, "AlreadyExists", "m"), AlreadyExists),
        ((410, "Expired", "m"), Gone),
    ],
)
async def test_answers_become_types(
    fake: FakeApi, answer: tuple[int, str, str], kind: type[Exception]
) -> None:
    fake.fail = lambda method, path: answer
    async with KubeApi(fake.url) as api:
        with pytest.raises(kind):
            await api.get("/api/v1/nodes/node1")


async def test_a_missing_right_is_told_with_the_rule_that_would_give_it(fake: FakeApi) -> None:
    fake.fail = lambda method, path: (403, "Forbidden", "User x cannot get resource")
    async with KubeApi(fake.url) as api:
        with pytest.raises(Forbidden) as refused:
            await api.get("/apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/c")
    text = str(refused.value)
    assert "get /apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/c failed: 403 Forbidden" in text
    assert "User x cannot get resource" in text
    assert (
        'the verb "get" on resource "resourceclaims" of API group "resource.k8s.io" in namespace "ns"' in text
    )


async def test_requests_are_counted_by_verb_resource_and_code(fake: FakeApi) -> None:
    seen: list[tuple[str, str, int]] = []
    async with KubeApi(
        fake.url, on_request=lambda verb, what, code, _: seen.append((verb, what, code))
    ) as api:
        await api.list(SLICES, params=OURS)
        stored = await api.create(SLICES, a_slice("a"))
        await api.replace(f"{SLICES}/a", stored)
        with pytest.raises(Conflict):
            await api.delete(f"{SLICES}/a", uid="another")
        await api.delete(f"{SLICES}/a")
        with pytest.raises(NotFound) as missing:
            await api.get(f"{SLICES}/a")
        api.server = "http://127.0.0.1:9"
        with pytest.raises(Unreachable, match="API server runs"):
            await api.get("/api/v1/nodes/n")
    assert not missing.value.unserved
    assert seen == [
        ("list", "resourceslices", 200),
        ("create", "resourceslices", 201),
        ("update", "resourceslices", 200),
        ("delete", "resourceslices", 409),
        ("delete", "resourceslices", 200),
        ("get", "resourceslices", 404),
        ("get", "nodes", 0),
    ]


async def test_a_server_that_does_not_answer_is_unreachable_in_time(fake: FakeApi) -> None:
    fake.hold = asyncio.Event()
    async with KubeApi(fake.url) as api:
        with pytest.raises(Unreachable, match=r"no answer within 0.1 s"):
            await api.get("/api/v1/nodes/node1", timeout_s=0.1)
        fake.hold.set()


async def test_reads_are_repeated_only_where_asked_and_only_where_it_helps(fake: FakeApi) -> None:
    answers: list[tuple[int, str, str] | None] = [
        (503, "ServiceUnavailable", "m"),
        (429, "TooMany", "m"),
        None,
    ]
    fake.fail = lambda method, path: answers.pop(0) if answers else None
    async with KubeApi(fake.url) as api:
        assert (await api.get("/api/v1/nodes/node1", attempts=3))["metadata"]["uid"] == "node-uid"
        fake.requests.clear()
        with pytest.raises(NotFound):
            await api.get("/api/v1/nodes/other", attempts=3)
    assert len(fake.requests) == 1


async def test_a_token_file_is_read_again_when_it_changes(fake: FakeApi, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    async with KubeApi(fake.url, token_file=file) as api:
        await api.get("/api/v1/nodes/node1")
        file.with_suffix(".new").write_text("second, longer")
        file.with_suffix(".new").rename(file)
        await api.get("/api/v1/nodes/node1")
        file.unlink()
        with pytest.raises(Unauthorized, match="cannot read the token file"):
            await api.get("/api/v1/nodes/node1")
    assert fake.headers == ["Bearer first", "Bearer second, longer"]


async def test_a_watch_passes_objects_of_any_size(fake: FakeApi) -> None:
    async with KubeApi(fake.url) as api, aclosing(api.watch(SLICES, params=OURS)) as events:
        first = asyncio.ensure_future(anext(events))
        await fake.until(lambda: fake.watchers == 1)
        fake.store(a_slice("big", devices=4000), "ADDED")
        event = await first
    assert event.type == "ADDED"
    assert len(event.object["spec"]["devices"]) == 4000


@pytest.mark.parametrize("gap", ["410", "ERROR"])
async def test_h34_an_expired_watch_is_told_as_gone(fake: FakeApi, gap: str) -> None:
    fake.watch_answers.append(gap)
    async with KubeApi(fake.url) as api:
        with pytest.raises(Gone):
            async for _ in api.watch(SLICES, params=OURS, resource_version="1"):
                pass


async def test_h34_following_lists_again_after_every_gap(fake: FakeApi) -> None:
    fake.store(a_slice("a"), "ADDED")
    async with KubeApi(fake.url) as api, aclosing(follow(api, SLICES, OURS)) as stream:
        assert isinstance(first := await anext(stream), Listed)
        assert [item["metadata"]["name"] for item in first.items] == ["a"]
        change = asyncio.ensure_future(anext(stream))
        await fake.until(lambda: fake.watchers == 1)
        fake.store(a_slice("b"), "ADDED")
        assert isinstance(seen := await change, Changed)
        assert seen.event.object["metadata"]["name"] == "b"
        fake.watch_answers.append("410")
        fake.end_watches()
        assert isinstance(again := await anext(stream), Listed)
        assert [item["metadata"]["name"] for item in again.items] == ["a", "b"]


async def test_h34_a_watch_that_is_gone_again_and_again_is_listed_ever_more_seldom(
    fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    class Pauses:
        def __init__(self, **limits: float) -> None:
            self._failures = 0

        def next(self) -> float:
            self._failures += 1
            waits.append(self._failures)
            return 0.0

        def reset(self) -> None:
            self._failures = 0

    monkeypatch.setattr("dra_v1.follow.Backoff", Pauses)
    turns: list[int] = []

    async def turn() -> None:
        turns.append(len(fake.requests))

    fake.watch_answers += ["410"] * 4
    async with KubeApi(fake.url) as api, aclosing(follow(api, SLICES, OURS, turn=turn)) as stream:
        for _ in range(5):
            assert isinstance(await anext(stream), Listed)
        assert waits == [1, 2, 3, 4], "a list mends nothing where the watch from it is gone at once"
        assert turns == list(range(9)), "each request waits for its turn"
        change = asyncio.ensure_future(anext(stream))
        await fake.until(lambda: fake.watchers == 1)
        fake.store(a_slice("a"), "ADDED")
        assert isinstance(await change, Changed)
        fake.watch_answers.append("410")
        fake.end_watches()
        assert isinstance(await anext(stream), Listed)
        assert waits == [1, 2, 3, 4, 1], "a watch that tells something stands"


async def test_following_tells_an_outage_and_comes_back(fake: FakeApi) -> None:
    answers: list[tuple[int, str, str]] = [(500, "InternalError", "etcd"), (403, "Forbidden", "no")]
    fake.fail = lambda method, path: answers.pop(0) if answers else None
    async with KubeApi(fake.url) as api, aclosing(follow(api, SLICES, OURS)) as stream:
        kinds = [type(await anext(stream)) for _ in range(3)]
    assert kinds == [Lost, Lost, Listed]


@pytest.mark.parametrize(
    ("served", "chosen"), [(("v1beta1", "v1"), "v1"), (("v1alpha3", "v1beta1"), "v1beta1")]
)
async def test_the_best_served_version_is_chosen(fake: FakeApi, served: tuple[str, ...], chosen: str) -> None:
    fake.versions = served
    async with KubeApi(fake.url) as api:
        assert await ResourceApi(api).version() == chosen


async def test_an_upgraded_cluster_is_asked_for_its_new_version(fake: FakeApi) -> None:
    claim = {"metadata": {"namespace": "ns", "name": "c", "uid": "u"}, "spec": {}}
    fake.versions = ("v1beta1",)
    fake.claims["c"] = {
        **claim,
        "spec": {
            "devices": {
                "requests": [{"name": "r", "deviceClassName": "k"}, {"name": "f", "firstAvailable": [1]}]
            }
        },
    }
    async with KubeApi(fake.url) as api:
        resources = ResourceApi(api)
        old = await resources.get_claim("ns", "c")
        fake.versions = ("v1",)
        fake.claims["c"] = claim
        new = await resources.get_claim("ns", "c")
        fake.versions = ()
        with pytest.raises(NoResourceApi, match="no version at all"):
            await resources.get_claim("ns", "c")
    assert old["spec"]["devices"]["requests"] == [
        {"name": "r", "exactly": {"deviceClassName": "k"}},
        {"name": "f", "firstAvailable": [1]},
    ]
    assert new["apiVersion"] == "resource.k8s.io/v1"


def kubeconfig(tmp_path: Path, user: Json, **cluster: object) -> Path:
    path = tmp_path / "config"
    body = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://1.2.3.4:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(body))
    return path


def test_a_kubeconfig_gives_server_and_credentials(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file")
    skip = {"insecure-skip-tls-verify": True}
    fixed = from_kubeconfig(kubeconfig(tmp_path, {"token": "t"}, **skip))
    assert (fixed.server, fixed.token.current()) == ("https://1.2.3.4:6443", "t")
    assert fixed.tls is not None
    assert not fixed.tls.check_hostname
    filed = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert filed.token.current() == "from a file"
    assert filed.tls is not None
    assert filed.tls.check_hostname


@pytest.mark.parametrize(
    ("user", "cluster", "said"),
    [
        ({"exec": {}}, {}, "exec or auth-provider"),
        ({"client-key-data": "!"}, {}, "client-key-data is not base64"),
        ({"client-key-data": base64.b64encode(b"k").decode()}, {}, "needs both"),
        ({}, {"certificate-authority-data": base64.b64encode(b"junk").decode()}, "cannot be used"),
        ({}, {"server": "1.2.3.4"}, "no usable server"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_why(
    tmp_path: Path, user: Json, cluster: Json, said: str
) -> None:
    with pytest.raises(KubeConfigError, match=said):
        from_kubeconfig(kubeconfig(tmp_path, user, **cluster))


def test_a_missing_context_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KubeConfigError, match="no entry 'there' in its contexts"):
        from_kubeconfig(kubeconfig(tmp_path, {}), "there")
    with pytest.raises(KubeConfigError, match="cannot read the kubeconfig"):
        from_kubeconfig(tmp_path / "missing")


def test_outside_a_pod_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KubeConfigError, match="name a kubeconfig file"):
        in_cluster(tmp_path, {})
