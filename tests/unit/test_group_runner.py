"""A group's planes where a start and a switch of modes open and close them at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bridge.daemon.groups import GroupRunner
from bridge.ledger.holds import Plane
from dra_v1.sockets import SocketError
from tests.unit.rosters import group


class Slow(GroupRunner):
    """Opens nothing, and takes its time.

    Attributes:
        opened, closed: how often.
        begun, go_on: it has begun to open, and may go on.
    """

    def __init__(self) -> None:
        super().__init__(group(), None)  # type: ignore[arg-type]
        self.opened = self.closed = 0
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def _serve_device_plugin(self, stack: contextlib.AsyncExitStack) -> None:
        self.opened += 1
        self.begun.set()
        await self.go_on.wait()
        stack.callback(self._down)

    def _down(self) -> None:
        self.closed += 1


async def test_a_plane_that_two_open_at_once_is_opened_once() -> None:
    runner = Slow()
    both = [asyncio.create_task(runner.open(Plane.DEVICE_PLUGIN)) for _ in range(2)]
    await runner.begun.wait()
    runner.go_on.set()
    await asyncio.gather(*both)
    await runner.close()
    assert (runner.opened, runner.closed) == (1, 1)


async def test_what_is_being_opened_where_a_group_is_closed_is_closed_too_and_nothing_is_opened_after_that() -> (
    None
):
    runner = Slow()
    first = asyncio.create_task(runner.open(Plane.DEVICE_PLUGIN))
    await runner.begun.wait()
    closing = asyncio.create_task(runner.close())
    late = asyncio.create_task(runner.open(Plane.DEVICE_PLUGIN))
    runner.go_on.set()
    await asyncio.gather(first, closing)
    with pytest.raises(SocketError, match="was closed meanwhile"):
        await late
    assert (runner.opened, runner.closed) == (1, 1)
