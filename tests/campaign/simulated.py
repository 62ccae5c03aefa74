"""One history on a simulated node: the real daemon in a process of its own, real sockets, a simulated rest.

Carries out the steps of a plan, keeps the journal, lets the judge read along, and stops at his first finding.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.sandbox.cluster.objects import dig
from bridge.sandbox.kubelet.context import Timings
from bridge.sandbox.node import Sandbox, make
from tests.campaign import journal
from tests.campaign.checker import Bounds, Checker, Finding
from tests.campaign.daemon import Daemon, Launcher
from tests.campaign.faults import STORIES, Faults
from tests.campaign.journal import Line
from tests.campaign.plan import Args, Scene, Step
from tests.campaign.summary import Counts
from tests.campaign.witness import SHARED, Witness

HASTE = 60.0
"""How many times as fast the daemon's patience runs out (see `launcher`)."""

BOUNDS = Bounds(offered=15, runs=20, ends=15)
"""What the judge allows, in seconds of this machine, which may be ten times too small for all that runs on it. The
daemon's own longest waits come to 0.5 s each at this haste (30 s for a kubelet to be stable, 30 s for a hand-out to be
matched), the simulated kubelet's to 1 s."""

TIMINGS = Timings(node_status=0.05, watcher_retry=0.05, pod_retry=0.1, reconcile=0.2, pod_sync=0.4)
PACE_S = 0.03
GROUP, CLASS = "acc", "acc"
RESOURCE, DRIVER = f"device-bridge.io/{GROUP}", f"{GROUP}.device-bridge.io"
ROOM_S = 0.2
"""How long a new pod waits for others to end, for they may wait for an outage's end."""

PATIENCE_S = 0.4
"""How long a pod that wants several devices may go without a node before it is given up."""

