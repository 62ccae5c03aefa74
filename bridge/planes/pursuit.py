"""Following one claim: look at it, then hear of its changes, until there is nothing left to do about it.

The rim around one claim: who decides what a look means is `bridge.planes.early_word`. A watch is on the claim's own
name, and there are few; where there is none, the claim is read by GET with growing pauses (design 2, cluster scale).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from bridge.planes.words import Key
from bridge.platform.budget import Budget
from dra_v1.backoff import Backoff
from dra_v1.kube import ApiError, Forbidden, Json, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi

log = logging.getLogger(__name__)

WATCHES = 32

AGAIN_S, AGAIN_LONGEST_S = 10.0, 300.0
"""Watches that are forbidden are tried again after the first, then ever more seldom."""

LONGEST_S = 60.0
GRACE_S = 5.0
"""A bound pod's claim is prepared within so long as a rule: until then no watch is begun for it."""

SILENT_S = 2.0
"""A watch of a claim that is there begins with it; after so long without, it is read."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a claim.

    Attributes:
        body: the claim in the shape of v1, None if there is none of that name.
        read: it was read just now, so it is proof; else it was heard of.
    """

    body: Json | None
    read: bool


class Watches:
    """The watches on single claims that there may be at once.

    Attributes:
        open: how many there are; whoever begins one counts it before anybody else can look.
        trouble: why there can be none; empty while there can.
    """

    def __init__(self, resources: ResourceApi, budget: Budget) -> None:
        self.open = 0
        self.trouble = ""
        self._resources, self._budget = resources, budget
        self._refusals = Backoff(AGAIN_S, AGAIN_LONGEST_S, min(1.0, AGAIN_S))
        self._again_at = 0.0
        self._unreadable = False

    @property
    def free(self) -> bool:
        """Whether one more may be begun; while they are forbidden, one now and then, to see whether they still are."""
        if self.trouble:
            return not self.open and asyncio.get_running_loop().time() >= self._again_at
        return self.open < WATCHES

    async def feed(self, key: Key, heard: Callable[[Json | None], None], silent: Callable[[], None]) -> None:
        """Tell how a claim is now, and of each change, until cancelled or watches turn out to be forbidden.

        `silent` is called where a watch does not begin with the claim: there may be none of that name any longer.
        """
        backoff = Backoff(max_s=30.0)
        while True:
            try:
                await self._feed(key, heard, silent)
                backoff.reset()
                self._back()
            except (Forbidden, NotFound) as error:
                self._forbid(error)
                return
            except (ApiError, NoResourceApi) as error:
                log.info("a claim's watch broke", extra={"claim": "/".join(key), "error": str(error)})
            await asyncio.sleep(backoff.next())

    async def _feed(self, key: Key, heard: Callable[[Json | None], None], silent: Callable[[], None]) -> None:
        """One watch. Without a resource version it begins with the claim as it is, so no gap matters (H34)."""
        await self._budget.take()
        path = await self._resources.claims_path(key[0])
        span = random.randint(240, 420)  # noqa: S311  not a secret
        selector = {"fieldSelector": f"metadata.name={key[1]}"}
        timer = asyncio.get_running_loop().call_later(SILENT_S, silent)
        try:
            async with aclosing(self._resources.api.watch(path, params=selector, timeout_s=span)) as events:
                async for event in events:
                    if event.type == "BOOKMARK":
                        continue
                    timer.cancel()
                    self._back()
                    gone = event.type == "DELETED"
                    heard(None if gone else await self._resources.claim_event(event.object))
        finally:
            timer.cancel()

    def unread(self, key: Key, error: ApiError | NoResourceApi) -> None:
        """A claim could not be read. That a right is missing is said once, and not of each claim and look."""
        missing = isinstance(error, Forbidden)
        level = logging.WARNING if missing and not self._unreadable else logging.INFO
        log.log(level, "a claim cannot be read now", extra={"claim": "/".join(key), "error": str(error)})
        self._unreadable = self._unreadable or missing

    def read(self) -> None:
        """A claim could be read: should that end, it is said again."""
        self._unreadable = False

    def _forbid(self, error: ApiError) -> None:
        if not self.trouble:
            log.warning("no watches on claims, they are asked for instead", extra={"error": str(error)})
        self.trouble = str(error)
        self._again_at = asyncio.get_running_loop().time() + self._refusals.next()

    def _back(self) -> None:
        """A watch stood: whatever was wrong with them is over."""
        if self.trouble:
            log.info("claims are watched again")
        self.trouble = ""
        self._refusals.reset()


