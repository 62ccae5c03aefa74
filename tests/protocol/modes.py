"""What tests of mode switches say and wait for, on the stage of the daemon's tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest import mock

from bridge.config import Mode
from bridge.daemon import run, switch
from bridge.daemon.switching import Switching
from bridge.ledger.holds import Phase, Plane
from bridge.ledger.store import read_account
from bridge.ledger.switches import Gate, Switch
from bridge.planes.modes import LABEL, Due, GroupMode
from bridge.platform import budget
from bridge.sandbox import make
from tests.protocol.stage import ACC, DRIVER, RESOURCE, Node, stage

SAME_NAME = {**ACC, "keepResourceName": True}


class Modes:
    """A node, and its daemon's switches from within.

    Attributes:
        node: the stage.
        held: what is due waits here until it is let go.
        stopped: set when something has been done that waits so.
    """

    def __init__(self, node: Node) -> None:
        self.node, self.box = node, node.box
        self.switching: Switching | None = None
        self.held: dict[Due, asyncio.Event] = {}
        self.stopped: dict[Due, asyncio.Event] = {}

    # -- saying

    def want(self, mode: str | None, group: str = "") -> None:
        """Label the Node."""
        self.box.label_node(**{f"{LABEL}.{group}" if group else LABEL: mode})

    def annotate(self, **annotations: str | None) -> None:
        """Annotate the Node."""
        body = {"metadata": {"annotations": annotations}}
        self.box.api.registry.patch("nodes", self.box.node, body, kind="merge")

    def hold(self, due: Due) -> None:
        """Let it not be confirmed that this is done."""
        self.held[due], self.stopped[due] = asyncio.Event(), asyncio.Event()

    def let_go(self) -> None:
        """Let it be confirmed."""
        for event in self.held.values():
            event.set()
        self.held.clear()

    async def start(self) -> None:
        """Start the daemon, in whatever modes; wait until the scheduler can see what `acc` offers."""
        await self.node.start(refused=[group["name"] for group in self.node.config["groups"]])
        if self.switch().device_plugin is Gate.OPEN:
            await self.box.until(lambda: bool(self.box.allocatable(RESOURCE)), "something is allocatable")
        if self.switch().dra is Gate.OPEN and self.box.api.registry.serves("resourceslices"):
            await self.box.until(lambda: bool(self.node.offered()), "slices")

    # -- seeing

    def now(self, group: str = "acc") -> GroupMode:
        """A group's mode as everybody sees it."""
        assert self.switching is not None, "the daemon was never started"
        return next(one for one in self.switching.snapshot() if one.group == group)

    def switch(self, group: str = "acc") -> Switch:
        """What the ledger on disk says of it."""
        found = read_account(self.node.state).switch_of(group)
        assert found is not None, f"nothing is known of group {group}"
        return found

    async def until(self, met: Callable[[], bool], what: str, within: float = 20) -> None:
        """Wait for something about modes."""
        assert self.switching is not None
        try:
            async with asyncio.timeout(within):
                with self.switching.changed.listen() as news:
                    while not met():
                        await news.wait()
        except TimeoutError:
            raise TimeoutError(f"not in time: {what}; {self.switching.snapshot()}") from None

    async def arrives(self, mode: str, group: str = "acc") -> None:
        """Wait until a group is wholly in a mode, and nothing else is wanted of it."""

        def there() -> bool:
            now = self.now(group)
            return now.mode is now.wanted is Mode(mode) and now.phase == "Settled"

        await self.until(there, f"group {group} in mode {mode}")
        found = self.switch(group)
        assert (found.mode, found.target) == (Mode(mode), Mode(mode))

    async def gates(self, device_plugin: Gate, dra: Gate) -> None:
        """Wait until the ledger says that the planes are so far."""

        def there() -> bool:
            found = self.switch()
            return (found.device_plugin, found.dra) == (device_plugin, dra)

        await self.until(there, f"device plugin {device_plugin}, DRA {dra}")

    # -- pods

    async def served(self, name: str) -> Plane:
        """A pod that asks by resource name, as a controller would see to it; the plane that served it.

        One that is bound in the moment between two counts fails at the kubelet, and its controller makes another.
        """
        for attempt in range(40):
            pod = f"{name}-{attempt}"
            self.box.create_pod(make.pod(pod, limits={RESOURCE: 1}))
            await self.box.until(lambda pod=pod: self.ran(pod), f"{pod} ran")  # type: ignore[misc]
            if self._phase(pod) == "Running":
                assert len(self.node.nodes(pod)) == 1
                by_claim = "extendedResourceClaimStatus" in self.box.pod(pod)["status"]
                return Plane.DRA if by_claim else Plane.DEVICE_PLUGIN
            assert self.box.pod(pod)["status"]["reason"] == "UnexpectedAdmissionError"
        raise AssertionError(f"{name} is never served")

    def pod_of(self, name: str) -> str:
        """The pod of that name that runs."""
        pods = [pod["metadata"]["name"] for pod in self.box.api.registry.select("pods")]
        (found,) = [pod for pod in pods if pod.startswith(f"{name}-") and self._phase(pod) == "Running"]
        return str(found)

    def _phase(self, pod: str) -> str:
        return str(self.box.pod(pod).get("status", {}).get("phase", ""))

    def ran(self, pod: str) -> bool:
        """Whether a pod was started, or refused."""
        return self._phase(pod) in ("Running", "Failed")

    async def end(self, pod: str) -> None:
        """Delete a pod and wait until it is gone."""
        self.box.delete_pod(pod)
        await self.box.wait_gone("pods", pod)

    async def found(self, *pods: str) -> None:
        """Wait until the ledger knows whose these pods' devices are."""
        names = {f"default/{pod}" for pod in pods}
        async with asyncio.timeout(20):
            while True:
                self.node.log.said.clear()
                held = {str(h.holder).partition(" ")[2] for h in self.node.holds() if h.phase is Phase.HELD}
                if names <= held:
                    return
                with contextlib.suppress(TimeoutError):  # not everything that the reconciler does is said
                    async with asyncio.timeout(0.2):
                        await self.node.log.said.wait()

    @contextlib.contextmanager
    def untouched(self, *pods: str) -> Iterator[None]:
        """What these pods have is theirs before and after: the same containers, devices and holds."""

        def seen() -> object:
            containers = {pod: (self.node.container(pod).id, tuple(self.node.nodes(pod))) for pod in pods}
            holds = {(h.share, h.plane, h.id) for h in self.node.holds() if h.share in mine}
            return containers, holds

        mine = {f"crypto-{path.rpartition('/')[2]}" for pod in pods for path in self.node.nodes(pod)}
        before = seen()
        yield
        assert seen() == before

    def events(self, reason: str) -> list[str]:
        """What was said on the Node."""
        found = self.box.api.registry.select("events", "default")
        return [e["message"] for e in found if e["reason"] == reason]

    async def told(self, reason: str, part: str = "") -> str:
        """Wait for an event on the Node."""
        await self.box.until(
            lambda: any(part in text for text in self.events(reason)), f"event {reason} {part}"
        )
        return next(text for text in self.events(reason) if part in text)


