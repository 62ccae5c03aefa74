"""One group as it runs: the planes that its mode and its holds need, each served and registered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
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
    budget: Budget
    early: EarlyWord | None
    on_read: Callable[[str, bool], None]


class GroupRunner:
    """Serves one group while the context lasts: DRA at once, for the sake of what is held already, and the rest by
    `offer`. Both raise `SocketError`."""

    def __init__(self, group: Group, context: Context) -> None:
        self._group = group
        self._context = context
        self._stack = contextlib.AsyncExitStack()
        self._lasting: dict[str, Callable[[], Coroutine[object, object, None]]] = {}
        self._listed: Callable[[], Awaitable[None]] = _at_once

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            # DRA first: its registration also keeps the kubelet from wiping slices (kubelet-contract E.7).
            if self._context.rosters.serves(self._group, Plane.DRA):
                await self._serve_dra(stack)
            self._stack = stack.pop_all()
        return self

    async def offer(self) -> None:
        """Serve the device plugin plane; only after the rebuild is it known whether it has anything out."""
        if self._context.rosters.serves(self._group, Plane.DEVICE_PLUGIN):
            await self._serve_device_plugin(self._stack)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop serving, registrations first. May be called again."""
        await self._stack.aclose()

    async def watch(self) -> None:
        """Wait until cancelled. Raises Broken if a plane ended by itself, and would show for ever what it last did."""
        await until(asyncio.Event(), {name: wait() for name, wait in self._lasting.items()})

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
            ),
        )
        root = context.config.daemon.kubelet_root
        gauge = context.metrics.registered.labels(Plane.DEVICE_PLUGIN, group.name)
        server = DevicePluginServer(
            plane,
            group.resource_name,
            registration=group.registration.value,
            plugins_dir=root / "device-plugins",
            registry_dir=root / "plugins_registry",
            socket_dir=context.config.daemon.state_dir,
            on_status=lambda status: gauge.set(bool(status.registered)),
            on_read=lambda yes: context.on_read(group.name, yes),
        )
        await stack.enter_async_context(server)
        self._listed = lambda: server.sent(plane.shown)
        context.checks.add(
            f"group {group.name}, device plugin",
            lambda: "" if server.status.registered else server.status.error or "not registered yet",
        )
        self._lasting["device plugin"] = server.wait

    async def _serve_dra(self, stack: contextlib.AsyncExitStack) -> None:
        context, group = self._context, self._group
        assert context.api is not None and context.early is not None, (
            "they are made where any group serves DRA, and no group begins to later"
        )
        binding = Binding(group, self._binding_changed)
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
        if reserves(group):
            deciding = asyncio.create_task(binding.decide(context.api, context.budget))
            stack.push_async_callback(cancel, deciding)
            context.early.attach(
                Part(
                    group.name,
                    group.driver_name,
                    binding,
                    lambda: context.rosters.of(group.name),
                    lambda: self._listed(),
                    lambda: feed.stored(plugin),
                    lambda device: context.healing.fence(group.name, device),
                    contest,
                )
            )
        self._lasting["publication"] = plugin.wait
        self._lasting["slices"] = lambda: _join(task)

    def _binding_changed(self) -> None:
        self._context.rosters.pulses[self._group.name].ring()
        if self._context.early is not None:
            self._context.early.switched()

    async def _publish(self, feed: SliceFeed, plugin: DraPlugin) -> None:
        await self._context.rebuilt.wait()
        await feed.run(plugin)


def reserves(group: Group) -> bool:
    """Whether devices of a group are reserved before the kubelet asks: where both planes race for them, or where the
    scheduler is made to wait for it."""
    shared = group.mode is Mode.DUAL and group.sharing is Sharing.SHARED
    return shared or wished(group)


async def _at_once() -> None:
    """There is no list to wait for."""


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
