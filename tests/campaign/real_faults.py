"""What is done to the node while pods come and go; each disturbance is over, and repaired, when its function returns.

Only what an operator or the machine could do: nothing here reaches into the daemon but its clock.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.journal import DEVICE_PLUGIN, DRA
from tests.campaign.real_bed import Bed
from tests.campaign.real_load import Fate, Load, Plan
from tests.cluster.processes import Process

BACK_S = 60.0
"""Longest time for a component to answer again, on a machine with two busy cores."""

DRAIN_S = 120.0
LINGERS_S = 20.0
KUBELET = "/var/lib/kubelet"
CHECKPOINT = f"{KUBELET}/device-plugins/kubelet_internal_checkpoint"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a disturbance may touch."""

    bed: Bed
    load: Load
    rng: random.Random
    number: int

    def pause(self, shortest: float, longest: float) -> None:
        """Let it last for a while."""
        self.bed.pause(self.rng.uniform(shortest, longest))

    def outside(self, path: str) -> Path:
        """A path of the node, from outside."""
        return self.bed.cluster.node.outside(path)


# The kubelet


def kubelet_killed(scene: Scene) -> None:
    with kubelet_away(scene):
        scene.pause(1, 8)


def kubelet_frozen(scene: Scene) -> None:
    with frozen(scene.bed.component("kubelet")):
        scene.pause(3, 10)


def checkpoint_damaged(scene: Scene) -> None:
    """Under a kubelet that runs, or behind the back of one that does not."""
    if scene.rng.random() < 0.5:
        damage(scene.outside(CHECKPOINT), scene.rng)
        scene.pause(2, 6)
        return
    with kubelet_away(scene):
        damage(scene.outside(CHECKPOINT), scene.rng)
        scene.pause(0.5, 3)


def checkpoint_removed(scene: Scene) -> None:
    with kubelet_away(scene):
        scene.outside(CHECKPOINT).unlink(missing_ok=True)
        scene.pause(0.5, 3)


@contextmanager
def kubelet_away(scene: Scene) -> Iterator[None]:
    scene.bed.cluster.kill_kubelet()
    try:
        yield
    finally:
        scene.bed.cluster.start_kubelet()


# The daemon


def daemon_killed(scene: Scene) -> None:
    scene.bed.daemon.kill()
    scene.pause(0, 5)
    serve_again(scene)


def daemon_stopped(scene: Scene) -> None:
    scene.bed.daemon.stop()
    scene.pause(0, 6)
    serve_again(scene)


def daemon_frozen(scene: Scene) -> None:
    with frozen(scene.bed.daemon.process):
        scene.pause(3, 10)


def daemon_and_kubelet_killed(scene: Scene) -> None:
    with kubelet_away(scene):
        scene.bed.daemon.kill()
        scene.pause(0, 3)
    serve_again(scene)


def clock_stepped(scene: Scene) -> None:
    """In the daemon alone; it stays wrong until the next step."""
    scene.bed.stepped.step(scene.rng.choice((-86400.0, -3600.0, -30.0, 0.0, 30.0, 3600.0, 30 * 86400.0)))
    scene.pause(0.5, 2)


def disk_full(scene: Scene) -> None:
    """At times the daemon dies of something else meanwhile, and cannot start until there is room again."""
    filler = scene.outside(f"{scene.bed.state}/filler")
    fill(filler)
    try:
        scene.pause(2, 5)
        if scene.rng.random() < 0.3:
            scene.bed.daemon.kill()
            scene.bed.daemon.launch()
        scene.pause(2, 5)
    finally:
        filler.unlink()
    serve_again(scene)


def ledger_damaged(scene: Scene) -> None:
    """Followed by what the daemon tells the operator to do."""
    scene.bed.daemon.kill()
    damage(scene.outside(f"{scene.bed.state}/ledger.db"), scene.rng)
    recover(scene)


def ledger_lost(scene: Scene) -> None:
    """The file, without the folder that shows that there was one; followed by what the operator is told."""
    if scene.rng.random() < 0.5:
        scene.bed.daemon.kill()
    else:
        scene.bed.daemon.stop()
    for path in scene.outside(scene.bed.state).glob("ledger.db*"):
        path.unlink()
    recover(scene)


def state_lost(scene: Scene) -> None:
    """The whole state folder: there is nothing that shows that there was a ledger, so nobody is told anything."""
    scene.bed.daemon.kill()
    for path in scene.outside(scene.bed.state).iterdir():
        path.unlink()
    scene.pause(0, 2)
    serve_again(scene)


def recover(scene: Scene) -> None:
    """Start; if damage was found, drain the node, start once with the flag, and go on."""
    bed = scene.bed
    before = len(bed.daemon.log())
    bed.daemon.launch()
    bed.wait_for(lambda: '"serving"' in bed.daemon.log()[before:], BACK_S, "the daemon to serve")
    if "everything is quarantined" in bed.daemon.log()[before:]:
        scene.load.drain(DRAIN_S)
        bed.daemon.stop()
        bed.daemon.launch("--accept-empty-ledger")
        bed.wait_for(bed.daemon.ready, BACK_S, "the daemon to accept an empty ledger")
        scene.load.resume()
    else:
        bed.wait_for(bed.daemon.ready, BACK_S, "the daemon to be ready")


