"""The simulated API server answers as a real one where the daemon can tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.resources import NODE_BRIDGES, PROFILES
from bridge.sandbox.cluster.store import Store
from bridge.sandbox.observe import Observations

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims"
BRIDGES = "/apis/device-bridge.io/v1alpha1/nodebridges"
PODS = "/api/v1/namespaces/default/pods"
Json = dict[str, Any]


class Client:
    """A few lines of HTTP."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.server, self.session = server, session

    async def call(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> Any:
        data = None if body is None else json.dumps(body)
        url = self.server.url + path
        async with self.session.request(method, url, data=data, headers={"Content-Type": kind}) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if is_json else answer.text())

    async def ok(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> Json:
        status, answer = await self.call(method, path, body, kind)
        assert status in (200, 201), answer
        return dict(answer)

    async def watch(self, path: str, count: int) -> list[tuple[str, Json]]:
        """Return the first `count` events of a watch."""
        found: list[tuple[str, Json]] = []
        async with self.session.get(self.server.url + path) as answer:
            while len(found) < count and (line := await asyncio.wait_for(answer.content.readline(), 20)):
                event = json.loads(line)
                found.append((event["type"], event["object"]))
        return found


async def client_of(profile: str) -> AsyncIterator[Client]:
    server = await ApiServer(Registry(Store(), PROFILES[profile]), Observations()).start()
    async with aiohttp.ClientSession() as session:
        yield Client(server, session)
    await server.stop()


@pytest.fixture
async def api() -> AsyncIterator[Client]:
    async for client in client_of("1.37"):
        yield client


@pytest.fixture
async def old() -> AsyncIterator[Client]:
    async for client in client_of("1.32"):
        yield client


@pytest.fixture
async def middle() -> AsyncIterator[Client]:
    async for client in client_of("1.34"):
        yield client


def slice_of(count: int = 1, **device: Any) -> Json:
    devices = [{"name": f"d{i}", **device} for i in range(count)]
    pool = {"name": "n", "generation": 1, "resourceSliceCount": 1}
    return {
        "metadata": {"generateName": "s-"},
        "spec": {"driver": "acc.example.com", "nodeName": "n", "pool": pool, "devices": devices},
    }


async def test_objects_get_uids_versions_and_generated_names(api: Client) -> None:
    made = await api.ok("POST", SLICES, slice_of())
    assert made["metadata"]["name"].startswith("s-") and made["metadata"]["uid"]
    assert made["kind"] == "ResourceSlice" and made["apiVersion"] == "resource.k8s.io/v1"
    path = f"{SLICES}/{made['metadata']['name']}"
    made["spec"]["devices"].append({"name": "more"})
    changed = await api.ok("PUT", path, made)
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert await api.ok("PUT", path, changed) == changed


async def test_a_stale_write_is_a_conflict(api: Client) -> None:
    made = await api.ok("POST", SLICES, slice_of())
    path = f"{SLICES}/{made['metadata']['name']}"
    await api.ok("PUT", path, {**made, "spec": {**made["spec"], "devices": []}})
    made["spec"]["devices"] = [{"name": "other"}]
    status, answer = await api.call("PUT", path, made)
    assert (status, answer["reason"]) == (409, "Conflict")
    assert "please apply your changes to the latest version" in answer["message"]
    status, answer = await api.call("DELETE", path, {"preconditions": {"uid": "other"}})
    assert status == 409
    status, answer = await api.call("GET", f"{SLICES}/none")
    assert (status, answer["reason"], answer["kind"]) == (404, "NotFound", "Status")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (slice_of(129), "Too many: 129: must have at most 128 items"),
        (slice_of(65, taints=[{"key": "a/b", "effect": "NoSchedule"}]), "must have at most 64 items"),
        (slice_of(1, name="Upper"), "RFC 1123 label"),
        (slice_of(2, name="same"), "Duplicate value: 'same'"),
        (slice_of(1, attributes={"a": {"string": "x" * 65}}), "Invalid value"),
        (slice_of(1, attributes={"a": {"int": 1, "bool": True}}), "exactly one value"),
        (slice_of(1, attributes={"version": {"version": "1.2"}}), "Invalid value"),
        (slice_of(1, attributes={f"a{i}": {"int": i} for i in range(33)}), "at most 32"),
        (slice_of(1, taints=[{"key": "a/b", "effect": "Never"}]), "Unsupported value"),
    ],
)
async def test_a_slice_beyond_the_limits_is_invalid(api: Client, body: Json, text: str) -> None:
    status, answer = await api.call("POST", SLICES, body)
    assert (status, answer["reason"]) == (422, "Invalid")
    assert text in answer["message"]


