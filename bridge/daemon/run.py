"""Start-up and shut-down order of the daemon (design 7), and nothing else.

Lock and load the ledger, discover, write CDI files, serve DRA to those who hold already while the kubelet's evidence
is taken up, then offer what is free on both planes: nothing new is handed out before the rebuild is done. At the end
registrations go first, then the servers; slices stay; the ledger's lock goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from bridge.config import Config, Mode
from bridge.daemon.checks import Checks
from bridge.daemon.control import ControlSocket
from bridge.daemon.controls import Controls
from bridge.daemon.counting import Counting
from bridge.daemon.errors import StartError
from bridge.daemon.files import GroupFiles
from bridge.daemon.follow import follow
from bridge.daemon.groups import Context
from bridge.daemon.http import HttpEndpoint, heard_at
from bridge.daemon.lost_claims import LostClaims
from bridge.daemon.memory import freeze
from bridge.daemon.metrics import Metrics
from bridge.daemon.names import settle
from bridge.daemon.opening import accept_empty, noted, opened
from bridge.daemon.orphans import Orphans
from bridge.daemon.own_node import OwnNode
from bridge.daemon.past_ledger import PastLedger
from bridge.daemon.probes import Probes
from bridge.daemon.rivals import Rivals
from bridge.daemon.serving import Serving
from bridge.daemon.settings import Settings
from bridge.daemon.sources import Sources
from bridge.daemon.standing import Standing
from bridge.daemon.switch import Surroundings
from bridge.daemon.switching import Switching
from bridge.daemon.tasks import cancel, done_or, until
from bridge.daemon.telling import EventNews, QuarantineNews, log_news, source_news
from bridge.devices.scanner import Scanner
from bridge.ledger.evidence import Grace
from bridge.ledger.holds import Plane, PodHolder, PreparedClaim
from bridge.ledger.ledger import Ledger
from bridge.ledger.reconcile import Names, Reconciler
from bridge.planes import report as told
from bridge.planes.deallocation import Deallocations
from bridge.planes.early_word import EarlyWord
from bridge.planes.healing import Healing
from bridge.planes.report import Report
from bridge.planes.reservations import Tools
from bridge.planes.rosters import Rosters
from bridge.platform.budget import Budget
from bridge.platform.cdi import CdiFiles
from bridge.platform.events import Events
from bridge.platform.roots import Roots
from dra_v1.kube import KubeApi
from dra_v1.kube_config import KubeConfigError
from dra_v1.resource_api import ResourceApi

__all__ = ["StartError", "run"]

log = logging.getLogger("bridge.daemon")


async def run(config: Config, settings: Settings, *, stop: asyncio.Event | None = None) -> None:
    """Run until SIGTERM, SIGINT, or `stop`. Raises StartError, Broken, or whatever broke."""
    stop = stop or _stop_on_signals()
    started = time.monotonic()
    metrics, checks = Metrics(), Checks()
    report = Report(log_news, metrics.count)
    async with contextlib.AsyncExitStack() as stack:
        ledger = await opened(config)
        stack.push_async_callback(ledger.close)
        if settings.accept_empty_ledger:
            await accept_empty(ledger)
        await asyncio.to_thread(settle, config.daemon.state_dir, config.groups, ledger.account)
        if settings.pod_ip and not config.daemon.metrics_address:
            log.warning("daemon.metricsAddress is empty: probes of this pod have nobody to ask, and end it")
        _serve_http(heard_at(config.daemon.metrics_address, settings.pod_ip), metrics, checks, stack)
        roots = _roots(settings)
        scanner = Scanner(config.groups, roots, rescan=config.daemon.rescan_seconds)
        changes = scanner.changes()
        stack.push_async_callback(changes.aclose)
        inventory = await anext(changes)
        rosters = Rosters(config.groups, inventory, ledger)
        cdi = CdiFiles(config.daemon.cdi.static_dir, config.daemon.cdi.dynamic_dir)
        files = GroupFiles(cdi, ledger)
        await files.sweep({group.name for group in config.groups}, await noted(config, ledger))
        await files.restore(rosters.preview(inventory))
        api = await stack.enter_async_context(_api(config, settings, rosters, metrics))
        events = Events(api, settings.node_name, metrics.event)
        report.add(EventNews(events, settings.node_name))
        QuarantineNews(ledger, report)
        probes = Probes(config, rosters, ledger, roots)
        rivals = Rivals(config, lambda: reconciler.wake())
        budget = Budget()
        metrics.follow_budget(budget)
        resources = ResourceApi(api) if api is not None else None
        sources = await stack.enter_async_context(
            _sources(config, settings, api, ledger, probes, rivals, metrics, report, budget)
        )
        lost = LostClaims(
            ledger,
            _drivers(config),
            settings.node_name,
            rosters.of,
            sources.pods.list,
            resources,
            budget,
            lambda: early is not None and early.listed,
        )
        reconciler = _reconciler(config, ledger, rosters, sources, report, lost)
        rebuilt = asyncio.Event()
        begun, offered = asyncio.Event(), asyncio.Event()
        rebuild = asyncio.create_task(_rebuild(rivals, begun, lost, reconciler), name="rebuild")
        stack.push_async_callback(cancel, rebuild)
        deallocations = Deallocations(ledger, resources, _drivers(config), settings.node_name, report, budget)
        stack.push_async_callback(deallocations.stop)
        healing = Healing(
            ledger,
            rosters,
            resources,
            _drivers(config),
            settings.node_name,
            report,
            budget,
        )
        stack.push_async_callback(healing.stop)
        early = _early_word(
            config, settings, resources, ledger, deallocations, budget, report, metrics, reconciler
        )
        if early is not None:
            healing.known = early
            deallocations.lingers = early.lingers
        own_node = OwnNode(settings.node_name, _resources(config).values(), api, budget)
        around = Surroundings(
            ledger, rosters, own_node, resources, budget, sources, sources.pods.going_on, report
        )
        switching = Switching(config.groups, around, metrics)
        await switching.begin()
        begun.set()
        context = Context(
            config,
            settings.node_name,
            api,
            ledger,
            rosters,
            cdi,
            deallocations,
            healing,
            report,
            roots,
            metrics,
            checks,
            sources,
            rebuilt,
            offered,
            budget,
            early,
            partial(_list_read, reconciler, rivals, switching),
        )
        controls = Controls(
            config, ledger, rosters, reconciler, sources, healing, report, checks, roots, rivals, early
        )
        await stack.enter_async_context(ControlSocket(config.daemon.state_dir, controls.calls()))
        # The groups stop together, registrations before the rest of the daemon.
        for group in config.groups:
            checks.add(f"group {group.name}, rivals", partial(_rival, rivals, group.name))
        serving = await stack.enter_async_context(Serving(config.groups, context, files))
        # Prepare of what is held already is answered from here on; nothing new before the rebuild is done.
        if not await done_or(stop, rebuild):
            return
        rebuilt.set()
        deallocations.start()
        # The device plugin first: the kubelet looks for new sockets once a second, and slices take long to make.
        await serving.offer()
        offered.set()
        checks.started()
        freeze()
        log.info(
            "serving",
            extra={
                "node": settings.node_name,
                "groups": len(config.groups),
                "devices": len(inventory.devices),
                "holds": len(ledger.account),
                "ms": round((time.monotonic() - started) * 1000),
            },
        )
        counting = Counting(rosters, ledger, metrics, healing.moving)
        work = {
            "groups": serving.watch(),
            "modes": switching.run(serving),
            "own node": own_node.run(),
            "inventory": follow(changes, rosters, files),
            "reconciler": reconciler.run(),
            "rivals": rivals.follow(),
            "past the ledger": PastLedger(config, ledger, reconciler.wake).follow(),
            "heartbeat": checks.beat(),
            "counts": counting.run(),
            "events": events.run(),
        }
        if api is not None:
            standing = Standing(config.groups, switching, counting, checks, sources)
            work["node bridge"] = standing.written(api, settings.node_name, budget, report).run()
        if early is not None and resources is not None:
            work["early word"] = early.run()
            orphans = Orphans(
                ledger,
                _drivers(config),
                sources.look,
                early.pods_of,
                sources.pods.list,
                resources,
                budget,
                cdi,
                report,
                deallocations.expect,
                partial(_kept, ledger, report),
            )
            work["orphans"] = orphans.run()
        await until(stop, work)
        log.info("stopping", extra={"holds": len(ledger.account)})


def _list_read(reconciler: Reconciler, rivals: Rivals, switching: Switching, group: str, yes: bool) -> None:
    reconciler.list_read(group, yes)
    switching.list_read(group, yes)
    rivals.wake()


def _rival(rivals: Rivals, group: str) -> str:
    return rivals.found.get(group, "")


def _kept(ledger: Ledger, report: Report, claim: PreparedClaim) -> None:
    devices = tuple(hold.share for hold in ledger.account.of_claim(claim.group, claim.holder.uid))
    if devices:  # admin access has none
        report.tell(told.Kept(claim.group, devices, claim.holder))


def _drivers(config: Config) -> dict[str, str]:
    return {group.name: group.driver_name for group in config.groups}


def _resources(config: Config) -> dict[str, str]:
    return {group.name: group.resource_name for group in config.groups}


def _sources(
    config: Config,
    settings: Settings,
    api: KubeApi | None,
    ledger: Ledger,
    probes: Probes,
    rivals: Rivals,
    metrics: Metrics,
    report: Report,
    budget: Budget,
) -> Sources:
    def holders() -> list[PodHolder]:
        holds = ledger.account.on_plane(Plane.DEVICE_PLUGIN)
        return [hold.holder for hold in holds if isinstance(hold.holder, PodHolder)]

    def trouble(source: str) -> tuple[str, str]:
        health = next(one for one in made.health() if one.name == source)
        return health.error, health.without

    resources = _resources(config).values()
    answered = source_news(report, trouble, metrics.source_answers)
    made = Sources(
        config.daemon,
        resources,
        settings.node_name,
        api,
        holders,
        probes.look,
        answered,
        lambda: rivals.found,
        lambda: ledger.fresh,
        budget,
    )
    return made


async def _rebuild(rivals: Rivals, begun: asyncio.Event, lost: LostClaims, reconciler: Reconciler) -> None:
    await rivals.look()
    # Where the Node's label says the mode, it is not known before that whether claims are allocated here.
    await begun.wait()
    await lost.take_up()
    await reconciler.take_up()


def _early_word(
    config: Config,
    settings: Settings,
    resources: ResourceApi | None,
    ledger: Ledger,
    deallocations: Deallocations,
    budget: Budget,
    report: Report,
    metrics: Metrics,
    reconciler: Reconciler,
) -> EarlyWord | None:
    if resources is None:
        return None
    tools = Tools(ledger, resources, deallocations, budget, report, settings.node_name)
    early = EarlyWord(
        tools,
        [group.name for group in config.groups],
        lambda whose, yes: metrics.early_word.labels(whose).set(yes),
        reconciler.pod_ended,
    )
    metrics.watches.set_function(lambda: early.watches.open)
    return early


def _reconciler(
    config: Config, ledger: Ledger, rosters: Rosters, sources: Sources, report: Report, lost: LostClaims
) -> Reconciler:
    grace = Grace(unmatched=config.daemon.release_grace_seconds)
    names = Names(_resources(config), _drivers(config), rosters.known_pick)
    return Reconciler(ledger, names, sources.look, report, grace, lost)


def _serve_http(address: str, metrics: Metrics, checks: Checks, stack: contextlib.AsyncExitStack) -> None:
    if not address:
        return
    try:
        http = HttpEndpoint(address, metrics.registry, checks.health, checks.ready)
    except OSError as error:
        raise StartError(f"cannot listen on daemon.metricsAddress {address}: {error.strerror}") from error
    stack.callback(http.stop)


def _roots(settings: Settings) -> Roots:
    dev = settings.dev_root
    return Roots(dev, settings.sys_root, "/dev" if dev == Path("/dev") else str(dev.absolute()))


@contextlib.asynccontextmanager
async def _api(
    config: Config, settings: Settings, rosters: Rosters, metrics: Metrics
) -> AsyncIterator[KubeApi | None]:
    """The API server: needed where DRA is, elsewhere a witness that may be missing."""
    needed = [
        group.name
        for group in config.groups
        if rosters.serves(group, Plane.DRA) or group.mode is not Mode.DEVICE_PLUGIN
    ]
    try:
        api = (
            KubeApi.from_kubeconfig(settings.kubeconfig, on_request=metrics.request)
            if settings.kubeconfig
            else KubeApi.in_cluster(on_request=metrics.request)
        )
    except KubeConfigError as error:
        if needed:
            names = ", ".join(needed)
            raise StartError(
                f"DRA, offered or still held in {names}, needs the API server: {error}"
            ) from error
        log.info(
            "no API server: stale entries of the kubelet's checkpoint stand", extra={"error": str(error)}
        )
        yield None
        return
    async with api:
        yield api


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
