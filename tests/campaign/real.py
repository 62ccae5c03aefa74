"""A campaign on the real node: pods of both planes come and go while the node is disturbed.

`python -m tests.campaign.real --k8s 1.37.1 --seed 1 --minutes 15`; root. Disturbances come in storms with calm
between them, since what must come right can only be judged where nothing disturbs it for as long as it may take.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.campaign import journal
from tests.campaign.checker import Bounds, check
from tests.campaign.journal import DEVICE_PLUGIN, DRA, Line
from tests.campaign.real_bed import SYNC_S, Bed, node
from tests.campaign.real_evidence import Objects, Uses, uses
from tests.campaign.real_faults import FAULTS, Scene
from tests.campaign.real_load import GRACE_S as GRACE_OF_PODS_S
from tests.campaign.real_load import Load
from tests.cluster import audit
from tests.e2e import journal as daemon_log
from tests.e2e.stage import Group

GRACE_S = 10
"""The daemon's releaseGraceSeconds: what was handed out and never matched to a pod comes back after it."""

BOUNDS = Bounds(offered=60, runs=90, ends=60)
"""Why so long: after a start of the kubelet or the daemon no device plugin hold ends for 30 s (the kubelet's lists are
not whole before), then GRACE_S, two looks 5 s apart and the kubelet's status are still to come: `offered`. A Prepare
that was refused comes again at the kubelet's periodic sync, here SYNC_S and up to half more; two of those after the
device is free: `runs`. An Unprepare that failed comes again so too, beside the runtime's own time: `ends`."""

CALM_S = BOUNDS.runs + 10
STORM_S = 110.0
GROUPS: Sequence[tuple[str, int, dict[str, Any]]] = (
    ("acc", 6, {"registration": "watcher", "binding": "auto"}),
    ("old", 5, {"registration": "legacy"}),
)
"""Stems, numbers of devices, and what else is configured: where binding conditions are off, taints heal."""

AT_ONCE = 13
"""Pods that want something at any time: more than there are devices, so that planes contend."""


@dataclass
class Outcome:
    """What a campaign came to.

    Attributes:
        faults: how often each sort was done.
        findings: what may not be; empty is what is wanted.
        deaths: ends of the daemon that nobody asked for.
    """

    version: str
    seed: int
    minutes: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    ran: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    handed_out: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def summary(self) -> str:
        """In words and numbers."""
        counts = Counter(text.split(" at ")[0].split(":")[0] for text in self.findings)
        double, lost, stuck = counts["double use"], counts["lost capacity"], counts["stuck pod"]
        other = len(self.findings) - double - lost - stuck
        verdict = "FAILED" if self.findings else "ok"
        return (
            f"{verdict}: Kubernetes {self.version}, seed {self.seed}, {self.minutes:.1f} minutes: "
            f"{self.ran.total()} pods ran ({_planes(self.ran)}) of {self.made.total()} made, "
            f"{self.faults.total()} faults of {len(self.faults)} sorts; "
            f"{double} double uses, {lost} lost devices, {stuck} stuck pods, {other} other findings"
        )


