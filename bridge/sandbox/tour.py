"""The tour: a story on a simulated node, told from what was observed.

Every line stands for a condition that was waited for on the parts (kubelet, API server, runtime, ledger); one that
does not come true ends the tour with exit code 1 and what was seen last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.markup import escape

from bridge.ledger.holds import Plane
from bridge.ledger.store import LedgerError, read_account
from bridge.sandbox import make
from bridge.sandbox.cluster.objects import dig
from bridge.sandbox.daemon import DaemonProcess, config_for
from bridge.sandbox.node import Sandbox

GROUP, RESOURCE, DRIVER = "acc", "device-bridge.io/acc", "acc.device-bridge.io"
POOL = "/dev/crypto/acc{}"

Step = tuple[str, Callable[["Tour"], Awaitable[str]]]


async def tour(*, keep: bool = False) -> int:
    """Tell the story; 0 if all of it happened, else 1."""
    logging.getLogger().setLevel(logging.CRITICAL)
    console = Console(highlight=False, soft_wrap=True)  # a pipe has no width
    async with Sandbox() as sandbox:
        groups: list[dict[str, object]] = [
            {"name": GROUP, "kind": "device-node", "options": {"include": ["/dev/crypto/acc*"]}}
        ]
        daemon = DaemonProcess(sandbox.paths, sandbox.node, config_for(sandbox.paths, groups))
        story = Tour(sandbox, daemon)
        try:
            return await _tell(story, console, keep)
        finally:
            if daemon.running:
                await daemon.stop()


async def _tell(story: Tour, console: Console, keep: bool) -> int:
    console.print("\n[bold]The device bridge on a simulated node[/]")
    console.print("[dim]one ledger, two kubelet APIs; every line below was observed, not scripted[/]\n")
    begun = time.monotonic()
    for title, step in STORY:
        at = time.monotonic()
        try:
            seen = await step(story)
        except (TimeoutError, AssertionError, LedgerError) as error:
            console.print(f" [bold red]✘[/] {title}\n[red]{escape(str(error))}[/]")
            log = story.daemon.log.read_text() if story.daemon.log.exists() else ""
            console.print(f"[dim]{escape(log[-2000:])}[/]")
            return 1
        console.print(f" [bold green]✔[/] {title}  [dim]{(time.monotonic() - at) * 1000:.0f} ms[/]")
        for line in seen.splitlines():
            console.print(f"     [cyan]{escape(line)}[/]")
    console.print(f"\n[bold green]All of it happened[/] in {time.monotonic() - begun:.1f} s.\n")
    if keep:
        console.print(f"Still running in {story.sandbox.paths.base}; Ctrl-C ends it.")
        await asyncio.Event().wait()
    return 0


class Tour:
    """What the steps share, and how they look at the parts."""

    def __init__(self, sandbox: Sandbox, daemon: DaemonProcess) -> None:
        self.sandbox = sandbox
        self.daemon = daemon

    def offered(self) -> list[str]:
        """Devices in the stored slices, in their order."""
        return [d["name"] for s in self.sandbox.slices(DRIVER) for d in s["spec"].get("devices", ())]

    async def offers(self, *names: str) -> None:
        """Wait until the slices show just these devices."""
        await self.sandbox.until(lambda: self.offered() == list(names), f"slices with {', '.join(names)}")

    def ledger(self) -> dict[str, tuple[Plane, str]]:
        """Device to (plane, holder) as the ledger on disk says."""
        return {h.device: (h.plane, str(h.holder)) for h in read_account(self.daemon.state_dir)}

    def nodes_of(self, pod: str) -> list[str]:
        """The device nodes that a pod's container got."""
        container = self.sandbox.container(pod)
        assert container is not None and container.running, f"pod {pod} has no running container"
        return sorted(node.container_path for node in container.got.nodes)

    async def refused_by_scheduler(self, pod: str) -> str:
        """Wait until the scheduler finds no device for a pod; its reason."""
        since = 0
        while True:
            seen = await self.sandbox.observe.wait("Unschedulable", f"default/{pod}", since=since)
            reason = str(seen.facts.get("reason", ""))
            if "waiting for the claim" not in reason:
                return reason
            since = list(self.sandbox.observe).index(seen) + 1

    async def listed(self, healthy: int, unhealthy: int) -> str:
        """Wait until the kubelet's newest list through ListAndWatch has these counts."""
        wanted: dict[str, object] = {"healthy": healthy, "unhealthy": unhealthy}
        while True:
            since = len(self.sandbox.observe)
            newest = self.sandbox.observe.of("DevicesListed", RESOURCE)[-1:]
            if newest and newest[0].facts == wanted:
                return _facts(wanted)
            await self.sandbox.observe.wait("DevicesListed", RESOURCE, since=since)


async def discovery(story: Tour) -> str:
    """Two accelerators, found."""
    story.sandbox.tree.add_many(POOL, 2)
    await story.daemon.start()
    listed = await story.listed(2, 0)
    await story.offers("crypto-acc0", "crypto-acc1")
    return f"ListAndWatch: {listed}\nResourceSlice: {', '.join(story.offered())}"


