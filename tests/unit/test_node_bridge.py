"""The writer of the NodeBridge beside a scripted API server: what it asks for, and how long it then leaves it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from bridge.daemon import node_bridge
from bridge.daemon.node_bridge import NodeBridge
from bridge.planes.status import Facts, Json, Refusal
from bridge.platform.budget import Budget
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import ApiError, Conflict, Forbidden, NotFound, Unauthorized, Unreachable, error_for
from tests.unit.test_status import state

BRIDGE = "/apis/device-bridge.io/v1alpha1/nodebridges/n"


class Server:
    """Answers what a test puts into `answers`, by (verb, path); an error is raised."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []
        self.answers: dict[tuple[str, str], list[Json | Exception]] = {}

    def expect(self, verb: str, path: str, *answers: Json | Exception) -> None:
        self.answers[verb, path] = list(answers)

    def _answer(self, verb: str, path: str, params: Mapping[str, str] | None = None) -> Json:
        self.asked.append((verb, path, params or {}))
        answer = self.answers[verb, path].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def get(self, path: str) -> Json:
        return self._answer("get", path)

    async def create(self, path: str, body: Json) -> Json:
        return self._answer("create", path)

    async def patch(self, path: str, body: Json, *, kind: str, params: Mapping[str, str]) -> Json:
        assert kind == "apply"
        return self._answer("patch", path, params)


def facts(refusal: Refusal | None) -> Facts:
    return Facts("0.1.0", [state()], refusal=refusal)


def writer(server: Server, budget: Budget | None = None) -> NodeBridge:
    return NodeBridge(cast(KubeApi, server), "n", facts, budget or Budget(), lambda: 1_800_000_000.0)


async def pauses(made: NodeBridge, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> list[float]:
    """Run it until it has paused so often; for how long."""
    slept: list[float] = []
    over = asyncio.Event()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == count:
            over.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(node_bridge.asyncio, "sleep", sleep)
    monkeypatch.setattr("bridge.platform.budget.SPREAD_S", 0.0)
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(10):
            await over.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return slept[1:]


def error(status: int, message: str = "", reason: str = "") -> ApiError:
    body: dict[str, Any] = {"kind": "Status", "reason": reason, "message": message}
    return error_for(status, body, "patch", f"{BRIDGE}/status")


@pytest.mark.parametrize(
    ("trouble", "least", "most"),
    [
        (Unreachable(0, "", "", "patch", BRIDGE), 1.0, 60.0),
        (error(503), 1.0, 60.0),
        (error(500, "etcdserver: leader changed"), 1.0, 60.0),
        (Unauthorized(401, "", "", "patch", BRIDGE), 1.0, 60.0),
        (NotFound(404, "NotFound", "", "patch", BRIDGE), 1.0, 60.0),
        (Forbidden(403, "Forbidden", "", "patch", BRIDGE), 600.0, 600.0),
        (error(422, "Unsupported value"), 600.0, 600.0),
        (error(500, "failed to create typed patch: .status.new: field not declared in schema"), 600.0, 600.0),
    ],
    ids=str,
)
async def test_the_server_is_left_alone_for_as_long_as_it_helps(
    monkeypatch: pytest.MonkeyPatch, trouble: ApiError, least: float, most: float
) -> None:
    server, budget = Server(), Budget()
    server.expect("get", BRIDGE, {"status": {}})
    server.expect("patch", f"{BRIDGE}/status", trouble)
    (pause,) = await pauses(writer(server, budget), monkeypatch, 2)
    assert least <= pause <= most
    assert budget.taken == len(server.asked) == 2, "every request is charged"


async def test_after_a_lost_answer_it_is_read_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.expect("get", BRIDGE, {"status": {}}, {"status": {}})
    server.expect("patch", f"{BRIDGE}/status", Unreachable(0, "", "", "patch", BRIDGE), {})
    await pauses(writer(server), monkeypatch, 3)
    assert [verb for verb, _, _ in server.asked] == ["get", "patch", "get", "patch"]


async def test_a_conflict_is_forced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.expect("get", BRIDGE, {"status": {}})
    taken = 'Apply failed with 1 conflict: conflict with "kubectl" using v1: .status.mode'
    server.expect("patch", f"{BRIDGE}/status", Conflict(409, "Conflict", taken, "patch", BRIDGE), {})
    await pauses(writer(server), monkeypatch, 2)
    assert [params for verb, _, params in server.asked if verb == "patch"] == [
        {"fieldManager": "device-bridge"},
        {"fieldManager": "device-bridge", "force": "true"},
    ]
