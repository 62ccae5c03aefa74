"""Whether devices wait for our conditions: by configuration, release, rights, and what the cluster keeps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from bridge.config import Binding as Wish
from bridge.config import Mode, Sharing
from bridge.planes import binding as planes_binding
from bridge.planes.binding import Binding, is_forbidden, wished
from bridge.planes.conditions import FIELDS
from bridge.platform.budget import Budget
from dra_v1.kube import Forbidden, Invalid, KubeApi
from dra_v1.resource_api import ResourceApi
from tests.unit.rosters import group


class Server:
    """Says which release it is and what the client may do, and takes patches.

    Attributes:
        asked: the rights that were asked about.
        patched: path, parameters, content type and body of each patch.
        failures: how many requests are answered 500 at first.
    """

    def __init__(self, minor: str = "37", lacks: Collection[str] = (), version: str = "v1") -> None:
        self.asked: list[str] = []
        self.patched: list[tuple[str, dict[str, str], str, dict[str, Any]]] = []
        self.failures = 0
        self.answered = asyncio.Event()
        self.lacks = set(lacks)
        self._minor, self._version = minor, version

    @asynccontextmanager
    async def api(self) -> AsyncIterator[KubeApi]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(self._tell)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with KubeApi(f"http://127.0.0.1:{runner.addresses[0][1]}") as api:
            yield api
        await runner.cleanup()

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        asyncio.get_running_loop().call_later(0.01, self.answered.set)

    async def _answer(self, request: web.Request) -> web.Response:
        if self.failures:
            self.failures -= 1
            return web.json_response({"kind": "Status", "message": "not now"}, status=500)
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": self._minor})
        if request.method == "PATCH":
            body = await request.json()
            self.patched.append((request.path, dict(request.query), request.content_type, body))
            return web.json_response(body)
        if request.path == "/apis/resource.k8s.io":
            return web.json_response({"versions": [{"version": self._version}]})
        asked = (await request.json())["spec"]["resourceAttributes"]
        what = f"{asked['verb']} {asked['resource']}/{asked['subresource']} {asked.get('name', '')}".strip()
        self.asked.append(what)
        return web.json_response({"status": {"allowed": what not in self.lacks}}, status=201)


STATUS = "patch resourceclaims/status"
DRIVER = "associated-node:patch resourceclaims/driver acc.device-bridge.io"


@asynccontextmanager
async def deciding(server: Server, budget: Budget | None = None) -> AsyncIterator[tuple[Binding, list[bool]]]:
    """A binding that is decided, again and again, and what it told of its changes."""
    changes: list[bool] = []
    made = Binding(group(), lambda: changes.append(made.active))
    async with server.api() as api:
        task = asyncio.create_task(made.decide(api, budget or Budget()))
        async with asyncio.timeout(20):
            await made.decided.wait()
            yield made, changes
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def decided(server: Server) -> tuple[Binding, list[bool]]:
    """A binding after it was first decided, and what it told of its changes."""
    async with deciding(server) as found:
        return found


async def until(server: Server, holds: Callable[[], bool]) -> None:
    """Wait for something that comes of requests; looked at after each."""
    while not holds():
        server.answered.clear()
        await server.answered.wait()


@pytest.mark.parametrize(
    ("mode", "sharing", "wish", "yes"),
    [
        (Mode.DUAL, Sharing.SHARED, Wish.AUTO, True),
        (Mode.DUAL, Sharing.PARTITION, Wish.AUTO, False),
        (Mode.DRA, Sharing.SHARED, Wish.AUTO, False),
        (Mode.DUAL, Sharing.SHARED, Wish.OFF, False),
        (Mode.DUAL, Sharing.PARTITION, Wish.ON, True),
        (Mode.DRA, Sharing.SHARED, Wish.ON, True),
        (Mode.DEVICE_PLUGIN, Sharing.SHARED, Wish.ON, False),
    ],
)
def test_auto_means_where_both_planes_race(mode: Mode, sharing: Sharing, wish: Wish, yes: bool) -> None:
    assert wished(replace(group(), mode=mode, sharing=sharing, binding=wish)) is yes


@pytest.mark.parametrize(
    ("minor", "asked"), [("37", [STATUS, DRIVER]), ("36+", [STATUS, DRIVER]), ("35", [STATUS]), ("33", [])]
)
async def test_each_release_is_asked_for_the_rights_that_it_wants(minor: str, asked: list[str]) -> None:
    server = Server(minor)
    made, _ = await decided(server)
    assert server.asked == asked and made.active is bool(asked)


@pytest.mark.parametrize("lacks", [STATUS, DRIVER])
async def test_a_missing_right_is_named(lacks: str) -> None:
    made, changes = await decided(Server(lacks=[lacks]))
    assert not made.active and made.decided.is_set() and changes == []
    assert "RBAC lacks" in made.trouble and lacks.split()[0] in made.trouble


async def test_a_server_that_cannot_say_is_asked_again_and_nothing_waits_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planes_binding, "AGAIN_S", 0.001)
    server = Server()
    server.failures = 2
    async with deciding(server) as (made, changes):
        assert not made.active and "cannot be told" in made.trouble
        await until(server, lambda: made.active)
        assert made.trouble == "" and changes == [True]


async def test_a_right_that_is_given_later_is_found_and_its_lack_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(planes_binding, "AGAIN_S", 0.001)
    server, budget = Server(lacks=[STATUS]), Budget()
    with caplog.at_level(logging.INFO, "bridge.planes.binding"):
        async with deciding(server, budget) as (made, changes):
            await until(server, lambda: len(server.asked) >= 6)
            assert not made.active and changes == []
            server.lacks.clear()
            await until(server, lambda: made.active)
    assert changes == [True] and made.trouble == ""
    assert budget.taken >= len(server.asked), "each question is within the budget"
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


async def test_a_condition_that_is_forbidden_ends_it_until_the_right_is_there_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planes_binding, "AGAIN_S", 0.001)
    server = Server()
    async with deciding(server) as (made, changes):
        assert made.active
        server.lacks.add(STATUS)
        made.forbidden(Forbidden(403, "Forbidden", "no", "patch", "/x"))
        assert not made.active
        asked = len(server.asked)
        await until(server, lambda: len(server.asked) > asked)
        assert not made.active
        server.lacks.clear()
        await until(server, lambda: made.active)
        assert changes == [True, False, True]


def test_the_right_on_the_driver_is_refused_as_if_the_object_were_wrong() -> None:
    said = (
        'status.devices: Forbidden: changing status.devices requires resource="resourceclaims/driver", '
        'verb="[associated-node:patch arbitrary-node:patch]" permission'
    )
    assert is_forbidden(Invalid(422, "Invalid", said, "patch", "/x"))
    assert is_forbidden(Forbidden(403, "Forbidden", "no", "patch", "/x"))
    assert not is_forbidden(Invalid(422, "Invalid", "status.devices[0].driver: Required", "patch", "/x"))


async def test_where_the_right_on_the_driver_is_lost_the_rule_is_named() -> None:
    made, _ = await decided(Server())
    said = 'changing status.devices requires resource="resourceclaims/driver"'
    made.forbidden(Invalid(422, "Invalid", said, "patch", "/x"))
    assert 'verb "associated-node:patch" on "resourceclaims/driver"' in made.trouble
    assert made.names.reserved.partition("/")[0] in made.trouble.partition("resourceNames")[2]


async def test_h25_what_the_cluster_lacks_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes_binding, "AGAIN_S", 0.001)
    server = Server()
    changes: list[bool] = []
    made = Binding(group(), lambda: changes.append(made.active))
    async with server.api() as api, asyncio.timeout(20):
        task = asyncio.create_task(made.decide(api, Budget()))
        await made.decided.wait()
        made.dropped(FIELDS)
        await task
    assert not made.active and changes == [True, False]


async def test_h25_what_the_cluster_drops_or_forbids_ends_it_once() -> None:
    made, changes = await decided(Server())
    made.dropped(frozenset({"taints"}))
    assert made.active
    made.dropped(FIELDS)
    assert not made.active and "does not keep" in made.trouble
    made.forbidden(Forbidden(403, "Forbidden", "no", "patch", "/x"))
    assert "does not keep" in made.trouble and changes == [True, False]


async def test_a_group_that_does_not_wish_it_asks_nothing() -> None:
    server = Server()
    made = Binding(replace(group(), binding=Wish.OFF), lambda: None)
    async with server.api() as api, asyncio.timeout(5):
        await made.decide(api, Budget())
    assert made.decided.is_set() and not made.active and server.asked == []


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
async def test_a_status_is_applied_in_the_version_that_is_served(version: str) -> None:
    server = Server(version=version)
    async with server.api() as api:
        meta = {"uid": "u", "resourceVersion": "7"}
        await ResourceApi(api).apply_claim_status("ns", "c", meta, {"devices": []}, manager="m/d")
    ((path, params, kind, body),) = server.patched
    assert path == f"/apis/resource.k8s.io/{version}/namespaces/ns/resourceclaims/c/status"
    assert params == {"fieldManager": "m/d", "force": "true"} and kind == "application/apply-patch+yaml"
    assert body["apiVersion"] == f"resource.k8s.io/{version}" and body["metadata"] == {
        "name": "c",
        "namespace": "ns",
        **meta,
    }