CALM_S = 60.0
"""When a calm is given up although the judge has found nothing: a defect of the campaign."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one history.

    Attributes:
        steps: those that were carried out.
        deaths: exit codes with which the daemon ended by itself.
    """

    steps: tuple[Step, ...]
    counts: Counts
    findings: tuple[Finding, ...]
    seconds: float
    deaths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a history ends, if its steps do not."""

    operations: int
    seconds: float


class History:
    """A node and what is done to it. Use `run`."""

    def __init__(
        self, box: Sandbox, daemon: Daemon, launcher: Launcher, folder: Path, devices: int, bounds: Bounds
    ) -> None:
        self._box, self._daemon, self._devices = box, daemon, devices
        self.checker = Checker(bounds)
        self.counts = Counts()
        self._journal = (folder / "journal").open("w")
        self._tell_devices()
        self._witness = Witness(box, self._note, self.counts)
        self._faults = Faults(box, daemon, launcher, self._witness, self._drained)
        self._stories: set[asyncio.Task[None]] = set()
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._claims: dict[str, set[str]] = {}
        self._greedy: dict[str, float] = {}

    def _note(self, line: Line) -> None:
        if not self._journal.closed:  # what the end of the node itself brings about is nobody's business
            self._journal.write(journal.dump(line) + "\n")
            self.checker.feed(line)

    def _tell_devices(self) -> None:
        for number in range(self._devices):
            name = f"acc{number}"
            self._note(
                journal.Device(time.monotonic(), name, RESOURCE, DRIVER, self._box.node, f"crypto-{name}")
            )

    # -- the course of it

    async def run(self, steps: Iterable[Step], limits: Limits) -> list[Step]:
        """Carry out steps until a limit or a finding, then let all come to rest; return what was carried out."""
        done: list[Step] = []
        until = time.monotonic() + limits.seconds
        await self._begun()
        keeper = asyncio.create_task(self._faults.keep_running())
        sweeper = asyncio.create_task(self._sweep())
        try:
            for step in steps:
                done.append(step)
                await self._do(step)
                await asyncio.sleep(step.rest / 1000)
                if self.checker.findings or self.counts.total >= limits.operations:
                    break
                if time.monotonic() > until:
                    break
                for task in (keeper, sweeper, *self._stories):
                    if task.done():
                        task.result()
            if not self.checker.findings:
                await self._calm()
        finally:
            for task in (keeper, sweeper, *self._stories):
                task.cancel()
            await asyncio.gather(keeper, sweeper, *self._stories, return_exceptions=True)
            self._journal.close()
        return done

    async def _begun(self) -> None:
        """Wait until the daemon offers devices on both planes for the first time; what it costs is not judged."""
        self._note(journal.Fault(time.monotonic(), "start", "start", True))
        box = self._box
        await box.until(lambda: bool(box.allocatable(RESOURCE) and box.slices()), "devices offered", CALM_S)
        self._note(journal.Fault(time.monotonic(), "start", "start", False))

    async def _do(self, step: Step) -> None:
        if step.what in STORIES:
            self._begin(self._faults.happen(step.what, step.args))
            return
        match step.what:
            case "pod" | "shared" | "claim made anew":
                await self._room()
                self._make(step)
            case "delete":
                self._delete(str(step.args["pod"]), force=False)
            case "deleted by force":
                if self._delete(str(step.args["pod"]), force=True):
                    self._witness.fault(step.what)()
            case "container killed":
                self._kill_container(step)
            case "wait":
                pass
            case "lull":
                await self._at_most(self._devices // 4)
            case "calm":
                await self._calm()
            case what:
                raise ValueError(f"nobody knows how to do {what!r}")

    def _make(self, step: Step) -> None:
        match step.what:
            case "shared":
                self._begin(self._shared(step.args))
            case "claim made anew":
                self._begin(self._again(step.args))
            case _:
                self._pod(step.args)

    def _begin(self, story: object) -> None:
        assert asyncio.iscoroutine(story)
        task: asyncio.Task[None] = asyncio.create_task(story)
        self._stories.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, story: asyncio.Task[None]) -> None:
        """Forget a story that went well; one that broke stays, for the history to break too."""
        if story.cancelled() or story.exception() is None:
            self._stories.discard(story)

    async def _room(self) -> None:
        """Wait until not too many pods are about; a while at most, for they may wait for an outage's end."""
        await self._may_begin.wait()
        await self._at_most(2 * self._devices - 1)
        await self._may_begin.wait()

    async def _at_most(self, pods: int) -> None:
        with suppress(TimeoutError):
            await self._box.until(lambda: len(self._witness.alive) <= pods, "room", ROOM_S)

    async def _drained(self) -> None:
        """Delete all pods, make no new ones, and wait until all are gone."""
        self._may_begin.clear()
        try:
            until = time.monotonic() + CALM_S
            while self._witness.alive and time.monotonic() < until:
                for name in list(self._witness.alive.values()):
                    self._delete(name, force=False)
                await asyncio.sleep(0.05)
        finally:
            self._may_begin.set()

    async def _calm(self) -> None:
        """Begin nothing, and wait until every pod has come to its end and every device is offered, or for a verdict."""
        until = time.monotonic() + CALM_S
        while self._stories or self._witness.alive or not self.checker.content:
            await asyncio.sleep(0.02)
            self.checker.until(time.monotonic())
            if self.checker.findings:
                return
            if time.monotonic() > until:
                raise TimeoutError(
                    f"no rest in {CALM_S} s: stories {self._stories}, pods {self._witness.alive}, "
                    f"standing {self.checker.standing}"
                )

    async def _sweep(self) -> None:
        """Remove what has ended, as a Job's controller and the cluster's garbage collection do."""
        while True:
            await asyncio.sleep(0.1)
            for name in list(self._witness.ended.values()):
                self._delete(name, force=False)
            self._give_up()
            names = set(self._witness.alive.values())
            for claim, pods in list(self._claims.items()):
                if pods and not pods & names:
                    del self._claims[claim]
                    self._delete_claim(claim)
            for event in self._box.api.registry.peek("events"):
                self._box.api.registry.delete("events", event["metadata"]["name"], "default")

    def _give_up(self) -> None:
        """Delete pods that want several devices and have waited long for them: small ones always come before."""
        now = time.monotonic()
        waiting = {name: self._greedy[name] for name in self._witness.alive.values() if name in self._greedy}
        for name, since in waiting.items():
            if now - since > PATIENCE_S and not dig(self._box.get("pods", name), "spec.nodeName"):
                self._delete(name, force=False)
        self._greedy = waiting

    # -- pods

    def _pod(self, args: Args) -> None:
        name, count, on_dra = str(args["name"]), int(args["count"]), args["plane"] == "dra"
        count = min(count, self._devices)
        container = make.container(claims=["dev"]) if on_dra else make.container(limits={RESOURCE: count})
        if count > 1:
            self._greedy[name] = time.monotonic()
        first = [{**container, "name": "first"}] if args["init"] else []
        pod = make.pod(
            name,
            templates={"dev": f"of-{count}"} if on_dra else None,
            containers=[container],
            init=first,
            run_seconds=int(args["run"]) / 1000,
            stop_seconds=int(args["stop"]) / 1000,
            exit_code=int(args["fails"]),
            grace=1,
        )
        self._create(pod, str(args["plane"]))

    def _create(self, pod: dict[str, object], plane: str) -> None:
        self._box.create_pod(pod)
        self.counts.pods[plane] += 1

    async def _shared(self, args: Args) -> None:
        """Several pods of one claim."""
        claim = str(args["name"])
        self._box.create_claim(claim, make.request(CLASS))
        names = [f"{claim}-{number}" for number in range(int(args["pods"]))]
        for name in names:
            self._of_claim(name, claim, int(args["run"]), 0)
            await asyncio.sleep(int(args["apart"]) / 1000)
        self._claims[claim] = set(names)

    def _of_claim(self, name: str, claim: str, run: int, stop: int) -> None:
        pod = make.pod(name, claims={"dev": claim}, run_seconds=run / 1000, stop_seconds=stop / 1000, grace=1)
        pod["metadata"]["annotations"][SHARED] = "true"
        self._create(pod, "dra")

    async def _again(self, args: Args) -> None:
        """A pod is deleted by force while it runs; its claim is made anew under its name, for another pod (H6)."""
        claim, run, stop = str(args["name"]), int(args["run"]), int(args["stop"])
        self._box.create_claim(claim, make.request(CLASS))
        self._of_claim(f"{claim}-0", claim, run, stop)
        await asyncio.sleep(run / 2000)
        self._witness.fault("claim made anew")()
        self._delete(f"{claim}-0", force=True)
        self._delete_claim(claim)
        await self._box.wait_gone("resourceclaims", claim)
        self._box.create_claim(claim, make.request(CLASS))
        self._of_claim(f"{claim}-1", claim, run, stop)
        self._claims[claim] = {f"{claim}-1"}

    def _delete(self, name: str, *, force: bool) -> bool:
        """Delete a pod, if it is there; whether it was alive."""
        pod = self._box.get("pods", name)
        if pod is None or (dig(pod, "metadata.deletionTimestamp") and not force):
            return False
        self._box.delete_pod(name, force=force)
        return name in self._witness.alive.values()

    def _delete_claim(self, name: str) -> None:
        if self._box.get("resourceclaims", name) is not None:
            self._box.api.registry.delete("resourceclaims", name, "default")

    def _kill_container(self, step: Step) -> None:
        for container in self._box.runtime.containers.values():
            if container.pod_name == step.args["pod"] and container.running:
                self._witness.fault(step.what)()
                self._box.runtime.crash(container)
                return


