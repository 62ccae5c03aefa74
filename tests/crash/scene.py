"""A simulated node, its mortal daemon, and what must be true of both whenever the daemon is up again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import yaml

from bridge.config import Mode
from bridge.daemon.settings import Settings
from bridge.ledger.holds import Phase, Plane
from bridge.ledger.store import EVERYTHING, LedgerError, read_account
from bridge.sandbox import make
from bridge.sandbox.cluster.objects import uid_of
from bridge.sandbox.daemon import config_for
from bridge.sandbox.kubelet.runtime import Container
from bridge.sandbox.node import Sandbox
from dra_v1.points import Point
from tests.crash.mortal import Mortal, Zygote
from tests.protocol.stage import ACC, DRIVER, NX, NX_DRIVER, NX_RESOURCE, POOL, RESOURCE
from tests.protocol.test_daemon_features import nx_config

DEVICES = 3
CREDITS = 4

Groups = tuple[dict[str, Any], ...]
SAME_NAME: dict[str, Any] = {**ACC, "keepResourceName": True}
LEGACY: dict[str, Any] = {**ACC, "registration": "legacy"}
STEPS = (
    (Point.LEDGER_BEGINNING, Point.LEDGER_COMMITTED),
    (Point.LIST_SENDING, Point.LIST_SENT),
    (Point.SLICE_UPDATING, Point.SLICE_UPDATED),
    (Point.EVENT_POSTING, Point.EVENT_POSTED),
)
"""The points before and after what the daemon does by itself in the background."""

CONNECTIONS = {
    frozenset({"DriverRegistered", "DriverConnected"}): frozenset(
        {"DriverDisconnected", "DriverDeregistered"}
    ),
    frozenset({"PluginRegistered"}): frozenset({"PluginDisconnected", "PluginDeregistered"}),
}
"""What the node sees when the kubelet gets a connection, and when it loses it."""

Held = set[tuple[Plane, str, str]]
"""(plane, resource or driver name, ID or share) of what is handed out."""


class Scene:
    """What a story plays on.

    Attributes:
        box: the node.
        daemon: dead or alive.
        groups: of the configuration; a story may change them while the daemon is down.
    """

    def __init__(self, box: Sandbox, zygote: Zygote, groups: Groups) -> None:
        self.box = box
        self.groups = groups
        self.accept_empty_ledger = False
        self._changed = asyncio.Event()
        self._asked: list[asyncio.Task[object]] = []
        self._since = 0
        self.daemon = Mortal(zygote, self._settings(), box.paths.base / "bridge.log")
        self.daemon.passed = self._changed.set
        box.observe.listen(lambda seen: self._changed.set())
        box.api.registry.store.listen(lambda change: self._changed.set())

    @property
    def state(self) -> Path:
        """The folder of the ledger."""
        return self.box.paths.plugins / "device-bridge"

    # -- the daemon

    def _settings(self) -> Settings:
        root = self.box.paths.root
        return Settings(
            self.box.paths.base / "bridge.yaml",
            self.box.node,
            self.box.paths.kubeconfig,
            root / "dev",
            root / "sys",
            "text",
            accept_empty_ledger=self.accept_empty_ledger,
        )

    async def begin(self) -> None:
        """Start the daemon, with the groups as they are now; it may die before it serves."""
        config = config_for(self.box.paths, [dict(group) for group in self.groups])
        self._since = len(self.box.observe)
        self.daemon.settings = self._settings()
        await asyncio.to_thread(self.daemon.settings.config.write_text, yaml.safe_dump(config))
        await self.daemon.start()

    async def serve(self) -> None:
        """Start the daemon and wait until both planes of all groups stand."""
        await self.begin()
        await self.serves()

    async def mourned(self) -> None:
        """Wait until the kubelet has read all that the dead daemon had sent, and has seen the connections' end."""
        await self.until(
            lambda: not any(map(self._connected, CONNECTIONS, CONNECTIONS.values())), "no connections"
        )

    def _connected(self, begin: frozenset[str], end: frozenset[str]) -> bool:
        """Whether the kubelet has a connection of some sort to any of the groups."""
        last = {seen.about: seen.what for seen in self.box.observe if seen.what in begin | end}
        return bool(begin & set(last.values()))

    async def serves(self) -> None:
        """Wait until the daemon that was begun last has registered and listed."""
        seen = self.box.observe.of
        await self.until(
            lambda: all(
                seen("DriverRegistered", driver, self._since) and seen("DevicesListed", resource, self._since)
                for resource, driver in self.names()
            ),
            "both planes of all groups",
        )

    def names(self) -> Iterator[tuple[str, str]]:
        """(resource, driver) of the groups."""
        for group in self.groups:
            yield f"device-bridge.io/{group['name']}", f"{group['name']}.device-bridge.io"

    def ask(self, call: Coroutine[object, object, object]) -> None:
        """Let somebody call the daemon; how it ends does not matter."""
        self._asked.append(asyncio.create_task(call))

    async def hush(self) -> None:
        """Wait until all those calls have ended."""
        asked, self._asked = self._asked, []
        async with asyncio.timeout(20):
            await asyncio.gather(*asked, return_exceptions=True)

    async def until(self, met: Callable[[], bool], what: str) -> None:
        """Wait for a condition; looked at whenever the node saw something, or the daemon reached a point."""
        try:
            async with asyncio.timeout(20):
                while not met():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            tail = "\n".join(str(seen) for seen in list(self.box.observe)[-15:])
            said = self.daemon.log.read_text().splitlines()[-15:] if self.daemon.log.exists() else []
            raise TimeoutError(
                "\n".join([f"not in time: {what}; last seen:", tail, "the daemon:", *said])
            ) from None

    # -- pods

    def device_plugin_pod(self, name: str, resource: str = RESOURCE) -> None:
        """Make a pod that wants one device through the device plugin API."""
        self.box.create_pod(make.pod(name, limits={resource: 1}))

    def dra_pod(self, name: str) -> None:
        """Make a pod with a claim of its name."""
        self.box.create_claim(name, make.request("acc"))
        self.box.create_pod(make.pod(name, claims={"dev": name}))

    def configured_pod(self, name: str) -> None:
        """Make a pod with a claim that has a configuration, and so a CDI file of its own."""
        spec = make.claim_spec(make.request("nx"), driver=NX_DRIVER, parameters=nx_config("Long"))
        self.box.create("resourceclaims", make.claim(name, spec))
        self.box.create_pod(make.pod(name, claims={"dev": name}))

    async def runs(self, name: str) -> None:
        """Wait until a pod runs."""
        await self.until(lambda: self._phase(name) == "Running", f"{name} runs")

    async def runs_or_is_replaced(self, name: str) -> None:
        """As its controller does: a pod whose admission the daemon's death failed is made again."""
        await self.until(lambda: self._phase(name) in ("Running", "Failed"), f"{name} runs or failed")
        if self._phase(name) == "Running":
            return
        assert self.box.pod(name)["status"]["reason"] == "UnexpectedAdmissionError"
        self.box.delete_pod(name)
        self.device_plugin_pod(f"{name}-again")
        await self.runs(f"{name}-again")

    def _phase(self, name: str) -> str:
        return str(self.box.pod(name).get("status", {}).get("phase", ""))

    async def all_end(self) -> None:
        """Delete every pod and claim, and wait until they are gone."""
        registry = self.box.api.registry
        for plural in ("pods", "resourceclaims"):
            for found in registry.select(plural):
                registry.delete(plural, found["metadata"]["name"], "default")
            await self.until(lambda plural=plural: not registry.select(plural), f"no {plural}")  # type: ignore[misc]

    # -- modes

    async def arrives(self, mode: Mode) -> None:
        """Wait until the ledger says that the first group is wholly in a mode, and that no other is under way."""

        def there() -> bool:
            found = read_account(self.state).switch_of(self.groups[0]["name"])
            return found is not None and found.mode is found.target is mode

        await self.until(there, f"mode {mode}")

    # -- what was handed out, by the kubelet's word and by the ledger

    def handed_out(self) -> Held:
        """What the kubelet has for the pods and claims that are there."""
        alive = self._alive()
        held: Held = {
            (Plane.DEVICE_PLUGIN, entry.resource, device)
            for entry in self.box.kubelet.devices.allocations
            if entry.pod_uid in alive
            for device in entry.grant.ids
        }
        for info in self.box.kubelet.dra.cache.claims.values():
            for driver, devices in info.drivers.items():
                held |= {(Plane.DRA, driver, device.share_id or device.device) for device in devices}
        return held

    def booked(self) -> Held:
        """What the ledger on disk says has been handed out."""
        names = {group["name"]: name for group, name in zip(self.groups, self.names(), strict=True)}
        return {
            (hold.plane, names[hold.group][hold.plane is Plane.DRA], hold.share)
            for hold in read_account(self.state)
            if hold.phase is not Phase.RESERVED
        }

    def phases(self) -> set[Phase]:
        """The phases of all holds on disk."""
        return {hold.phase for hold in read_account(self.state)}

    def _alive(self) -> set[str]:
        """UIDs of the pods that have a running container."""
        return {uid_of(pod) for pod in self.box.api.registry.select("pods") if self._containers(pod)}

    def _containers(self, pod: dict[str, Any]) -> list[Container]:
        return self.box.runtime.running(uid_of(pod))

    def check_dead(self) -> None:
        """What was answered before the death was on disk before it, so far as there is a ledger, and CDI files are
        whole: the runtime reads them while nobody is there to write them again."""
        self.cdi_entries()
        with contextlib.suppress(LedgerError):
            if read_account(self.state).quarantine_of(EVERYTHING, EVERYTHING) is None:
                early = self.handed_out() - self.booked()
                assert not early, f"handed out before it was on disk: {early}"

    async def check(self) -> None:
        """What may never be false: nobody shares a device, what was answered is booked, and CDI names resolve.

        Where the ledger was damaged, what it cannot know is quarantined: nothing is offered, then.
        """
        paths: list[str] = []
        for pod in self.box.api.registry.select("pods"):
            for container in self._containers(pod):
                paths += [n.host_path for n in container.got.nodes if "acc" in n.host_path]
        assert len(paths) == len(set(paths)), f"a device is in two containers: {sorted(paths)}"
        out, booked = self.handed_out(), self.booked()
        if read_account(self.state).quarantine_of(EVERYTHING, EVERYTHING) is not None:
            await self.until(self.offers_nothing, "nothing is offered")
        else:
            assert out <= booked, f"handed out and not in the ledger: {out - booked}"
        planes = [(share, resource) for plane, resource, share in out if resource in (RESOURCE, DRIVER)]
        assert len({share for share, _ in planes}) == len(planes), f"on two planes: {sorted(planes)}"
        self._check_cdi()

    def _check_cdi(self) -> None:
        entries, alive = self.cdi_entries(), self._alive()
        for info in self.box.kubelet.dra.cache.claims.values():
            for _, device in info.devices() if info.pods & alive else ():
                assert set(device.cdi_ids) <= entries, f"no CDI file has {set(device.cdi_ids) - entries}"

    def cdi_entries(self) -> set[str]:
        """The CDI names that a runtime finds in the files as they are."""
        return {
            f"{spec['kind']}={device['name']}"
            for folder in (self.box.paths.cdi_static, self.box.paths.cdi_dynamic)
            for path in folder.glob("*.json")
            for spec in [json.loads(path.read_text())]
            for device in spec["devices"]
        }

    async def calms(self) -> None:
        """Wait, in the daemon's first life, until nothing is under way and both planes show what the ledger has."""
        await self.until(lambda: self._nothing_under_way() and self._shown(), "calm")

    def _nothing_under_way(self) -> bool:
        """Whether each point before a step was followed by the one after it."""
        seen = Counter(self.daemon.reached)
        pairs = (
            ("LEDGER_BEGINNING", "LEDGER_COMMITTED"),
            ("LIST_SENDING", "LIST_SENT"),
            ("SLICE_UPDATING", "SLICE_UPDATED"),
            ("NODE_BRIDGE_APPLYING", "NODE_BRIDGE_APPLIED"),
        )
        return all(seen[Point[before]] == seen[Point[after]] for before, after in pairs)

    def _shown(self) -> bool:
        booked = self.booked()
        held = {plane: {share for other, _, share in booked if other is plane} for plane in Plane}
        every = {f"crypto-acc{number}" for number in range(DEVICES)}
        offered = {device["name"] for device in self.offered(DRIVER)}
        healthy = self.box.kubelet.devices.healthy.get(RESOURCE, set())
        counts = {"devicePlugin": len(held[Plane.DEVICE_PLUGIN]), "dra": len(held[Plane.DRA])}
        return (
            self.told().get("held", {}).items() >= counts.items()
            and offered == every - held[Plane.DEVICE_PLUGIN]
            and healthy == every - held[Plane.DRA]
            and self.box.allocatable(RESOURCE) == len(healthy)
        )

    def offers_all(self) -> bool:
        """Whether all devices are offered on both planes."""
        devices = self.box.kubelet.devices
        return all(
            devices.healthy.get(resource) and not devices.unhealthy.get(resource) and self.offered(driver)
            for resource, driver in self.names()
        )

    def offers_nothing(self) -> bool:
        """Whether nothing is offered on any plane but to those who have it already."""
        healthy = self.box.kubelet.devices.healthy
        taken_up = {hold.device for hold in read_account(self.state)}
        return not any(
            set(healthy.get(resource) or ()) - taken_up
            or {device["name"] for device in self.offered(driver)} - taken_up
            for resource, driver in self.names()
        )

    def offered(self, driver: str) -> list[dict[str, Any]]:
        """The devices in the stored slices."""
        return [d for found in self.box.slices(driver) for d in found["spec"].get("devices", ())]

    def told(self) -> dict[str, Any]:
        """The status of the node's NodeBridge; empty before the first."""
        status: dict[str, Any] = (self.box.get("nodebridges", self.box.node) or {}).get("status", {})
        return status

    def picture(self) -> dict[str, object]:
        """What everybody can see of a node on which nothing is held: offers of both planes, and all files."""
        base = self.box.paths.base
        seen: dict[str, object] = {}
        for resource, driver in self.names():
            devices = self.box.kubelet.devices
            seen[resource] = (
                sorted(devices.healthy.get(resource, ())),
                sorted(devices.unhealthy.get(resource, ())),
            )
            seen[driver] = self.offered(driver)
        seen["held"] = sorted(map(str, read_account(self.state)))
        seen["told"] = {key: self.told().get(key) for key in ("wanted", "mode", "phase", "free", "held")}
        mine = [
            self.state.parent,
            self.box.paths.registry,
            self.box.paths.device_plugins,
            self.box.paths.cdi_static,
            self.box.paths.cdi_dynamic,
        ]
        for path in sorted(path for folder in mine for path in folder.rglob("*") if not path.is_dir()):
            name = path.relative_to(base).as_posix()
            if not name.startswith("k/device-plugins/kubelet"):
                is_text = path.suffix == ".json" and path.is_file()
                seen[name] = path.read_text().replace(str(base), "") if is_text else ""
        return seen


@contextlib.asynccontextmanager
async def scene(zygote: Zygote, groups: Groups, profile: str) -> AsyncIterator[Scene]:
    """A node with three accelerators, a compression engine where a group wants it, and no daemon yet."""
    async with Sandbox(profile=profile) as box:
        box.tree.add_many(POOL, DEVICES)
        box.create_class("acc", DRIVER)
        box.create_class(DRIVER, DRIVER, extended=RESOURCE if SAME_NAME in groups else "")
        if NX in groups:
            box.tree.add_nx_gzip(CREDITS)
            box.create_class("nx", NX_DRIVER)
        await box.observe.wait("KubeletSynced")
        made = Scene(box, zygote, groups)
        try:
            async with made.daemon:
                yield made
        finally:
            await made.hush()


__all__ = [
    "ACC",
    "DRIVER",
    "LEGACY",
    "NX",
    "NX_DRIVER",
    "NX_RESOURCE",
    "RESOURCE",
    "SAME_NAME",
    "Groups",
    "Scene",
    "scene",
]
