"""Keeps the ResourceSlices of one driver on one node as they are wanted; the rim around `dra_v1.slice_plan`.

Follows its own slices, so that what the kubelet wipes is back at once (H13), what others change is repaired, and
a gap in the watch ends in a list (H34). Writes only differences and only the newest wish. Slices of other nodes
and drivers are never touched. Stopping leaves the slices: they are the kubelet's to remove.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from dra_v1.backoff import Allowance, Backoff
from dra_v1.follow import Turn, at_once
from dra_v1.kube import ApiError, Conflict, Json, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi
from dra_v1.slice_mirror import SliceMirror
from dra_v1.slice_plan import (
    SMALL_LIMIT,
    Create,
    Delete,
    Layout,
    Plan,
    Replace,
    Scope,
    WantedPool,
    Write,
    plan,
)
from dra_v1.slice_rules import PublishError, check_driver_name, check_pool
from dra_v1.slices import Encoded, Pool, SliceDevice, dropped_fields, encode_counters, encode_device

log = logging.getLogger(__name__)

RECHECK_S = 300.0
"""How often a cluster without DRA is asked whether it has it now."""

_ROUNDS = 6  # plans in a row that other writers may spoil before we wait


@dataclass(frozen=True, slots=True)
class PublisherStatus:
    """How publication stands.

    Attributes:
        stored: whether the API server has what was last offered.
        error: why not, for people; empty while there is nothing to report.
        last_published: Unix time at which it was last known to be so.
        rejected: devices left out, and why.
        dropped: fields that this cluster does not keep (H25).
        writes: requests made, by `create`, `update`, `delete`.
        slices: how many slices are stored.
        available: False while the cluster has no DRA API.
        foreign: what somebody else last published under this driver's name, for people; removed since.
        foreign_at: when, in monotonic seconds.
    """

    stored: bool = False
    error: str = ""
    last_published: float | None = None
    rejected: tuple[PublishError, ...] = ()
    dropped: frozenset[str] = frozenset()
    writes: Counter[str] = field(default_factory=Counter)
    slices: int = 0
    available: bool = True
    foreign: str = ""
    foreign_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` achieved: everything but the rejected devices is stored."""

    rejected: tuple[PublishError, ...]
    at: float


