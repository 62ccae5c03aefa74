"""One group as it runs: the planes that its mode and its holds need, each served and registered, and what is confirmed
of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bridge.config import Config, Group, Mode, Sharing
from bridge.daemon.checks import Checks
from bridge.daemon.dra import SliceFeed
from bridge.daemon.metrics import Metrics
from bridge.daemon.tasks import cancel, until
from bridge.devices.kinds import KINDS
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.planes import device_plugin, dra
from bridge.planes.binding import Binding, wished
from bridge.planes.contest import Contest
from bridge.planes.deallocation import Deallocations
from bridge.planes.early_word import EarlyWord
from bridge.planes.healing import Healing
from bridge.planes.regrants import Witnesses
from bridge.planes.report import Report
from bridge.planes.reservations import Part
from bridge.planes.rosters import Rosters
from bridge.platform.budget import Budget
from bridge.platform.cdi import CdiFiles
from bridge.platform.roots import Roots
from deviceplugin_v1beta1 import DevicePluginServer
from dra_v1.kube import KubeApi
from dra_v1.plugin import DraPlugin
from dra_v1.sockets import SocketError

FOREIGN_S = 120.0
"""For how long a foreign slice that was removed keeps a group from being ready: its driver makes it anew."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all groups share; `on_read` is told of each whether the kubelet reads its device list."""

    config: Config
    node_name: str
    api: KubeApi | None
    ledger: Ledger
    rosters: Rosters
    cdi: CdiFiles
    deallocations: Deallocations
    healing: Healing
    report: Report
    roots: Roots
    metrics: Metrics
    checks: Checks
    witnesses: Witnesses
    rebuilt: asyncio.Event
    offered: asyncio.Event
    budget: Budget
    early: EarlyWord | None
    on_read: Callable[[str, bool], None]


