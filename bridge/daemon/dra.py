"""The DRA plane of one group as it runs: the endpoint, and the task that publishes what the projection shows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from bridge.config import Group
from bridge.daemon.metrics import Metrics
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.planes.binding import Binding
from bridge.planes.contest import Contest
from bridge.planes.healing import Healing
from bridge.planes.projection import Memory, SliceOffer, dra_view
from bridge.planes.rosters import Rosters
from bridge.planes.slices import slice_device
from dra_v1.plugin import DraPlugin
from dra_v1.slices import Pool, SliceDevice

log = logging.getLogger(__name__)

REST_S = 0.05
"""Between two publications: each costs the API server and this process several milliseconds after the projection,
and a burst of hand-outs needs only the last."""

_CONSUMABLE_FIELDS = frozenset({"allowMultipleAllocations", "capacity.requestPolicy"})


class SliceFeed:
    """Projects a group to its publisher, again at each change that shows."""

    def __init__(
        self,
        group: Group,
        rosters: Rosters,
        ledger: Ledger,
        metrics: Metrics,
        healing: Healing,
        binding: Binding,
        contest: Contest,
    ) -> None:
        self._group = group.name
        self._driver = group.driver_name
        self._healing = healing
        self._binding = binding
        self._contest = contest
        self._shown: tuple[tuple[SliceOffer, ...], bool] | None = None
        self._offered = asyncio.Event()
        self._mark = 0
        self._marking: set[asyncio.Task[None]] = set()
        self._rosters = rosters
        self._ledger = ledger
        self._metrics = metrics
        self._consumable = True
        self._memory = Memory[tuple[SliceOffer, ...]]()
        self._devices: dict[str, tuple[SliceOffer, SliceDevice]] = {}

    def dropped(self, fields: frozenset[str]) -> None:
        """The cluster does not keep some fields (H25): shares become devices of their own, nothing is tainted."""
        if "taints" in fields:
            self._healing.dropped(self._group)
        self._binding.dropped(fields)
        if self._consumable and fields & _CONSUMABLE_FIELDS:
            self._consumable = False
            log.info(
                "this cluster has no consumable capacity: each share is a device",
                extra={"group": self._group},
            )
            self._rosters.pulses[self._group].ring()

    async def run(self, plugin: DraPlugin) -> None:
        """Feed the plugin until cancelled."""
        await self._binding.decided.wait()
        with self._rosters.pulses[self._group].listen(REST_S) as changes:
            while True:
                mark = self._healing.mark(self._group)
                now = self._now()
                if now != self._shown:
                    if self._shown is not None and self._shown[1] != now[1]:
                        self._devices = {}  # all are made anew, with or without conditions
                    self._shown = now
                    plugin.offer_pools([self._pool(plugin.node_name, now[0])])
                    offered, self._offered = self._offered, asyncio.Event()
                    offered.set()
                self._tell_stored(plugin, mark)
                await changes.wait()

    async def stored(self, plugin: DraPlugin) -> None:
        """Return when the slices are stored as they should be now."""
        while self._shown != self._now():
            await self._offered.wait()
        await plugin.stored()

    def _now(self) -> tuple[tuple[SliceOffer, ...], bool]:
        """What the slices should show, and whether with binding conditions."""
        view = dra_view(
            self._rosters.of(self._group),
            self._ledger.account,
            consumable=self._consumable,
            memory=self._memory,
            moving=self._healing.moving(self._group),
            contested=self._contest.holds,
        )
        return view, self._binding.active

    def _tell_stored(self, plugin: DraPlugin, mark: int) -> None:
        """Tell healing when what it asked for until that mark is stored."""
        if mark == self._mark:
            return
        self._mark = mark

        async def wait() -> None:
            with contextlib.suppress(RuntimeError):  # the plugin is stopped
                await plugin.stored()
                self._healing.stored(self._group, mark)

        task = asyncio.create_task(wait(), name=f"taints of group {self._group}")
        self._marking.add(task)
        task.add_done_callback(self._marking.discard)

    def _pool(self, name: str, view: Sequence[SliceOffer]) -> Pool:
        """The pool, made of the same objects as the last one as far as nothing changed: so they are not checked
        and compared anew."""
        conditions = self._binding.names if self._binding.active else None
        before, self._devices = self._devices, {}
        for offer in view:
            known = before.get(offer.name)
            made = (
                known
                if known is not None and known[0] is offer
                else (offer, slice_device(offer, self._driver, conditions))
            )
            self._devices[offer.name] = made
        return Pool(name, [device for _, device in self._devices.values()])

    def registered(self, yes: bool) -> None:
        """Note whether the kubelet has the driver."""
        self._metrics.registered.labels(Plane.DRA, self._group).set(yes)