class SlicePublisher:
    """Publishes pools of devices.

    Args:
        api: the resource API; several publishers may share one.
        driver_name, node_name: whose slices.
        node_uid: UID of the Node, for the owner reference; read from the API server if not given.
        devices_per_slice: 64 leaves room for taints at any time; up to 128 where there never are any.
        on_dropped: called with field names when the server turns out not to keep them: plan without them.
        on_status: called with every new status.
        recheck_s: see `RECHECK_S`.
        turn: awaited before each list and watch, see `follow`.
    """

    def __init__(
        self,
        api: ResourceApi,
        driver_name: str,
        node_name: str,
        *,
        node_uid: str | None = None,
        devices_per_slice: int = SMALL_LIMIT,
        on_dropped: Callable[[frozenset[str]], None] | None = None,
        on_status: Callable[[PublisherStatus], None] | None = None,
        recheck_s: float = RECHECK_S,
        turn: Turn = at_once,
    ) -> None:
        check_driver_name(driver_name)
        self.driver_name, self.node_name = driver_name, node_name
        self.status = PublisherStatus()
        self._api = api
        self._fixed_owner = node_uid
        self._owner = node_uid or ""
        self._on_dropped = on_dropped
        self._on_status = on_status
        self._mirror = SliceMirror(api, driver_name, node_name, self, recheck_s, turn)
        self._scope = Scope(driver_name, node_name, "", devices_per_slice)
        self._adopted: dict[str, tuple[str, str]] = {}
        self._layouts: dict[str, Layout] = {}
        self._wanted: Sequence[WantedPool] | None = None
        self._encoded: dict[tuple[str, str], tuple[SliceDevice, Encoded]] = {}
        self._version = 0
        self._confirmed = 0
        self._repairs = Allowance()
        self._wake = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._defect: BaseException | None = None
        self._broke = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(self) -> None:
        """Begin to follow and to write."""
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._mirror.run(), name=f"slices of {self.driver_name}: follow"),
                asyncio.create_task(self._write(), name=f"slices of {self.driver_name}: write"),
            ]
            for task in self._tasks:
                task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Stop; the slices stay."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_waiters(RuntimeError("the slice publisher was stopped"))

    async def wait(self) -> None:
        """Wait until publication ends by itself, which only a defect can do: for ever, else. Raises the defect."""
        await self._broke.wait()
        if self._defect is not None:
            raise self._defect

    def offer(self, pools: Sequence[Pool]) -> tuple[PublishError, ...]:
        """Say what is wanted from now on, without waiting; why which devices cannot be published.

        Raises:
            PublishError: a pool as a whole cannot be published; what was offered before stays wanted.
        """
        good = {device.name: device for device, _ in self._encoded.values()}
        checked = [check_pool(pool, good) for pool in pools or [Pool(self.node_name)]]
        rejected = tuple(error for one in checked for error in one.rejected)
        for error in rejected:
            if str(error) not in {str(known) for known in self.status.rejected}:
                log.error("a device cannot be published", extra={"error": str(error), "device": error.device})
        self._wanted = [self._encode(one.pool) for one in checked]
        self._version += 1
        self._tell(replace(self.status, stored=False, rejected=rejected))
        self._wake.set()
        return rejected

    async def publish(self, pools: Sequence[Pool]) -> Published:
        """Offer, and return when the API server has it (or something offered since).

        Waits as long as the API server is away or refuses: see `status.error`, and set a limit outside.

        Raises:
            PublishError: a pool as a whole cannot be published.
            NoResourceApi: the cluster has no DRA.
            RuntimeError: the publisher does not run, or not any longer.
        """
        if not self._tasks:
            raise RuntimeError("the slice publisher was not started, or it was stopped")
        rejected = self.offer(pools)
        await self.settle()
        return Published(rejected, self.status.last_published or time.time())

    async def settle(self) -> None:
        """Return when the API server has what was last offered, or something offered since.

        Raises RuntimeError if the publisher is stopped.
        """
        if self._confirmed < self._version:
            stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self._version, stored))
            await stored

    async def delete_all(self) -> int:
        """Delete every slice of this driver on this node: for good-bye only, after `stop`; how many."""
        ours = await self._mirror.list()
        for one in ours:
            await self._delete(Delete(one))
        return len(ours)

    def _encode(self, pool: Pool) -> WantedPool:
        """Encoding a device costs ten times what comparing it with the one before does."""
        before = {name: entry for (owner, name), entry in self._encoded.items() if owner == pool.name}
        encoded: list[Encoded] = []
        for device in pool.devices:
            known = before.pop(device.name, None)
            entry = known[1] if known and known[0] == device else encode_device(device)
            self._encoded[pool.name, device.name] = (device, entry)
            encoded.append(entry)
        for gone in before:
            del self._encoded[pool.name, gone]
        return WantedPool(pool.name, encoded, [encode_counters(one) for one in pool.shared_counters])

    # Writing what is wanted.

    async def _write(self) -> None:
        backoff = Backoff()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._mirror.synced or self._wanted is None:
                continue
            try:
                await self._converge(self._wanted, self._version)
                backoff.reset()
            except (ApiError, NoResourceApi) as error:
                self._report(error)
                self._mirror.answered.clear()
                await self._pause(max(backoff.next(), getattr(error, "retry_after", 0.0)))
                self._wake.set()

    async def _pause(self, seconds: float) -> None:
        """Wait, or until the API server answers again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._mirror.answered.wait()

    async def _converge(self, wanted: Sequence[WantedPool], version: int) -> None:
        for _ in range(_ROUNDS):
            self._scope = replace(self._scope, owner=await self._owner_uid())
            planned = plan(
                tuple(self._mirror.stored.values()),
                wanted,
                self._layouts,
                self._scope,
                adopted=self._adopted,
                taken=self._mirror.taken,
            )
            self._layouts = dict(planned.layouts)
            self._note_foreign(planned)
            if version == self._confirmed:
                await self._restrain(planned)
            surprised = False
            for kind in (Delete, Replace, Create):
                surprised |= await self._write_all([w for w in planned.writes if isinstance(w, kind)])
            if not surprised:
                self._confirm(version)
                return
        raise Conflict(
            409,
            "Contended",
            f"others keep changing the slices of driver {self.driver_name} on node {self.node_name}; "
            "see whether a second driver of this name runs here",
            "update",
            await self._api.slices_path(),
        )

    def _note_foreign(self, planned: Plan) -> None:
        """Slices of another pool, once ours stood alone: somebody else publishes under this driver's name (H19)."""
        foreign = [write.stored.name for write in planned.writes if isinstance(write, Delete)]
        if not foreign or not self.status.last_published or self._wanted is None:
            return
        pools = {pool.name for pool in self._wanted}
        names = [s.name for s in self._mirror.stored.values() if s.name in foreign and s.pool not in pools]
        if names:
            text = f"somebody else publishes slices of driver {self.driver_name} for this node: {', '.join(names)}"
            log.error("foreign slices removed", extra={"driver": self.driver_name, "slices": names})
            self._tell(replace(self.status, foreign=text, foreign_at=time.monotonic()))

    async def _restrain(self, planned: Plan) -> None:
        """Repairs are immediate, but not without end: two drivers of one name would keep the server busy."""
        wait_s = self._repairs.take(len(planned.writes), 20 + 2 * len(planned.writes))
        if wait_s:
            log.warning(
                "others keep changing our slices; repairing slowly",
                extra={"driver": self.driver_name, "node": self.node_name, "wait_s": wait_s},
            )
            await asyncio.sleep(wait_s)

    async def _write_all(self, writes: Sequence[Write]) -> bool:
        """Make the writes at once; True if something else was stored than we thought. Raises the first error."""
        made = await asyncio.gather(*(self._write_one(write) for write in writes), return_exceptions=True)
        for one in made:
            if isinstance(one, BaseException):
                raise one
        return any(made)

    async def _write_one(self, write: Write) -> bool:
        match write:
            case Delete():
                return await self._delete(write)
            case Replace(stored, spec):
                meta = {"name": stored.name, "uid": stored.uid, "resourceVersion": stored.resource_version}
                return await self._put("update", write, meta, spec)
            case Create(name, spec):
                return await self._put("create", write, {"name": name}, spec)

    async def _put(self, verb: str, write: Replace | Create, meta: Json, spec: Json) -> bool:
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.node_name, "uid": self._scope.owner}
        body = {"metadata": {**meta, "ownerReferences": [{**owner, "controller": True}]}, "spec": spec}
        self.status.writes[verb] += 1
        name = str(meta["name"])
        try:
            send = self._api.replace_slice if isinstance(write, Replace) else self._api.create_slice
            answer = await send(body)
        except NotFound as error:
            if error.unserved:
                raise
            self._mirror.stored.pop(name, None)
            return True
        except Conflict:
            await self._mirror.reread(name)
            return True
        self._keep(name, write.digest, spec, answer)
        return False

    def _keep(self, name: str, wanted: str, spec: Json, answer: Json) -> None:
        """Take the server's answer as what is stored; what it changed is its last word (H25)."""
        stored = self._mirror.keep(answer)
        if stored.digest == wanted:
            self._adopted.pop(name, None)
            return
        self._adopted[name] = (wanted, stored.digest)
        new = dropped_fields(spec, answer["spec"]) - self.status.dropped
        if new:
            self._tell(replace(self.status, dropped=self.status.dropped | new))
            log.warning(
                "the cluster does not keep these fields; their feature gate is off",
                extra={"fields": ", ".join(sorted(new)), "driver": self.driver_name},
            )
            if self._on_dropped is not None:
                self._on_dropped(new)

    async def _delete(self, write: Delete) -> bool:
        one = write.stored
        self.status.writes["delete"] += 1
        try:
            await self._api.delete_slice(one.name, uid=one.uid, resource_version=one.resource_version)
        except NotFound as error:
            if error.unserved:
                raise
        except Conflict:
            await self._mirror.reread(one.name)
            return True
        self._mirror.stored.pop(one.name, None)
        return False

    async def _owner_uid(self) -> str:
        if not self._owner:
            node = await self._api.api.get(f"/api/v1/nodes/{self.node_name}")
            self._owner = str(node["metadata"]["uid"])
        return self._owner

    # Telling how it stands.

    def _confirm(self, version: int) -> None:
        self._confirmed = version
        stored, slices = version == self._version, len(self._mirror.stored)
        good = replace(self.status, stored=stored, slices=slices, error="", available=True)
        self._tell(replace(good, last_published=time.time()))
        for wanted, waiter in self._waiters:
            if wanted <= version and not waiter.done():
                waiter.set_result(None)
        self._waiters = [entry for entry in self._waiters if not entry[1].done()]

    def slices_changed(self) -> None:
        """From the mirror: something else is stored than before."""
        self._wake.set()

    def slice_lost(self) -> None:
        """From the mirror: a slice was deleted. The Node may have been made anew, with another UID."""
        self._owner = self._fixed_owner or ""
        self._wake.set()

    def api_lost(self, error: ApiError) -> None:
        """From the mirror. The server may come back with other gates: what it dropped is tried again."""
        self._adopted.clear()
        self._report(error)

    def api_missing(self, error: NoResourceApi) -> None:
        """From the mirror: no DRA here."""
        if self.status.available:
            log.warning("DRA stays off", extra={"driver": self.driver_name, "error": str(error)})
        self._tell(replace(self.status, available=False, stored=False, error=str(error)))
        self._fail_waiters(error)

    def _report(self, error: ApiError | NoResourceApi) -> None:
        text = str(error)
        if text != self.status.error:
            log.error("slices cannot be published now", extra={"driver": self.driver_name, "error": text})
        self._tell(replace(self.status, error=text))

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends by itself is a defect: whoever waits has to hear of it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the slice publisher broke", exc_info=error, extra={"driver": self.driver_name})
            self._tell(replace(self.status, stored=False, error=f"the slice publisher broke: {error}"))
            self._fail_waiters(error)
            self._defect = error
            self._broke.set()

    def _tell(self, status: PublisherStatus) -> None:
        self.status = status
        if self._on_status is not None:
            self._on_status(status)

    def _fail_waiters(self, error: BaseException) -> None:
        waiters, self._waiters = self._waiters, []
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
