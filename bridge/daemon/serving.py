"""All groups as they run: one that cannot be served is refused and tried again, the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from bridge.config import Group
from bridge.daemon.errors import StartError
from bridge.daemon.files import GroupFiles
from bridge.daemon.groups import Context, GroupRunner
from bridge.daemon.tasks import until
from bridge.ledger.holds import Plane
from bridge.platform.cdi import CdiError
from bridge.platform.pulse import Pulse
from dra_v1.sockets import SocketError

RETRY_S = 30.0
"""Between two tries of a group that was refused: what stands in its way is somebody else's to remove."""

log = logging.getLogger(__name__)


class NotServed(Exception):
    """A group that is refused as a whole; the text says why."""


class Serving:
    """Serves the groups while the context lasts: what is held at once, what is free from `offer` on.

    Both raise StartError if not one group can be served.

    Attributes:
        changed: rung when a group that was served is refused, and when one that was refused is served after all.
    """

    def __init__(self, groups: Sequence[Group], context: Context, files: GroupFiles) -> None:
        self._groups = groups
        self._context = context
        self._files = files
        self._stack = contextlib.AsyncExitStack()
        self._runners: dict[str, GroupRunner] = {}
        self._refused: dict[str, str] = {}
        self.changed = Pulse()

    async def __aenter__(self) -> Self:
        async with self._stack:
            for group in self._groups:
                self._context.checks.add(f"group {group.name}", partial(self._trouble, group.name))
                await self._begin(group)
            self._check()
            self._stack = self._stack.pop_all()
        return self

    async def offer(self) -> None:
        """Offer what is free, on both planes, once the rebuild is done."""
        for group in self._groups:
            if group.name in self._runners:
                await self._offer(group)
        self._check()

    def runner(self, group: str) -> GroupRunner | None:
        """A group as it runs; None while it is refused."""
        return self._runners.get(group)

    async def open(self, group: Group, plane: Plane) -> None:
        """Serve one more plane of a group. Raises SocketError, CdiError; NotServed while none of it is served."""
        runner = self._runners.get(group.name)
        if runner is None:
            raise NotServed(f"group {group.name} is not served: {self._refused.get(group.name, '')}")
        if plane is Plane.DRA:
            await self._restore(group)
        await runner.open(plane)
        runner.reconsider()

    def _check(self) -> None:
        if not self._runners:
            raise StartError("; ".join(self._refused.values()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def watch(self) -> None:
        """Try refused groups again, until cancelled. Raises Broken if a served one ended by itself."""
        await until(asyncio.Event(), {f"group {group.name}": self._keep(group) for group in self._groups})

    async def _keep(self, group: Group) -> None:
        while group.name not in self._runners:
            await asyncio.sleep(RETRY_S)
            await self._begin(group)
            if group.name in self._runners:
                await self._offer(group)
        await self._runners[group.name].watch()

    async def _begin(self, group: Group) -> None:
        try:
            await self._restore(group)
            runner = await self._stack.enter_async_context(GroupRunner(group, self._context))
        except (SocketError, CdiError) as error:
            self._refuse(group, error)
            return
        self._runners[group.name] = runner

    async def _restore(self, group: Group) -> None:
        """Write its CDI files. Raises CdiError if it cannot do without."""
        missing = await self._files.restore([self._context.rosters.of(group.name)])
        if group.name in missing:
            raise CdiError(missing[group.name])

    async def _offer(self, group: Group) -> None:
        runner = self._runners[group.name]
        try:
            await runner.offer()
        except SocketError as error:
            del self._runners[group.name]
            await runner.close()
            self._refuse(group, error)
            self.changed.ring()
            return
        if self._refused.pop(group.name, None) is not None:
            log.info("group served after all", extra={"group": group.name})
        self.changed.ring()

    def _refuse(self, group: Group, error: Exception) -> None:
        if str(error) != self._refused.get(group.name):
            log.error(
                "group refused, it is tried again",
                extra={"group": group.name, "error": str(error), "every_s": RETRY_S},
            )
        self._refused[group.name] = str(error)

    def _trouble(self, group: str) -> str:
        return self._refused.get(group, "")