def serve_again(scene: Scene) -> None:
    """Start the daemon if it does not run, again if it fails, as its DaemonSet would, until it is ready."""
    daemon = scene.bed.daemon

    def ready() -> bool:
        if not daemon.running:
            daemon.launch()
        return daemon.ready()

    scene.bed.wait_for(ready, BACK_S, "the daemon to be ready")


# The rest of the node


def unplugged(scene: Scene) -> None:
    bed, rng = scene.bed, scene.rng
    paths = rng.sample(sorted(path for p in bed.planted for path in p.minors), rng.randint(1, 3))
    for path in paths:
        bed.unplug(path)
    try:
        scene.pause(2, 8)
    finally:
        for path in paths:
            bed.replug(path)


def sockets_deleted(scene: Scene) -> None:
    """Those on which the daemon serves both planes."""
    folders = [f"plugins/{p.group.driver}" for p in scene.bed.planted]
    remove_sockets(
        scene, f"{KUBELET}/device-plugins", *(f"{KUBELET}/{folder}" for folder in folders), scene.bed.state
    )
    scene.pause(1, 4)


def registrations_deleted(scene: Scene) -> None:
    remove_sockets(scene, f"{KUBELET}/plugins_registry")
    scene.pause(1, 4)


def remove_sockets(scene: Scene, *folders: str) -> None:
    for folder in folders:
        for path in scene.outside(folder).iterdir():
            if path.is_socket() and path.name != "kubelet.sock":
                path.unlink(missing_ok=True)


def containerd_restarted(scene: Scene) -> None:
    cluster = scene.bed.cluster
    cluster.stop_component("containerd", kill=scene.rng.random() < 0.5)
    scene.pause(0, 4)
    cluster.start_component("containerd")
    ask = ["ctr", "--connect-timeout", "2s", "version"]
    cluster.wait_for(lambda: not cluster.exec(ask, check=False).returncode, BACK_S, "containerd to answer")


# The control plane


def apiserver_stopped(scene: Scene) -> None:
    scene.bed.cluster.stop_apiserver()
    scene.pause(2, 10)
    scene.bed.cluster.start_apiserver()


def scheduler_frozen(scene: Scene) -> None:
    """What it decides next, it decides from what it knew before."""
    with frozen(scene.bed.component("kube-scheduler")):
        scene.pause(3, 8)


# Pods


def force_deleted(scene: Scene) -> None:
    """The pod is gone from the API at once, and its process has its device on, deaf to being told to end.

    A kubelet that stands still meanwhile, as on a node that is cut off, makes that last.
    """
    bed, rng = scene.bed, scene.rng
    plane, group = rng.choice((DEVICE_PLUGIN, DRA)), rng.choice(bed.planted).group
    plan = Plan(f"linger-{scene.number}", plane, group, 1, Fate.LINGERS, rng.uniform(4, 12))
    bed.apply(plan.manifest(bed.journal_file))
    uid = bed.pod(plan.name)["metadata"]["uid"]

    def opened() -> bool:
        return any(note.event == "open" and note.holder == uid for note in bed.notes())

    # One that does not get its device meanwhile is deleted all the same.
    with suppress(AssertionError):
        bed.wait_for(opened, LINGERS_S, "a lingering pod to open its device")
    with frozen(bed.component("kubelet")):
        bed.cluster.delete("Pod", plan.name, bed.namespace, grace_seconds=0, wait=None)
        scene.pause(0, 6)
    scene.pause(1, 3)


FAULTS: Mapping[str, Callable[[Scene], None]] = {
    "kubelet killed": kubelet_killed,
    "kubelet frozen": kubelet_frozen,
    "checkpoint damaged": checkpoint_damaged,
    "checkpoint removed": checkpoint_removed,
    "daemon killed": daemon_killed,
    "daemon stopped": daemon_stopped,
    "daemon frozen": daemon_frozen,
    "daemon and kubelet killed": daemon_and_kubelet_killed,
    "daemon's clock stepped": clock_stepped,
    "disk full": disk_full,
    "ledger damaged": ledger_damaged,
    "ledger lost": ledger_lost,
    "state lost": state_lost,
    "devices unplugged": unplugged,
    "sockets deleted": sockets_deleted,
    "registrations deleted": registrations_deleted,
    "containerd restarted": containerd_restarted,
    "API server stopped": apiserver_stopped,
    "scheduler frozen": scheduler_frozen,
    "pod force-deleted": force_deleted,
}


# Means


@contextmanager
def frozen(process: Process) -> Iterator[None]:
    """A program that gets no processor."""
    process.freeze()
    try:
        yield
    finally:
        process.thaw()


def damage(path: Path, rng: random.Random) -> None:
    """Cut a file, or write over its beginning or its middle."""
    with suppress(FileNotFoundError):
        size = path.stat().st_size
        how = rng.randrange(3)
        with path.open("r+b") as file:
            if how == 0:
                file.truncate(size // 2)
                return
            file.seek(0 if how == 1 else size // 3)
            file.write(rng.randbytes(max(64, size // 3)))


def fill(path: Path) -> None:
    """Leave no room on the file system of a file."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