async def history(
    scene: Scene,
    steps: Iterable[Step],
    limits: Limits,
    folder: Path,
    plant: str = "",
    bounds: Bounds = BOUNDS,
) -> Outcome:
    """Run one history in a folder of its own; the journal and the daemon's log stay in it."""
    random.seed(scene.seed)
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        launcher = await stack.enter_async_context(Launcher(folder, HASTE))
        box = await stack.enter_async_context(_sandbox(scene, stack))
        daemon = Daemon(launcher, box.paths, box.node, [_group(scene)], plant)
        daemon.log = folder / "daemon.log"
        one = History(box, daemon, launcher, folder, scene.devices, bounds)
        gc.collect()
        gc.freeze()
        await daemon.start()
        stack.push_async_callback(daemon.stop)
        done = await one.run(steps, limits)
        if one.checker.findings or os.environ.get("OBS"):
            (folder / "observations").write_text("\n".join(map(str, box.observe)))
        return Outcome(
            tuple(done),
            one.counts,
            tuple(one.checker.findings),
            time.monotonic() - begun,
            tuple(daemon.deaths),
        )


@asynccontextmanager
async def _sandbox(scene: Scene, stack: AsyncExitStack) -> AsyncIterator[Sandbox]:
    memory = Path("/dev/shm")  # rename and fsync cost nothing there, and a kill loses as little
    base = Path(tempfile.mkdtemp(prefix="sb-", dir=memory if os.access(memory, os.W_OK) else None))
    stack.callback(shutil.rmtree, base)
    async with Sandbox(timings=TIMINGS, folder=base, profile=scene.profile) as box:
        box.tree.add_many("/dev/crypto/acc{}", scene.devices)
        box.create_class(CLASS, DRIVER)
        box.scheduler.pace = box.controllers.pace = PACE_S
        for count in range(1, scene.devices + 1):
            box.create_template(f"of-{count}", make.request(CLASS, count=count))
        yield box


def _group(scene: Scene) -> dict[str, object]:
    return {
        "name": GROUP,
        "kind": "device-node",
        "binding": scene.binding,
        "options": {"include": ["/dev/crypto/acc*"]},
    }