class Pursuit:
    """One claim that is followed.

    Args:
        key: the claim.
        wanted: whether it still has to be followed.
        hurried: whether somebody waits for what becomes of it: then it is watched at once.
        seen: told of each look; whether nothing failed.
    """

    def __init__(
        self,
        key: Key,
        resources: ResourceApi,
        budget: Budget,
        watches: Watches,
        *,
        wanted: Callable[[], bool],
        hurried: Callable[[], bool],
        seen: Callable[[Look], Awaitable[bool]],
    ) -> None:
        self.key = key
        self._resources, self._budget, self._watches = resources, budget, watches
        self._wanted, self._hurried, self._seen = wanted, hurried, seen
        self._news = asyncio.Event()
        self._look = True
        self._heard: Look | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._pauses = Backoff(first_s=1.0, max_s=LONGEST_S)
        self._patience = GRACE_S
        self._fine = True

    def wake(self, *, look: bool) -> None:
        """Something changed around the claim; `look`: read it again."""
        self._look = self._look or look
        self._pauses.reset()
        self._news.set()

    @property
    def unheard(self) -> bool:
        """Whether there was news of the claim, or reason to look again, that no look has answered."""
        return self._look or self._heard is not None

    async def run(self) -> None:
        """Follow until it is not wanted any longer."""
        try:
            while True:
                if not self._wanted():
                    await self._unfeed()
                    if not self._wanted():  # meanwhile it may have become so
                        return
                fine = await self._turn()
                if self._wanted():
                    await self._wait(fine)
        finally:
            await self._unfeed()

    async def _turn(self) -> bool:
        """Look at the claim if there is reason to; whether nothing failed."""
        heard, self._heard = self._heard, None
        self._news.clear()
        if heard is not None and not self._look:
            self._fine = await self._seen(heard)
            return self._fine
        if not self._look or self._begins_with_watch():
            return self._fine  # what failed at the last look is still to be done
        self._look = False
        try:
            await self._budget.take()
            body = await self._resources.find_claim(*self.key)
        except (ApiError, NoResourceApi) as error:
            self._look = True
            self._watches.unread(self.key, error)
            return False
        self._watches.read()
        self._fine = await self._seen(Look(body, read=True))
        return self._fine

    def _begins_with_watch(self) -> bool:
        """Where a watch is due anyway, its first event is the look."""
        if self._feeder is None and self._hurried() and self._watches.free:
            self._look = False
            self._feed()
            return True
        return False

    def _feed(self) -> None:
        self._watches.open += 1
        self._feeder = asyncio.create_task(
            self._watches.feed(self.key, self._hear, lambda: self.wake(look=True)),
            name=f"watch of claim {'/'.join(self.key)}",
        )
        self._feeder.add_done_callback(self._watch_over)

    async def _unfeed(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait([self._feeder])

    def _watch_over(self, task: asyncio.Task[None]) -> None:
        self._feeder = None
        self._watches.open -= 1
        if not task.cancelled():
            self.wake(look=True)

    def _hear(self, body: Json | None) -> None:
        self._heard = Look(body, read=False)
        self._news.set()

    async def _wait(self, fine: bool) -> None:
        """Until there is news, or time for another look."""
        patient = fine and self._patience > 0 and not self._hurried()
        if fine and not patient and self._feeder is None and self._watches.free:
            self._feed()
        if patient:
            pause: float | None = self._patience
        else:
            pause = None if fine and self._feeder is not None else self._pauses.next()
        try:
            async with asyncio.timeout(pause):
                await self._news.wait()
        except TimeoutError:
            if patient:
                self._patience = 0.0  # a watch begins, and shows the claim as it is
            else:
                self._look = True
