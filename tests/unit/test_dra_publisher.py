"""ResourceSlices end up as they are wanted, whatever the kubelet, others and the API server do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from dra_v1.kube import KubeApi
from dra_v1.resource_api import NoResourceApi, ResourceApi
from dra_v1.slice_publisher import SlicePublisher
from dra_v1.slice_rules import PublishError
from dra_v1.slices import Capacity, CounterSet, Pool, RequestPolicy, SliceDevice, Taint
from tests.unit.fake_api import FakeApi, Json, serving, slice_devices, status

DRIVER, NODE = "acc.example.com", "node1"
FIRST = f"00000-{DRIVER}-{NODE}"


@asynccontextmanager
async def publishing(fake: FakeApi, **options: object) -> AsyncIterator[SlicePublisher]:
    options.setdefault("on_status", fake.pulse)
    async with (
        KubeApi(fake.url) as kube,
        SlicePublisher(ResourceApi(kube), DRIVER, NODE, **options) as publisher,  # type: ignore[arg-type]
    ):
        yield publisher


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with serving(FakeApi()) as api:
        yield api


def devices(*numbers: int) -> list[SliceDevice]:
    return [SliceDevice(f"acc{n:03}", attributes={"index": n, "model": "a"}) for n in numbers]


def pool(*numbers: int) -> list[Pool]:
    return [Pool(NODE, devices(*numbers))]


async def test_each_list_and_each_watch_waits_for_its_turn(fake: FakeApi) -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    async with publishing(fake, turn=turn) as publisher:
        await publisher.publish(pool(1))
        await fake.until(lambda: fake.watchers == 1)
        fake.watch_answers.append("410")
        fake.end_watches()
        await fake.until(lambda: sum(1 for kind, _ in fake.requests if kind == "WATCH") == 3)
    slices = [kind for kind, path in fake.requests if path.endswith("/resourceslices")]
    assert turns == slices.count("GET") + slices.count("WATCH") == 5


async def test_devices_are_stored_in_one_slice_owned_by_the_node(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1, 2))
        body = fake.slices[FIRST]
    assert slice_devices(fake) == {FIRST: ["acc001", "acc002"]}
    assert body["spec"]["nodeName"] == NODE
    assert body["spec"]["driver"] == DRIVER
    assert body["spec"]["pool"] == {"name": NODE, "generation": 1, "resourceSliceCount": 1}
    assert body["spec"]["devices"][0]["attributes"] == {"index": {"int": 1}, "model": {"string": "a"}}
    owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "node-uid", "controller": True}
    assert body["metadata"]["ownerReferences"] == [owner]
    assert publisher.status.stored
    assert publisher.status.slices == 1
    assert publisher.status.last_published is not None


async def test_without_devices_there_is_one_empty_slice(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish([])
    assert slice_devices(fake) == {FIRST: []}


async def test_the_same_again_writes_nothing(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1, 2))
        await publisher.publish(pool(1, 2))
    assert fake.writes() == ["POST resourceslices"]


async def test_a_withdrawal_is_one_put_without_a_new_generation(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(*range(200)))
        before = {name: body["metadata"]["resourceVersion"] for name, body in fake.slices.items()}
        fake.requests.clear()
        await publisher.publish(pool(*(n for n in range(200) if n != 70)))
        after = {name: body["metadata"]["resourceVersion"] for name, body in fake.slices.items()}
        assert len(fake.writes()) == 1
        assert [name for name in before if before[name] != after[name]] == [f"00001-{DRIVER}-{NODE}"]
        assert {body["spec"]["pool"]["generation"] for body in fake.slices.values()} == {1}
        await publisher.publish(pool(*range(200)))
    assert len(fake.writes()) == 2
    assert slice_devices(fake)[f"00001-{DRIVER}-{NODE}"] == [f"acc{n:03}" for n in range(64, 128)]


async def test_a_new_publisher_finds_what_the_last_one_stored(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(*(n for n in range(130) if n != 5)))
    stored = slice_devices(fake)
    fake.requests.clear()
    async with publishing(fake) as publisher:
        await publisher.publish(pool(*(n for n in range(130) if n != 5)))
        assert fake.writes() == []
        await publisher.publish(pool(*range(130)))
    assert len(fake.writes()) == 1
    assert {name: set(held) - {"acc005"} for name, held in slice_devices(fake).items()} == {
        name: set(held) for name, held in stored.items()
    }


async def test_h13_slices_that_the_kubelet_wiped_are_back_within_a_second(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(*range(130)))
        await fake.until(lambda: fake.watchers == 1)
        stored = slice_devices(fake)
        fake.wipe()
        started = time.monotonic()
        await fake.until(lambda: slice_devices(fake) == stored)
        assert time.monotonic() - started < 1.0
        assert {body["spec"]["pool"]["generation"] for body in fake.slices.values()} == {1}
        await fake.until(lambda: publisher.status.slices == 3)


async def test_h13_a_slice_comes_back_owned_by_the_node_as_it_is_now(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1))
        await fake.until(lambda: fake.watchers == 1)
        fake.nodes[NODE]["metadata"]["uid"] = "the-node-made-anew"
        fake.wipe()
        await fake.until(lambda: bool(fake.slices))
    assert fake.slices[FIRST]["metadata"]["ownerReferences"][0]["uid"] == "the-node-made-anew"


@pytest.mark.parametrize("gap", ["410", "ERROR"])
async def test_h34_what_a_watch_missed_is_found_by_a_list(fake: FakeApi, gap: str) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1))
        await fake.until(lambda: fake.watchers == 1)
        fake.watch_answers.append(gap)
        fake.end_watches()  # the next watch is told that its version is too old
        fake.slices.clear()  # deleted in between, and no event tells of it
        await fake.until(lambda: FIRST in fake.slices)
        await fake.until(lambda: fake.watchers == 1)
    assert slice_devices(fake) == {FIRST: ["acc001"]}


async def test_foreign_edits_are_repaired(fake: FakeApi) -> None:
    def steal(body: Json) -> None:
        body["spec"]["devices"] = []

    async with publishing(fake) as publisher:
        await publisher.publish(pool(1, 2))
        await fake.until(lambda: fake.watchers == 1)
        fake.edit(FIRST, steal)
        await fake.until(lambda: slice_devices(fake) == {FIRST: ["acc001", "acc002"]})
    assert fake.slices[FIRST]["spec"]["pool"]["generation"] == 1


async def test_what_others_change_behind_our_back_is_read_again_and_replaced(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1))
        fake.slices[FIRST]["metadata"]["resourceVersion"] = fake.bump()  # no event: the PUT meets a conflict
        await publisher.publish(pool(1, 2))
    assert fake.writes() == ["POST resourceslices", f"PUT {FIRST}", f"PUT {FIRST}"]
    assert slice_devices(fake) == {FIRST: ["acc001", "acc002"]}


async def test_slices_of_other_nodes_and_drivers_are_left_alone(fake: FakeApi) -> None:
    for name, spec in {
        "other-node": {"driver": DRIVER, "nodeName": "node2"},
        "other-driver": {"driver": "x.example.com", "nodeName": NODE},
        FIRST: {"driver": DRIVER, "nodeName": "node2"},
    }.items():
        rest = {"pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": []}
        fake.store({"metadata": {"name": name}, "spec": {**spec, **rest}}, "ADDED")
    before = dict(fake.slices)
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1))
    assert {name: fake.slices[name] for name in before} == before
    assert slice_devices(fake)[f"00001-{DRIVER}-{NODE}"] == ["acc001"]  # the first name was taken


async def test_slices_of_a_pool_that_is_no_longer_wanted_go(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish([Pool("old", devices(1))])
        await publisher.publish([Pool("new", devices(1))])
    assert [body["spec"]["pool"]["name"] for body in fake.slices.values()] == ["new"]


async def test_h25_fields_that_the_cluster_drops_are_told_once_and_end_in_no_loop(fake: FakeApi) -> None:
    def without_gates(spec: Json) -> Json:
        plain = [{k: v for k, v in d.items() if k not in ("taints", "bindsToNode")} for d in spec["devices"]]
        return {**spec, "devices": plain}

    fake.keeps = without_gates
    told: list[frozenset[str]] = []
    async with publishing(fake, on_dropped=told.append) as publisher:
        tainted = SliceDevice("a", taints=(Taint("example.com/held"),), binds_to_node=True)
        await publisher.publish([Pool(NODE, [tainted])])
        await publisher.publish([Pool(NODE, [tainted])])
        await publisher.publish([Pool(NODE, [tainted, SliceDevice("b")])])
    assert told == [frozenset({"taints", "bindsToNode"})]
    assert publisher.status.dropped == {"taints", "bindsToNode"}
    assert fake.writes() == ["POST resourceslices", f"PUT {FIRST}"]


async def test_a_device_that_breaks_a_rule_is_left_out_and_reported(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        done = await publisher.publish([Pool(NODE, [SliceDevice("Bad_Name"), SliceDevice("good")])])
        with pytest.raises(PublishError, match="pool Bad Pool cannot be published: name"):
            await publisher.publish([Pool("Bad Pool", [])])
    assert slice_devices(fake) == {FIRST: ["good"]}
    assert [(error.device, error.field) for error in done.rejected] == [("Bad_Name", "name")]
    assert "DNS label" in str(publisher.status.rejected[0])


async def test_missing_rights_are_told_with_the_missing_rule_and_tried_again(fake: FakeApi) -> None:
    fake.fail = lambda method, path: (403, "Forbidden", "no") if method == "POST" else None
    async with publishing(fake) as publisher:
        publishing_now = asyncio.create_task(publisher.publish(pool(1)))
        await fake.until(lambda: "resourceslices" in publisher.status.error)
        assert 'the verb "create" on resource "resourceslices"' in publisher.status.error
        assert not publisher.status.stored
        fake.fail = lambda method, path: None
        await publishing_now
    assert publisher.status.stored
    assert publisher.status.error == ""


async def test_an_api_server_that_comes_back_gets_the_newest_wish_only(fake: FakeApi) -> None:
    fake.fail = lambda method, path: (503, "ServiceUnavailable", "starting") if method == "POST" else None
    async with publishing(fake) as publisher:
        first = asyncio.create_task(publisher.publish(pool(1)))
        await fake.until(lambda: "503" in publisher.status.error)
        second = asyncio.create_task(publisher.publish(pool(1, 2)))
        third = asyncio.create_task(publisher.publish(pool(1, 2, 3)))
        await asyncio.sleep(0)
        fake.fail = lambda method, path: None
        await asyncio.gather(first, second, third)
    stored = [body for body in fake.bodies if len(body["spec"]["devices"]) == 2]
    assert stored == []
    assert slice_devices(fake) == {FIRST: ["acc001", "acc002", "acc003"]}


async def test_an_outage_ends_in_publication(fake: FakeApi) -> None:
    async with (
        KubeApi("http://127.0.0.1:9") as kube,
        SlicePublisher(ResourceApi(kube), DRIVER, NODE, on_status=fake.pulse) as publisher,
    ):
        waiting = asyncio.create_task(publisher.publish(pool(1)))
        await fake.until(lambda: "API server runs" in publisher.status.error)
        kube.server = fake.url
        await waiting
    assert slice_devices(fake) == {FIRST: ["acc001"]}


async def test_without_a_dra_api_publish_says_so_and_looks_again_slowly() -> None:
    async with serving(FakeApi(version="")) as fake, publishing(fake, recheck_s=0.05) as publisher:
        with pytest.raises(NoResourceApi, match="needs one of v1, v1beta2, v1beta1"):
            await publisher.publish(pool(1))
        assert not publisher.status.available
        fake.versions = ("v1",)
        await fake.until(lambda: publisher.status.stored)
    assert slice_devices(fake) == {FIRST: ["acc001"]}


async def test_v1beta1_gets_devices_in_its_own_shape_and_finds_them_again() -> None:
    async with serving(FakeApi(version="v1beta1")) as fake:
        async with publishing(fake) as publisher:
            await publisher.publish(pool(1))
        body = fake.slices[FIRST]
        assert body["apiVersion"] == "resource.k8s.io/v1beta1"
        attributes = {"index": {"int": 1}, "model": {"string": "a"}}
        assert body["spec"]["devices"] == [{"name": "acc001", "basic": {"attributes": attributes}}]
        async with publishing(fake) as publisher:
            await publisher.publish(pool(1))
    assert fake.writes() == ["POST resourceslices"]


async def test_a_server_that_cannot_select_by_driver_is_asked_by_node(fake: FakeApi) -> None:
    real = fake.handle

    async def handle(request: web.Request) -> web.StreamResponse:
        if "spec.driver" in request.query.get("fieldSelector", ""):
            return status(400, "BadRequest", "field label not supported: spec.driver")
        return await real(request)

    fake.handle = handle  # type: ignore[method-assign]
    async with serving(fake), publishing(fake) as publisher:
        await publisher.publish(pool(1))
    assert slice_devices(fake) == {FIRST: ["acc001"]}


async def test_amounts_and_policies_are_compared_as_the_server_spells_them(fake: FakeApi) -> None:
    def spelled(spec: Json) -> Json:
        text = json.dumps(spec).replace('"1024Mi"', '"1Gi"').replace('"1000"', '"1k"')
        spec = json.loads(text)
        for device in spec.get("devices") or ():
            for taint in device.get("taints") or ():
                taint.setdefault("timeAdded", "2026-01-01T00:00:00Z")
        return spec

    fake.keeps = spelled
    policy = RequestPolicy("1", minimum="1", step="1")
    device = SliceDevice(
        "a",
        capacity={"memory": "1024Mi", "credits": Capacity("1000", policy)},
        allow_multiple=True,
        taints=(Taint("example.com/x"),),
    )
    async with publishing(fake) as publisher:
        await publisher.publish([Pool(NODE, [device])])
        await publisher.publish([Pool(NODE, [device])])
        assert fake.writes() == ["POST resourceslices"]
        await publisher.publish([Pool(NODE, [device, SliceDevice("b")])])
    assert fake.bodies[-1]["spec"]["devices"][0]["taints"][0]["timeAdded"] == "2026-01-01T00:00:00Z"
    assert publisher.status.dropped == frozenset()


async def test_counter_sets_stand_in_slices_of_their_own(fake: FakeApi) -> None:
    sets = [CounterSet(f"set{n}", {"units": "4"}) for n in range(9)]
    part = SliceDevice("part", consumes_counters=(CounterSet("set8", {"units": "1"}),))
    async with publishing(fake) as publisher:
        await publisher.publish([Pool(NODE, [part], sets)])
    counts = sorted(len(body["spec"].get("sharedCounters") or ()) for body in fake.slices.values())
    assert counts == [0, 1, 8]
    assert {body["spec"]["pool"]["resourceSliceCount"] for body in fake.slices.values()} == {3}


async def test_good_bye_deletes_our_slices_only(fake: FakeApi) -> None:
    async with publishing(fake) as publisher:
        await publisher.publish(pool(1))
    async with KubeApi(fake.url) as kube:
        assert await SlicePublisher(ResourceApi(kube), DRIVER, NODE).delete_all() == 1
    assert fake.slices == {}


async def test_publish_on_a_stopped_publisher_does_not_hang(fake: FakeApi) -> None:
    async with KubeApi(fake.url) as kube:
        with pytest.raises(RuntimeError, match="not started"):
            await SlicePublisher(ResourceApi(kube), DRIVER, NODE).publish(pool(1))
