"""The own Node: what is read of it, and when it counts as unreadable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from bridge.daemon import own_node
from bridge.daemon.own_node import OwnNode
from bridge.platform.budget import Budget
from dra_v1.follow import Followed, Listed, Lost
from dra_v1.kube import ApiError, Forbidden

RESOURCE = "device-bridge.io/acc"
AWAY = ApiError(0, "", "connection reset", "watch", "/api/v1/nodes")


class Script:
    """What following the Node tells, as a test says it."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[Followed] = asyncio.Queue()
        self.taken = asyncio.Event()

    async def follow(self, api: Any, path: str, params: Any, *, keep: Any) -> AsyncGenerator[Followed, None]:
        while True:
            found = await self.news.get()
            yield Listed(tuple(map(keep, found.items))) if isinstance(found, Listed) else found
            self.taken.set()

    async def say(self, *news: Followed) -> None:
        """Return when it was taken."""
        for one in news:
            self.taken.clear()
            self.news.put_nowait(one)
            await self.taken.wait()


def listed(amount: object = "2") -> Listed:
    return Listed(({"metadata": {"name": "n"}, "status": {"allocatable": {RESOURCE: amount}}},))


def lost(error: ApiError = AWAY) -> Lost:
    return Lost(error, 0.0)


@contextlib.asynccontextmanager
async def following(script: Script, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnNode]:
    monkeypatch.setattr("bridge.platform.budget.SPREAD_S", 0.0)
    monkeypatch.setattr(own_node, "follow", script.follow)
    node = OwnNode("n", [RESOURCE], object(), Budget())  # type: ignore[arg-type]
    task = asyncio.create_task(node.run())
    try:
        async with asyncio.timeout(10):
            yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_that_breaks_once_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    async with following(script, monkeypatch) as node:
        await script.say(listed())
        rung = []
        monkeypatch.setattr(node.changed, "ring", lambda: rung.append(node.trouble))
        for _ in range(3):
            await script.say(lost(), listed())
        assert rung == [] and node.trouble == ""


async def test_a_second_failure_in_a_row_is(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    async with following(script, monkeypatch) as node:
        await script.say(listed(), lost(), lost())
        assert "connection reset" in node.trouble and node.view is not None
        await script.say(listed())
        assert node.trouble == ""


async def test_so_is_one_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_node, "GAP_S", 0.01)
    script = Script()
    async with following(script, monkeypatch) as node:
        await script.say(listed())
        with node.changed.listen() as news:
            await script.say(lost())
            await news.wait()
        assert "connection reset" in node.trouble


@pytest.mark.parametrize("before", [(), (listed(),)])
async def test_a_missing_right_is_trouble_at_once_and_so_is_a_node_that_was_never_read(
    before: tuple[Followed, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Forbidden(403, "", "may not", "watch", "/api/v1/nodes") if before else AWAY
    script = Script()
    async with following(script, monkeypatch) as node:
        await script.say(*before)
        with node.changed.listen() as news:
            script.news.put_nowait(lost(error))
            await news.wait()
        assert node.trouble


@pytest.mark.parametrize(
    ("amount", "read"),
    [
        ("2", {RESOURCE: 2}),
        (3, {RESOURCE: 3}),
        ("2k", {RESOURCE: 2000}),
        ("1e3", {RESOURCE: 1000}),
        ("1Ki", {RESOURCE: 1024}),
        ("500m", {RESOURCE: 1}),
        ("many", {}),
        (None, {}),
    ],
)
async def test_an_amount_is_any_quantity_and_what_is_none_is_absent(
    amount: object, read: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script()
    async with following(script, monkeypatch) as node:
        await script.say(listed(amount))
        assert node.view is not None and node.view.allocatable == read
