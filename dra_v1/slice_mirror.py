"""What is stored of one driver's slices on one node, kept current by a watch.

Only reads. A gap ends in a list (H34); an answer to a write of our own may arrive before its event, so the newer
state of an object counts. Slices of other drivers and nodes never get in.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Protocol

from dra_v1.backoff import Backoff
from dra_v1.follow import Changed, Followed, Listed, Lost, Turn, follow
from dra_v1.kube import ApiError, Invalid, Json, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi, slice_to_v1
from dra_v1.slice_plan import Stored, read_slice

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Who wants to hear of it."""

    def slices_changed(self) -> None:
        """Something is stored that was not known."""

    def slice_lost(self) -> None:
        """A slice of ours was deleted, and not by us."""

    def api_lost(self, error: ApiError) -> None:
        """The API server cannot be asked now."""

    def api_missing(self, error: NoResourceApi) -> None:
        """The cluster has no DRA."""


class SliceMirror:
    """The stored slices.

    Attributes:
        stored: by object name.
        taken: names of ours that objects of others have.
        synced: whether `stored` has been listed at all.
        answered: set whenever the API server has given a list; clear it to wait for the next.
    """

    def __init__(
        self,
        api: ResourceApi,
        driver_name: str,
        node_name: str,
        watcher: Watcher,
        recheck_s: float,
        turn: Turn,
    ) -> None:
        self.stored: dict[str, Stored] = {}
        self.taken: set[str] = set()
        self.synced = False
        self.answered = asyncio.Event()
        self._api = api
        self._driver, self._node = driver_name, node_name
        self._watcher = watcher
        self._recheck_s = recheck_s
        self._turn = turn
        self._selector = f"spec.driver={driver_name},spec.nodeName={node_name}"

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff()
        while True:
            try:
                path = await self._api.slices_path()
                stream = follow(self._api.api, path, {"fieldSelector": self._selector}, turn=self._turn)
                async with aclosing(stream):
                    async for found in stream:
                        backoff.reset()
                        await self._take(found)
            except NoResourceApi as error:
                self.synced = False
                self._watcher.api_missing(error)
                await asyncio.sleep(self._recheck_s)
                self._api.forget()
            except Invalid as error:
                # A server that cannot select by driver: we leave out the others ourselves.
                self._selector = f"spec.nodeName={self._node}"
                await self._try_later(error, backoff)
            except ApiError as error:
                self._api.forget()
                await self._try_later(error, backoff)

    async def reread(self, name: str) -> None:
        """Read one slice again, because a write of it was refused."""
        try:
            body = await self._api.get_slice(name)
        except NotFound:
            self.stored.pop(name, None)
            return
        one = self._read(body, "v1")
        if one is None:
            self.taken.add(name)
            self.stored.pop(name, None)
        else:
            self.stored[name] = one

    async def list(self) -> tuple[Stored, ...]:
        """Ask for all of them now; changes nothing here."""
        path = await self._api.slices_path()
        listing = await self._api.api.list(path, params={"fieldSelector": self._selector})
        return self._ours(listing.get("items") or (), await self._api.version())

    def keep(self, answer: Json) -> Stored:
        """Take the answer to a write (in the shape of v1) as stored, unless something newer is known."""
        one = read_slice(answer)
        known = self.stored.get(one.name)
        if known is None or known.uid != one.uid or _newer(one, known):
            self.stored[one.name] = one
        return one

    async def _try_later(self, error: ApiError, backoff: Backoff) -> None:
        self._watcher.api_lost(error)
        await asyncio.sleep(backoff.next())

    async def _take(self, found: Followed) -> None:
        version = await self._api.version()
        match found:
            case Listed(items):
                self.stored = {one.name: one for one in self._ours(items, version)}
                self.synced = True
                self.answered.set()
                self._watcher.slices_changed()
            case Changed(event):
                one = self._read(event.object, version)
                if one is not None:
                    self._take_one(one, event.type == "DELETED")
            case Lost(error):
                self._watcher.api_lost(error)

    def _take_one(self, one: Stored, deleted: bool) -> None:
        known = self.stored.get(one.name)
        if deleted:
            if known is not None and known.uid == one.uid:
                del self.stored[one.name]
                log.info("a slice of ours was deleted; making it again", extra={"slice": one.name})
                self._watcher.slice_lost()
        elif known is None or known.uid != one.uid or _newer(one, known):
            self.stored[one.name] = one
            self._watcher.slices_changed()

    def _ours(self, items: tuple[Json, ...], version: str) -> tuple[Stored, ...]:
        return tuple(one for body in items if (one := self._read(body, version)))

    def _read(self, body: Json, version: str) -> Stored | None:
        spec = body.get("spec") or {}
        if (spec.get("driver"), spec.get("nodeName")) != (self._driver, self._node):
            return None
        return read_slice(slice_to_v1(body, version))


def _newer(one: Stored, than: Stored) -> bool:
    """Whether one state of a slice is newer; versions that are no numbers are taken as they come."""
    try:
        return int(one.resource_version) > int(than.resource_version)
    except ValueError:
        return one.resource_version != than.resource_version
