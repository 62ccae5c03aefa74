"""Calls that several callers may wait for: each key is in at most one of them, and giving up waiting ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Flights(Generic[Item, Result]):
    """Batch calls under way, by key.

    Args:
        call: does the work for a batch; by key, a result for every key. It does not raise.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Awaitable[Mapping[str, Result]]]) -> None:
        self._call = call
        self._flying: dict[str, asyncio.Future[Result]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def under_way(self, keys: Iterable[str]) -> dict[str, asyncio.Future[Result]]:
        """The results to come of those keys that are in a call now."""
        return {key: self._flying[key] for key in keys if key in self._flying}

    def board(self, items: Mapping[str, Item]) -> dict[str, asyncio.Future[Result]]:
        """A result to come for every key: of the call it is in, else of one new call for all the others.

        Wait for them with `asyncio.wait`, which cancels none.
        """
        joined = self.under_way(items)
        fresh = {key: item for key, item in items.items() if key not in joined}
        if fresh:
            loop = asyncio.get_running_loop()
            futures: dict[str, asyncio.Future[Result]] = {key: loop.create_future() for key in fresh}
            self._flying.update(futures)
            task = asyncio.create_task(self._fly(list(fresh.values()), futures))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            joined |= futures
        return joined

    async def landed(self, keys: Iterable[str]) -> None:
        """Return when none of the keys is in a call."""
        wanted = list(keys)
        while flying := self.under_way(wanted):
            await asyncio.wait(flying.values())

    async def stop(self) -> None:
        """Cancel every call; who waits for one is cancelled too."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, batch: Sequence[Item], futures: Mapping[str, asyncio.Future[Result]]) -> None:
        try:
            results = await self._call(batch)
            for key, future in futures.items():
                future.set_result(results[key])
        finally:
            for key, future in futures.items():
                del self._flying[key]
                future.cancel()
