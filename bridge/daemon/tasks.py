"""Work that goes on until the daemon stops; none of it may end unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

from bridge.daemon.errors import Broken


async def until(stop: asyncio.Event, work: Mapping[str, Coroutine[object, object, None]]) -> None:
    """Do the work, by name, until told to stop.

    Raises Broken for work that ends or fails by itself: that is a defect, and to go on would be to go on with what
    was last shown for ever.
    """
    waiting = asyncio.create_task(stop.wait(), name="stop")
    tasks = [asyncio.create_task(one, name=name) for name, one in work.items()]
    try:
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                raise _broken(task)
    finally:
        for one in (waiting, *tasks):
            one.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task and wait for its end; what became of it is not asked."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def done_or(stop: asyncio.Event, task: asyncio.Task[None]) -> bool:
    """Wait for a task, or until told to stop; whether the task is done. Raises what it raised."""

    async def told() -> None:
        await stop.wait()

    waiting = asyncio.create_task(told(), name="stop")
    try:
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(waiting)
    if not task.done():
        return False
    await task
    return True


def _broken(task: asyncio.Task[None]) -> Broken:
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is None:
        return Broken(f"{task.get_name()}: ended by itself")
    text = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
    broken = Broken(f"{task.get_name()}: {text}")
    broken.__cause__ = error
    return broken