async def registered(story: Tour) -> str:
    """Both APIs, one daemon."""
    plugin = await story.sandbox.observe.wait("PluginRegistered", RESOURCE)
    driver = await story.sandbox.observe.wait("DriverRegistered", DRIVER)
    await story.sandbox.wait_allocatable(RESOURCE, 2)
    story.sandbox.create_class(GROUP, DRIVER)
    story.sandbox.create_template(GROUP, make.request(GROUP))
    allocatable = story.sandbox.allocatable(RESOURCE)
    return f"device plugin {plugin.about}: node allocatable {allocatable}\nDRA driver {driver.about}"


async def by_extended_resource(story: Tour) -> str:
    """Yesterday's pod."""
    story.sandbox.create_pod(make.pod("yesterday", limits={RESOURCE: 1}))
    await story.sandbox.wait_phase("yesterday", "Running")
    await story.offers("crypto-acc0")
    return (
        f"pod yesterday got {', '.join(story.nodes_of('yesterday'))} through the device plugin API\n"
        f"withdrawn from DRA, whose slice now shows: {', '.join(story.offered())}"
    )


async def by_claim(story: Tour) -> str:
    """Tomorrow's pod."""
    story.sandbox.create_pod(make.pod("tomorrow", templates={"acc": GROUP}))
    await story.sandbox.wait_phase("tomorrow", "Running")
    await story.sandbox.wait_allocatable(RESOURCE, 1)
    return (
        f"pod tomorrow got {', '.join(story.nodes_of('tomorrow'))} through DRA\n"
        f"withdrawn from the device plugin API: node allocatable {story.sandbox.allocatable(RESOURCE)}\n"
        + _ledger_lines(story)
    )


async def must_wait(story: Tour) -> str:
    """Nothing is handed out twice."""
    story.sandbox.create_pod(make.pod("third", templates={"acc": GROUP}))
    seen = await story.refused_by_scheduler("third")
    assert dig(story.sandbox.pod("third"), "status.phase") == "Pending"
    return f"pod third is Pending: {seen}"


async def hot_plug(story: Tour) -> str:
    """A third accelerator appears."""
    story.sandbox.tree.add(POOL.format(2))
    await story.sandbox.wait_phase("third", "Running")
    return f"pod third got {', '.join(story.nodes_of('third'))}"


async def hot_unplug(story: Tour) -> str:
    """A device vanishes while a pod holds it."""
    held = next(device for device, (plane, _) in story.ledger().items() if plane is Plane.DEVICE_PLUGIN)
    path = POOL.format(held[-1])
    await story.listed(1, 2)
    story.sandbox.tree.remove(path)
    gone = await story.listed(0, 3)
    assert held in story.ledger(), f"the ledger forgot {held}"
    story.sandbox.tree.add(path)
    back = await story.listed(1, 2)
    return f"{path} gone: {gone}, still held in the ledger\n{path} back: {back}"


async def kubelet_restart(story: Tour) -> str:
    """The kubelet restarts: it wipes sockets and slices."""
    since = len(story.sandbox.observe)
    await story.sandbox.kubelet.restart()
    await story.sandbox.observe.wait("PluginRegistered", RESOURCE, since=since)
    await story.sandbox.observe.wait("DriverRegistered", DRIVER, since=since)
    await story.sandbox.until(lambda: bool(story.offered()), "slices back")
    _still_running(story)
    slices = ", ".join(story.offered())
    return f"both planes registered again; slices back: {slices}\npods kept running: {', '.join(PODS)}"


async def daemon_killed(story: Tour) -> str:
    """The daemon is killed and started again: the ledger forgets nothing."""
    before, since = story.ledger(), len(story.sandbox.observe)
    await story.daemon.kill()
    await story.sandbox.observe.wait("PluginDisconnected", RESOURCE, since=since)
    _still_running(story)
    since = len(story.sandbox.observe)
    await story.daemon.start()
    await story.sandbox.observe.wait("PluginRegistered", RESOURCE, since=since)
    await story.sandbox.observe.wait("DevicesListed", RESOURCE, since=since)
    after = story.ledger()
    assert after.keys() == before.keys(), f"before {before}, after {after}"
    return _ledger_lines(story)


async def released(story: Tour) -> str:
    """A pod ends, and the one that must wait gets its device."""
    story.sandbox.create_pod(make.pod("fourth", templates={"acc": GROUP}))
    await story.refused_by_scheduler("fourth")
    story.sandbox.delete_pod("tomorrow")
    await story.sandbox.wait_phase("fourth", "Running")
    return f"pod tomorrow ended; pod fourth got {', '.join(story.nodes_of('fourth'))}\n" + _ledger_lines(
        story
    )


PODS = ("yesterday", "tomorrow", "third")

STORY: tuple[Step, ...] = (
    ("Discovery: two accelerators, offered through both APIs", discovery),
    ("Registered twice with the kubelet", registered),
    ("A pod by extended resource, as today", by_extended_resource),
    ("A pod by claim, as tomorrow", by_claim),
    ("A third pod must wait: both devices are taken", must_wait),
    ("Hot-plug: a third accelerator appears", hot_plug),
    ("Hot-unplug of a held device, and back", hot_unplug),
    ("The kubelet restarts", kubelet_restart),
    ("The daemon is killed (-9) and started again", daemon_killed),
    ("A claim is given back, and the next pod has the device", released),
)


def _still_running(story: Tour) -> None:
    for pod in PODS:
        story.nodes_of(pod)


def _facts(facts: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _ledger_lines(story: Tour) -> str:
    held = sorted(story.ledger().items())
    return "\n".join(f"ledger: {device} held by {holder} ({plane})" for device, (plane, holder) in held)