@contextlib.asynccontextmanager
async def modes(
    *groups: dict[str, Any], carried: str | None = None, start: bool = True, **more: Any
) -> AsyncIterator[Modes]:
    """A node whose daemon can be switched; `carried`: the name that the DeviceClass of its driver carries, if there is
    one. The rest is as for `stage`."""
    async with stage(*groups, start=False, **more) as node:
        if carried is not None:
            node.box.create_class(DRIVER, DRIVER, extended=carried)
        made = Modes(node)
        done = switch.GroupSwitch._do

        class Seen(Switching):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.switching = self

        async def do(self: switch.GroupSwitch, due: Due) -> None:
            await done(self, due)
            if due in made.held:
                made.stopped[due].set()
                await made.held[due].wait()

        with (
            mock.patch.object(run, "Switching", Seen),
            mock.patch.object(switch.GroupSwitch, "_do", do),
            mock.patch.object(budget, "SPREAD_S", 0.0),
        ):
            await node.box.observe.wait("KubeletSynced")
            if start:
                await made.start()
            yield made
            await node.stop()


def migrating(mode: str = "device-plugin", **more: Any) -> contextlib.AbstractAsyncContextManager[Modes]:
    """A node with three devices whose group goes on under its resource name."""
    return modes(SAME_NAME, carried=RESOURCE, mode=mode, devices=3, **more)