class GroupRunner:
    """Serves one group while the context lasts: DRA at once, for the sake of what is held already, and the rest by
    `offer`; a plane that is needed later by `open`. All raise `SocketError`."""

    def __init__(self, group: Group, context: Context) -> None:
        self._group = group
        self._context = context
        self._stacks: dict[Plane, contextlib.AsyncExitStack] = {}
        self._lasting: dict[str, Callable[[], Coroutine[object, object, None]]] = {}
        self._more = asyncio.Event()
        self._turn = asyncio.Lock()  # a start and a switch of modes may open, and close, at once
        self._closed = False
        self._list: _List | None = None
        self._slices: _Slices | None = None
        self._reserves = False

    async def __aenter__(self) -> Self:
        # DRA first: its registration also keeps the kubelet from wiping slices (kubelet-contract E.7).
        if self._context.rosters.serves(self._group, Plane.DRA):
            await self.open(Plane.DRA)
        return self

    async def offer(self) -> None:
        """Serve the device plugin plane; only after the rebuild is it known whether it has anything out."""
        if self._context.rosters.serves(self._group, Plane.DEVICE_PLUGIN):
            await self.open(Plane.DEVICE_PLUGIN)

    async def open(self, plane: Plane) -> None:
        """Serve a plane, if it is not served yet. Raises SocketError, also where the group was closed meanwhile."""
        async with self._turn:
            if self._closed:
                raise SocketError(f"group {self._group.name} was closed meanwhile; it is begun again")
            if plane in self._stacks:
                return
            async with contextlib.AsyncExitStack() as stack:
                if plane is Plane.DEVICE_PLUGIN:
                    await self._serve_device_plugin(stack)
                else:
                    await self._serve_dra(stack)
                self._stacks[plane] = stack.pop_all()
        self._more.set()

    async def close_device_plugin(self) -> None:
        """Serve the device plugin plane no more, so that the kubelet forgets the resource.

        As long as it knows it, its topology hints count the device plugin's devices for pods that DRA serves too
        (kubelet-contract D-5004).
        """
        async with self._turn:
            if self._list is None or self._closed:
                return
            self._list.ending, self._list = True, None
            self._lasting.pop("device plugin")
            self._context.checks.remove(f"group {self._group.name}, device plugin")
            await self._stacks.pop(Plane.DEVICE_PLUGIN).aclose()
            self._registered(False)

    def reconsider(self) -> None:
        """The group offers something else now: bind and reserve as that wants it."""
        group = self._context.rosters.of(self._group.name).group
        if self._slices is None:
            return
        self._slices.binding.wish(group)
        if reserves(group) and not self._reserves:
            # For good: a scheduler may wait for an answer that was asked for before the mode changed.
            self._reserves = True
            self._attach(self._slices)

    # What is confirmed

    async def listed(self) -> None:
        """Return when the kubelet has the device plugin registered and was sent what it shows now."""
        if self._list is not None:
            await self._list.server.wait_registered()
            await self._list.read.wait()
            await self._list.server.sent(self._list.plane.shown)

    async def sent(self) -> None:
        """Return when all who read the device plugin's list were sent what it shows now."""
        if self._list is not None:
            await self._list.server.sent(self._list.plane.shown)

    async def stored(self) -> None:
        """Return when the slices are stored as they should be now. Raises NoResourceApi, RuntimeError."""
        if self._slices is not None:
            await self._slices.feed.stored(self._slices.plugin)

    async def published(self) -> None:
        """Return when the kubelet has the driver registered and the slices are stored. Raises as `stored` does."""
        if self._slices is not None:
            await self._slices.plugin.wait_registered()
            await self.stored()

    @property
    def lists(self) -> bool:
        """Whether the device plugin plane is served."""
        return self._list is not None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop serving, the device plugin first. May be called again."""
        async with self._turn, contextlib.AsyncExitStack() as stack:
            self._closed = True
            for plane in (Plane.DRA, Plane.DEVICE_PLUGIN):
                if (serving := self._stacks.pop(plane, None)) is not None:
                    stack.push_async_exit(serving)

    async def watch(self) -> None:
        """Wait until cancelled. Raises Broken if a plane ended by itself, and would show for ever what it last did."""
        while True:
            self._more.clear()
            await until(self._more, {name: wait() for name, wait in self._lasting.items()})

    async def _serve_device_plugin(self, stack: contextlib.AsyncExitStack) -> None:
        context, group = self._context, self._group
        plane = device_plugin.DevicePluginPlane(
            group.name,
            device_plugin.Surroundings(
                context.ledger,
                lambda: context.rosters.of(group.name),
                context.rosters.pulses[group.name],
                context.report,
                context.roots.still_there,
                context.witnesses,
                context.deallocations,
            ),
        )
        root = context.config.daemon.kubelet_root
        read = asyncio.Event()
        server = DevicePluginServer(
            plane,
            group.resource_name,
            registration=group.registration.value,
            plugins_dir=root / "device-plugins",
            registry_dir=root / "plugins_registry",
            socket_dir=context.config.daemon.state_dir,
            on_status=lambda status: self._registered(bool(status.registered)),
            on_read=lambda yes: self._read(read, yes),
        )
        await stack.enter_async_context(server)
        self._list = listing = _List(plane, server, read)
        context.checks.add(
            f"group {group.name}, device plugin",
            lambda: "" if server.status.registered else server.status.error or "not registered yet",
        )
        self._lasting["device plugin"] = listing.wait

    def _registered(self, yes: bool) -> None:
        self._context.metrics.registered.labels(Plane.DEVICE_PLUGIN, self._group.name).set(yes)

    def _read(self, read: asyncio.Event, yes: bool) -> None:
        """The kubelet began or ceased to read the list."""
        if yes:
            read.set()
        else:
            read.clear()
        self._context.on_read(self._group.name, yes)

    async def _serve_dra(self, stack: contextlib.AsyncExitStack) -> None:
        context, group = self._context, self._group
        assert context.api is not None and context.early is not None, (
            "where there is no API server, no group is switched to DRA"
        )
        shown = context.rosters.of(group.name).group
        binding = Binding(shown, self._binding_changed)
        context.metrics.binding.labels(group.name).set_function(lambda: binding.active)
        contest = Contest(group.name, context.ledger, context.rosters.pulses[group.name])
        feed = SliceFeed(
            group, context.rosters, context.ledger, context.metrics, context.healing, binding, contest
        )
        plane = dra.DraPlane(
            group.name,
            dra.Surroundings(
                context.ledger,
                lambda: context.rosters.of(group.name),
                KINDS[group.kind],
                context.node_name,
                context.cdi,
                context.deallocations,
                context.healing,
                contest,
                context.rosters.pulses[group.name],
                context.report,
                context.roots.still_there,
                context.rebuilt,
                context.early.prepared,
            ),
        )
        plugin = DraPlugin(
            driver_name=group.driver_name,
            node_name=context.node_name,
            driver=plane,
            kube=context.api,
            kubelet_root=context.config.daemon.kubelet_root,
            on_dropped=feed.dropped,
            on_registration=lambda status: feed.registered(bool(status.registered)),
            turn=context.budget.take,
        )
        context.metrics.published.labels(group.name).set_function(
            lambda: plugin.publication.last_published or 0.0
        )
        await stack.enter_async_context(plugin)
        context.checks.add(f"group {group.name}, DRA", lambda: _dra_trouble(plugin))
        task = asyncio.create_task(self._publish(feed, plugin), name=f"slices of group {group.name}")
        stack.push_async_callback(cancel, task)
        deciding = asyncio.create_task(binding.decide(context.api, context.budget))
        stack.push_async_callback(cancel, deciding)
        self._slices = _Slices(plugin, feed, binding, contest)
        self.reconsider()
        self._lasting["publication"] = plugin.wait
        self._lasting["slices"] = lambda: _join(task)

    def _attach(self, slices: _Slices) -> None:
        context, group = self._context, self._group
        assert context.early is not None, "it is made where DRA can be served"
        context.early.attach(
            Part(
                group.name,
                group.driver_name,
                slices.binding,
                lambda: context.rosters.of(group.name),
                self.sent,
                self.stored,
                lambda device: context.healing.fence(group.name, device),
                slices.contest,
            )
        )

    def _binding_changed(self) -> None:
        self._context.rosters.pulses[self._group.name].ring()
        if self._context.early is not None:
            self._context.early.switched()

    async def _publish(self, feed: SliceFeed, plugin: DraPlugin) -> None:
        await self._context.offered.wait()
        await feed.run(plugin)


@dataclass(slots=True)
class _List:
    """The device plugin plane as it is served; `read`: whether the kubelet reads its list."""

    plane: device_plugin.DevicePluginPlane
    server: DevicePluginServer
    read: asyncio.Event
    ending: bool = False

    async def wait(self) -> None:
        """Wait until it ends by itself; one that is ended on purpose is waited for for ever."""
        await self.server.wait()
        if self.ending:
            await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class _Slices:
    """The DRA plane as it is served."""

    plugin: DraPlugin
    feed: SliceFeed
    binding: Binding
    contest: Contest


def reserves(group: Group) -> bool:
    """Whether devices of a group are reserved before the kubelet asks: where both planes race for them, or where the
    scheduler is made to wait for it."""
    shared = group.mode is Mode.DUAL and group.sharing is Sharing.SHARED
    return shared or wished(group)


async def _join(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


def _dra_trouble(plugin: DraPlugin) -> str:
    """What is wrong with a group's DRA plane; a cluster that has no DRA is no fault."""
    if not plugin.publication.available:
        return ""
    if not plugin.registration.registered:
        return plugin.registration.error or "not registered yet"
    if not plugin.publication.stored:
        return plugin.publication.error or "slices are not stored yet"
    if plugin.publication.foreign and time.monotonic() - plugin.publication.foreign_at < FOREIGN_S:
        return f"{plugin.publication.foreign}; remove that driver, or give the group another driverName"
    return ""