async def test_a_slice_keeps_its_driver_node_and_pool(api: Client) -> None:
    made = await api.ok("POST", SLICES, slice_of())
    made["spec"]["driver"] = "other.example.com"
    status, answer = await api.call("PUT", f"{SLICES}/{made['metadata']['name']}", made)
    assert status == 422 and "field is immutable" in answer["message"]


async def test_lists_and_watches_obey_field_selectors(api: Client) -> None:
    for driver in ("a.example.com", "b.example.com"):
        body = slice_of()
        body["spec"]["driver"] = driver
        await api.ok("POST", SLICES, body)
    found = await api.ok("GET", f"{SLICES}?fieldSelector=spec.driver%3Da.example.com,spec.nodeName%3Dn")
    assert [item["spec"]["driver"] for item in found["items"]] == ["a.example.com"]
    status, _ = await api.call("GET", f"{SLICES}?fieldSelector=spec.pool.name%3Dn")
    assert status == 400


async def test_a_pod_enters_and_leaves_a_selective_watch(api: Client) -> None:
    start = await api.ok("GET", PODS)
    pod = await api.ok("POST", PODS, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main"}]}})
    registry = api.server.registry
    bound = registry.get("pods", "p", "default")
    bound["spec"]["nodeName"] = "n"
    registry.update("pods", bound)
    await api.ok("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 0})
    since = start["metadata"]["resourceVersion"]
    query = f"?watch=true&resourceVersion={since}&fieldSelector=spec.nodeName%3Dn"
    events = await api.watch(PODS + query, 2)
    assert [kind for kind, _ in events] == ["ADDED", "DELETED"]
    assert events[0][1]["metadata"]["uid"] == pod["metadata"]["uid"]
    pending = f"?watch=1&resourceVersion={since}&fieldSelector=spec.nodeName%3D"
    assert [kind for kind, _ in await api.watch(PODS + pending, 2)] == ["ADDED", "DELETED"]


async def test_h34_a_forgotten_version_is_gone_and_a_dropped_watch_ends(api: Client) -> None:
    since = (await api.ok("GET", SLICES))["metadata"]["resourceVersion"]
    await api.ok("POST", SLICES, slice_of())
    api.server.registry.store.compact()
    ((kind, status),) = await api.watch(f"{SLICES}?watch=1&resourceVersion={since}", 1)
    assert (kind, status["code"]) == ("ERROR", 410)
    now = (await api.ok("GET", SLICES))["metadata"]["resourceVersion"]
    api.server.watched.clear()
    watching = asyncio.create_task(api.watch(f"{SLICES}?watch=1&resourceVersion={now}", 1))
    await asyncio.wait_for(api.server.watched.wait(), 20)
    assert api.server.drop_watches() == 1
    assert await watching == []


async def test_a_watch_ends_at_its_timeout_and_may_begin_with_what_is_there(api: Client) -> None:
    await api.ok("POST", SLICES, slice_of())
    events = await api.watch(
        f"{SLICES}?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true"
        "&resourceVersionMatch=NotOlderThan",
        99,
    )
    assert [kind for kind, _ in events] == ["ADDED", "BOOKMARK"]
    assert events[1][1]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_status_is_a_subresource_of_its_own(api: Client) -> None:
    node = await api.ok(
        "POST", "/api/v1/nodes", {"metadata": {"name": "n"}, "status": {"capacity": {"x": "1"}}}
    )
    assert node["status"] == {}
    node["status"] = {"capacity": {"x": "1"}}
    node["metadata"]["labels"] = {"a": "b"}
    told = await api.ok("PUT", "/api/v1/nodes/n/status", node)
    assert told["status"] == {"capacity": {"x": "1"}} and "labels" not in told["metadata"]


async def test_patches_merge_and_applies_own_their_fields(api: Client) -> None:
    claim = {"metadata": {"name": "c"}, "spec": {"devices": {"requests": []}}}
    await api.ok("POST", CLAIMS, claim)
    stored = api.server.registry.get("resourceclaims", "c", "default")
    results = [{"request": "r", "driver": "a.b", "pool": "n", "device": name} for name in ("d0", "d1")]
    stored["status"] = {"allocation": {"devices": {"results": results}}}
    api.server.registry.update("resourceclaims", stored)

    def entry(device: str, kind: str) -> Json:
        return {
            "driver": "a.b",
            "pool": "n",
            "device": device,
            "conditions": [{"type": kind, "status": "True"}],
        }

    apply = "application/apply-patch+yaml"
    path = f"{CLAIMS}/c/status?fieldManager="
    await api.ok("PATCH", path + "one&force=true", {"status": {"devices": [entry("d0", "Ready")]}}, apply)
    await api.ok("PATCH", path + "two&force=true", {"status": {"devices": [entry("d1", "Ready")]}}, apply)
    told = await api.ok(
        "PATCH", path + "one&force=true", {"status": {"devices": [entry("d0", "Held")]}}, apply
    )
    assert [(d["device"], [c["type"] for c in d["conditions"]]) for d in told["status"]["devices"]] == [
        ("d0", ["Held"]),
        ("d1", ["Ready"]),
    ]
    told = await api.ok("PATCH", path + "one&force=true", {"status": {}}, apply)
    assert [d["device"] for d in told["status"]["devices"]] == ["d1"]
    merge = "application/merge-patch+json"
    await api.ok("PATCH", f"{CLAIMS}/c", {"metadata": {"labels": {"a": "b", "c": "d"}}}, merge)
    told = await api.ok("PATCH", f"{CLAIMS}/c", {"metadata": {"labels": {"a": None}}}, merge)
    assert told["metadata"]["labels"] == {"c": "d"}
    status, answer = await api.call(
        "PATCH", path + "x", {"status": {"devices": [entry("none", "Ready")]}}, apply
    )
    assert status == 422 and "must be an allocated device" in answer["message"]


async def test_a_finalizer_holds_an_object(api: Client) -> None:
    await api.ok("POST", CLAIMS, {"metadata": {"name": "c", "finalizers": ["a/b"]}, "spec": {}})
    deleted = await api.ok("DELETE", f"{CLAIMS}/c")
    assert deleted["metadata"]["deletionTimestamp"]
    stored = await api.ok("GET", f"{CLAIMS}/c")
    stored["metadata"]["finalizers"] = []
    await api.ok("PUT", f"{CLAIMS}/c", stored)
    status, _ = await api.call("GET", f"{CLAIMS}/c")
    assert status == 404


async def test_discovery_names_what_is_served(api: Client, old: Client) -> None:
    for client, versions in ((api, ["v1"]), (old, ["v1beta1"])):
        group = await client.ok("GET", "/apis/resource.k8s.io")
        assert [version["version"] for version in group["versions"]] == versions
    status, _ = await old.call("GET", SLICES)
    assert status == 404
    await api.ok("GET", BRIDGES)
    api.server.registry.withdraw(NODE_BRIDGES)
    assert await api.call("GET", BRIDGES) == (404, "404 page not found\n")
    assert await api.call("POST", BRIDGES, {"metadata": {"name": "n"}}) == (404, "404 page not found\n")
    api.server.registry.serve(NODE_BRIDGES)
    await api.ok("GET", BRIDGES)


async def test_an_old_server_wants_device_bodies_wrapped(old: Client) -> None:
    path = "/apis/resource.k8s.io/v1beta1/resourceslices"
    body = slice_of()
    basic = {"attributes": {"a": {"int": 1}}, "capacity": {"c": {"value": "2"}}}
    body["spec"]["devices"] = [{"name": "d0", "basic": basic}]
    made = await old.ok("POST", path, body)
    assert made["spec"]["devices"] == [{"name": "d0", "basic": basic}]
    assert old.server.registry.select("resourceslices")[0]["spec"]["devices"] == [{"name": "d0", **basic}]


async def test_h25_fields_of_a_closed_gate_are_dropped_in_silence(middle: Client) -> None:
    device = {
        "taints": [{"key": "a/b", "effect": "NoSchedule"}],
        "allowMultipleAllocations": True,
        "bindsToNode": True,
        "bindingConditions": ["x"],
        "bindingFailureConditions": ["y"],
        "attributes": {"a": {"int": 1}},
    }
    made = await middle.ok("POST", SLICES, slice_of(1, **device))
    assert made["spec"]["devices"] == [{"name": "d0", "attributes": {"a": {"int": 1}}}]


async def test_faults_are_answered_as_a_real_server_would(api: Client) -> None:
    api.server.forbid("create", "resourceslices")
    status, answer = await api.call("POST", SLICES, slice_of())
    assert (status, answer["reason"]) == (403, "Forbidden")
    api.server.allow("create", "resourceslices")
    api.server.unavailable()
    assert (await api.call("GET", SLICES))[0] == 503
    api.server.unavailable(False)
    await api.server.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await api.call("GET", SLICES)
    await api.server.start()
    await api.ok("POST", SLICES, slice_of())
    assert api.server.requests[("create", "resourceslices")] == 2


async def test_events_have_two_names(api: Client) -> None:
    event = {
        "metadata": {"generateName": "e."},
        "reason": "Refused",
        "note": "why",
        "regarding": {"kind": "Pod", "name": "p"},
    }
    await api.ok("POST", "/apis/events.k8s.io/v1/namespaces/default/events", event)
    found = await api.ok("GET", "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
    assert [item["message"] for item in found["items"]] == ["why"]
    renamed = await api.ok("GET", "/apis/events.k8s.io/v1/namespaces/default/events")
    assert [item["regarding"]["name"] for item in renamed["items"]] == ["p"]


async def test_an_apply_does_not_take_a_field_from_others_unless_it_is_forced(api: Client) -> None:
    await api.ok("POST", BRIDGES, {"metadata": {"name": "n"}, "spec": {}})
    ours = "application/apply-patch+yaml"

    async def apply(mode: str, more: str = "", **other: str) -> tuple[int, Json]:
        path = f"{BRIDGES}/n/status?fieldManager=device-bridge{more}"
        status, answer = await api.call("PATCH", path, {"status": {"mode": mode, **other}}, ours)
        return status, answer

    assert (await apply("dual", phase="Settled"))[1]["status"] == {"mode": "dual", "phase": "Settled"}
    merge = "application/merge-patch+json"
    theirs = f"{BRIDGES}/n/status?fieldManager=kubectl-edit"
    await api.ok("PATCH", theirs, {"status": {"mode": "dra", "version": "7"}}, merge)
    status, answer = await apply("dual")
    assert (status, answer["reason"]) == (409, "Conflict")
    wanted = 'Apply failed with 1 conflict: conflict with "kubectl-edit" using device-bridge.io/v1alpha1: .status.mode'
    assert answer["message"] == wanted
    assert (await apply("dra"))[0] == 200, "what is as we want it is no conflict"
    assert (await apply("dual"))[0] == 409, "and is theirs still"
    status, answer = await apply("dual", "&force=true")
    assert answer["status"] == {"mode": "dual", "version": "7"}, (
        "what we no longer name is gone, theirs stays"
    )
    assert (await apply("dra"))[0] == 200, "it is ours again"


async def test_a_status_is_applied_to_what_is_there(api: Client) -> None:
    kind = "application/apply-patch+yaml"
    path = f"{BRIDGES}/n/status?fieldManager=device-bridge"
    status, answer = await api.call("PATCH", path, {"status": {"mode": "dual"}}, kind)
    assert (status, answer["reason"]) == (404, "NotFound")
    made = await api.ok("POST", BRIDGES, {"metadata": {"name": "n"}, "spec": {}, "status": {"mode": "dra"}})
    assert made["status"] == {}
    applied = await api.ok("PATCH", path, {"status": {"mode": "dual"}}, kind)
    again = await api.ok("PATCH", path, {"status": {"mode": "dual"}}, kind)
    assert again["metadata"]["resourceVersion"] == applied["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("pool=a", ["one"]),
        ("pool==a", ["one"]),
        ("pool!=a", ["three", "two"]),
        ("pool", ["one", "two"]),
        ("!pool", ["three"]),
        ("pool in (a, b),zone notin (x)", ["two"]),
        ("", ["one", "three", "two"]),
    ],
)
async def test_lists_are_selected_by_labels(api: Client, selector: str, names: list[str]) -> None:
    for name, labels in (("one", {"pool": "a", "zone": "x"}), ("two", {"pool": "b"}), ("three", {})):
        await api.ok("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
    found = await api.ok("GET", f"/api/v1/nodes?{urlencode({'labelSelector': selector})}")
    assert [one["metadata"]["name"] for one in found["items"]] == names
    wrong, _ = await api.call("GET", "/api/v1/nodes?labelSelector=a%20b")
    assert wrong == 400


async def test_a_dry_run_shows_what_would_be_made_and_makes_nothing(api: Client, middle: Client) -> None:
    body = {
        "metadata": {"generateName": "x-"},
        "spec": {"extendedResourceName": "vendor.com/x", "selectors": []},
    }
    path = "/apis/resource.k8s.io/v1/deviceclasses"
    made = await api.ok("POST", f"{path}?dryRun=All", body)
    assert (
        made["metadata"]["name"].startswith("x-") and made["spec"]["extendedResourceName"] == "vendor.com/x"
    )
    assert "extendedResourceName" not in (await middle.ok("POST", f"{path}?dryRun=All", body))["spec"]
    assert (await api.ok("GET", path))["items"] == []
    refused, _ = await api.call("DELETE", "/api/v1/nodes/x?dryRun=All")
    assert refused == 400


async def test_access_of_others_is_reviewed_where_one_may_ask(api: Client) -> None:
    spec = {
        "user": "system:serviceaccount:a:b",
        "resourceAttributes": {"verb": "create", "resource": "resourceslices"},
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    assert (await api.ok("POST", path, {"spec": spec}))["status"] == {"allowed": True}
    api.server.forbid("create", "resourceslices")
    assert (await api.ok("POST", path, {"spec": spec}))["status"] == {"allowed": False}
    api.server.forbid("create", "subjectaccessreviews")
    assert (await api.call("POST", path, {"spec": spec}))[0] == 403
