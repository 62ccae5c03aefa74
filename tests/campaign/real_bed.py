"""A real node for a campaign: groups of devices that the kernel judges, a daemon with the shipped rights, evidence.

The daemon's wall clock can be stepped and its state lies on a small file system of its own. What happens to devices,
and which disturbance is open, is noted here as the campaign's journal wants it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bridge.cli.run import LEAN_MALLOC, LEAN_PYTHON, QUIET
from bridge.daemon.settings import Settings
from tests.campaign.journal import Device, Fault, Line, Presence
from tests.campaign.real_clock import step
from tests.campaign.real_evidence import KINDS, Snapshot
from tests.cluster import Cluster
from tests.cluster.loops import MAJOR
from tests.cluster.processes import Process
from tests.e2e.conftest import RBAC
from tests.e2e.daemon import REPOSITORY, Daemon
from tests.e2e.objects import Manifest, Request
from tests.e2e.stage import Group, Stage

SYNC_S = 10
"""The kubelet's syncFrequency: how soon it tries again what was refused. A minute by default."""

STATE_SIZE = "8m"


@dataclass(frozen=True, slots=True)
class Planted:
    """A group with its devices.

    Attributes:
        group: its names.
        minors: of its devices, by path.
    """

    group: Group
    minors: dict[str, int]


class SteppedDaemon(Daemon):
    """A daemon whose wall clock can be wrong."""

    clock: Path

    def step(self, seconds: float) -> None:
        """Make its wall clock wrong by so many seconds."""
        step(self.clock, seconds)

    def launch(self, *more: str) -> None:
        """Start it without waiting for anything; the one argument there may be is `--accept-empty-ledger`."""
        settings = Settings(
            config=self.config,
            node_name=self._cluster.node_name,
            kubeconfig=self._kubeconfig,
            accept_empty_ledger="--accept-empty-ledger" in more,
        )
        program: list[str | Path] = [sys.executable, *LEAN_PYTHON, "-m", "tests.campaign.real_clock"]
        program += [self.clock, settings.dump()]
        self._process = self._cluster.popen(program, name=self.name, cwd=REPOSITORY, env=LEAN_MALLOC | QUIET)


@dataclass
class Told:
    """What the campaign itself witnesses; several threads write."""

    lines: list[Line] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, line: Line) -> None:
        with self._lock:
            self.lines.append(line)

    def presence(self, device: str, present: bool) -> None:
        self.note(Presence(time.monotonic(), device, present))

    @contextmanager
    def fault(self, number: int, sort: str) -> Iterator[None]:
        """A disturbance, as long as the block lasts."""
        self.note(Fault(time.monotonic(), f"{number}", sort, True))
        try:
            yield
        finally:
            self.note(Fault(time.monotonic(), f"{number}", sort, False))


class Bed(Stage):
    """A stage for a campaign.

    Attributes:
        told: what the campaign itself witnessed.
        planted: its groups.
        snapshots: lists of the API server.
        stopping: set when the campaign is to end; every pause ends then.
        state: the daemon's state folder, as the node sees it.
    """

    def __init__(self, cluster: Cluster, kubeconfig: Path, folder: Path) -> None:
        super().__init__(cluster, kubeconfig, folder)
        self.told = Told()
        self.planted: list[Planted] = []
        self.snapshots: list[Snapshot] = []
        self.stopping = threading.Event()
        self.state = f"/var/lib/kubelet/plugins/device-bridge-{self.number}"

    def pause(self, seconds: float) -> None:
        """Wait, unless the campaign is to end."""
        self.stopping.wait(seconds)

    def plant(self, stem: str, count: int) -> Group:
        """Make a group's devices, and templates of claims for one and for two of them."""
        group = self.group(stem)
        minors: dict[str, int] = {}
        pool = self.cluster.node_name
        for index in range(count):
            path, name = group.path(index), group.device(index)
            minors[path] = self.cluster.add_judged_device(path)
            self.told.note(Device(time.monotonic(), path, group.resource, group.driver, pool, name))
        for amount in (1, 2):
            request = Request("devices", group.name, count=amount)
            self.apply(self.dra.template(template(group, amount), request))
        self.planted.append(Planted(group, minors))
        return group

    def unplug(self, path: str) -> None:
        """Take a device away; who has it open keeps it."""
        self.told.presence(path, False)
        self.cluster.rm(path)

    def replug(self, path: str) -> None:
        """Put the same device back."""
        (minor,) = [p.minors[path] for p in self.planted if path in p.minors]
        self.cluster.mknod(path, "b", MAJOR, minor)
        self.told.presence(path, True)

    def make_daemon(self, config: Path, arguments: Sequence[str]) -> SteppedDaemon:
        """Give a daemon whose state can run out of space and whose clock can be wrong."""
        assert not arguments
        self.cluster.exec(["mkdir", "-p", self.state])
        options = f"mode=700,size={STATE_SIZE}"
        self.cluster.exec(["mount", "-n", "-t", "tmpfs", "-o", options, "tmpfs", self.state])
        made = SteppedDaemon(self.cluster, self._kubeconfig, config, f"bridge-{self.number}")
        made.clock = self._folder / "clock"
        made.step(0)
        return made

    @property
    def stepped(self) -> SteppedDaemon:
        """The daemon."""
        assert isinstance(self.daemon, SteppedDaemon)
        return self.daemon

    def component(self, name: str) -> Process:
        """A component's process."""
        return self.cluster.component(name)

    def snapshot(self) -> None:
        """Note every object as the API server lists it now."""
        for kind in KINDS:
            self.snapshots.append(Snapshot(time.monotonic(), kind, self.cluster.list(kind)))


def template(group: Group, amount: int) -> str:
    """The name of the template of a claim for so many devices."""
    return f"{group.name}-{amount}"


@contextmanager
def node(k8s: str, folder: Path, gates: dict[str, bool] | None = None, **kubelet: object) -> Iterator[Bed]:
    """A cluster with an audit log, the daemon's rights and a bed on it; in the end nothing of it is left."""
    config: Manifest = {"syncFrequency": f"{SYNC_S}s", **kubelet}
    with Cluster(k8s, kubelet_config=config, feature_gates=gates, audit=True) as cluster:
        cluster.apply(RBAC)
        kubeconfig = cluster.kubeconfig_for_service_account("device-bridge", "device-bridge")
        bed = Bed(cluster, kubeconfig, folder)
        bed.open()
        try:
            yield bed
        finally:
            bed.stopping.set()