def run(version: str, seed: int, minutes: float, keep: Path | None = None) -> Outcome:
    """Run one campaign. `keep`: where to leave the journal and the logs; without it only after a finding."""
    outcome = Outcome(version, seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder, node(version, Path(folder)) as bed:
        load = _open(bed, seed)
        try:
            _weather(Scene(bed, load, random.Random(seed), 0), outcome, begun + minutes * 60)
        except AssertionError as error:
            outcome.findings.append(f"it did not come right: {error}")
        outcome.findings += [*_drained(bed, load), *_offered_again(bed)]
        bed.snapshot()
        outcome.minutes = (time.monotonic() - begun) / 60
        lines = _judge(bed, load, outcome)
        if keep is not None or outcome.findings:
            leave(bed, lines, keep or Path(tempfile.mkdtemp(prefix=f"campaign-{version}-{seed}-")))
    return outcome


def _open(bed: Bed, seed: int) -> Load:
    """Plug the devices, start the daemon, wait for both planes, and begin with pods."""
    groups = [bed.plant(stem, count) for stem, count, _ in GROUPS]
    configs = [group.config(**more) for group, (_, _, more) in zip(groups, GROUPS, strict=True)]
    bed.start(*configs, releaseGraceSeconds=GRACE_S)
    for planted in bed.planted:
        bed.offered(planted.group, len(planted.minors))
    bed.snapshot()
    load = Load(bed, groups, random.Random(seed + 1), AT_ONCE)
    load.start()
    return load


def _weather(scene: Scene, outcome: Outcome, ends: float) -> None:
    """Storms of disturbances with calm between them, and a calm at the end."""
    bag: list[str] = []
    number = 0
    while time.monotonic() < ends - CALM_S:
        storm_ends = min(time.monotonic() + STORM_S, ends - CALM_S)
        while time.monotonic() < storm_ends:
            bag = bag or scene.rng.sample(sorted(FAULTS), len(FAULTS))
            sort, number = bag.pop(), number + 1
            _say(f"{number}: {sort}")
            with scene.bed.told.fault(number, sort):
                FAULTS[sort](Scene(scene.bed, scene.load, scene.rng, number))
            if sort == "API server stopped":
                scene.bed.snapshot()
            outcome.faults[sort] += 1
            _watch(scene.bed, outcome, scene.rng.uniform(0, 4))
        _say(f"calm, {scene.load.made.total()} pods made")
        _watch(scene.bed, outcome, CALM_S)


def _watch(bed: Bed, outcome: Outcome, seconds: float) -> None:
    """Let time pass. A daemon that ends by itself is started again, as its DaemonSet would, and told of."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if not bed.daemon.running:
            outcome.deaths.append(bed.daemon.tail(3))
            bed.daemon.launch()
        bed.pause(min(1.0, left))


def _drained(bed: Bed, load: Load) -> list[str]:
    """In the end every pod can be deleted."""
    try:
        load.drain(BOUNDS.ends + GRACE_OF_PODS_S)
    except AssertionError:
        left = [pod["metadata"]["name"] for pod in bed.cluster.list("Pod", bed.namespace)]
        return [f"stuck pod: deleted in the end, and not gone: {left}"]
    finally:
        load.join(30)
    return []


def _offered_again(bed: Bed) -> list[str]:
    """In the end, with no pod left, everything is on offer on both planes."""
    found = []
    ends = time.monotonic() + BOUNDS.offered
    for planted in bed.planted:
        group, count = planted.group, len(planted.minors)

        def all_offered(group: Group = group, count: int = count) -> bool:
            return bed.allocatable(group) == count == len(bed.published(group))

        try:
            bed.wait_for(all_offered, max(1.0, ends - time.monotonic()), "everything to be offered again")
        except AssertionError:
            have = f"{bed.allocatable(group)} allocatable, published {bed.published(group)}"
            found.append(f"lost capacity: of {count} devices of {group.name} in the end {have}")
    return found


def _judge(bed: Bed, load: Load, outcome: Outcome) -> list[Line]:
    """Put the witnesses' words together and hear the judge."""
    offset = time.monotonic() - time.time()
    objects = list(Objects(offset).lines(audit.entries(bed.cluster.audit_log), bed.snapshots))
    opened = uses(bed.notes(), objects)
    lines = journal.merged(bed.told.lines, objects, opened.lines)
    outcome.findings += [str(finding) for finding in check(lines, BOUNDS)]
    outcome.findings += load.broken
    outcome.findings += list(_wrong_counts(load, opened, lines))
    outcome.findings += [f"the daemon broke: {text}" for text in _breaks(bed)]
    outcome.made = load.made
    for line in {n.uid: n for n in lines if isinstance(n, journal.Pod)}.values():
        if line.uid in opened.by_pod:
            outcome.ran[DRA if line.claims or line.unmade else DEVICE_PLUGIN] += 1
    for entry in bed.daemon.entries():
        if entry.message == daemon_log.HANDED_OUT:
            outcome.handed_out[entry.plane] += 1
        elif entry.message == daemon_log.REFUSED:
            outcome.refused[entry.plane] += 1
    _report(load, outcome, opened, lines)
    return lines


def leave(bed: Bed, lines: Sequence[Line], folder: Path) -> None:
    """Leave what is needed to find out what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(f"{journal.dump(line)}\n" for line in lines))
    (folder / "daemon.log").write_text(bed.daemon.log())
    for name in ("kubelet", "kube-scheduler", "kube-controller-manager", "containerd"):
        (folder / f"{name}.log").write_text(bed.cluster.logs(name))
    _say(f"journal and logs: {folder}")


def _wrong_counts(load: Load, opened: Uses, lines: Sequence[Line]) -> Iterator[str]:
    """Pods that had more or other devices than they asked for, over all runs of their container."""
    names = {line.uid: line.name for line in lines if isinstance(line, journal.Pod)}
    for uid, paths in opened.by_pod.items():
        plan = load.plans.get(names.get(uid, ""))
        if plan is not None and len(paths) != plan.count:
            yield f"wrong devices: pod {plan.name} asked for {plan.count} and opened {sorted(paths)}"


def _breaks(bed: Bed) -> list[str]:
    """What the daemon did not expect of itself."""
    told = daemon_log.records(bed.daemon.log())
    return [
        str(r.get("traceback", r))[-2000:]
        for r in told
        if r["message"] == "the daemon broke" or "traceback" in r
    ]


def _report(load: Load, outcome: Outcome, opened: Uses, lines: Sequence[Line]) -> None:
    print(f"faults: {json.dumps(dict(sorted(outcome.faults.items())))}")
    print(
        f"pods refused at admission: {_planes(load.refused)}; why pods failed: {json.dumps(dict(load.reasons))}"
    )
    print(f"hand-outs: {_planes(outcome.handed_out)}; refused by the daemon: {_planes(outcome.refused)}")
    kinds = Counter(line.kind for line in lines)
    print(
        f"journal: {json.dumps(dict(sorted(kinds.items())))}; {opened.unclosed} uses ended without their own word"
    )
    for text in outcome.deaths:
        print(f"the daemon ended by itself and was started again: {text}")
    print(
        f"bounds, counted in calm: offered again {BOUNDS.offered:.0f} s, runs {BOUNDS.runs:.0f} s, ends "
        f"{BOUNDS.ends:.0f} s after its grace (syncFrequency {SYNC_S} s, releaseGraceSeconds {GRACE_S})"
    )
    for text in outcome.findings:
        print(f"FOUND {text}")


def _planes(count: Counter[str]) -> str:
    return ", ".join(f"{count[plane]} {plane}" for plane in (DEVICE_PLUGIN, DRA))


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S "), text, flush=True)


def in_order(main: Callable[[], int]) -> int:
    """Run a program whose `with` blocks clean up after Ctrl-C and SIGTERM too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return main()
    except KeyboardInterrupt:
        print("broken off; nothing is left behind", file=sys.stderr)
        return 130


def main() -> int:
    """Run one campaign and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.real", description=__doc__)
    parser.add_argument("--k8s", default="1.37.1")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="a folder for the journal and the logs")
    chosen = parser.parse_args()
    outcome = run(chosen.k8s, chosen.seed, chosen.minutes, chosen.keep)
    print(outcome.summary)
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(in_order(main))
