"""One device wanted by both planes at the same moment, again and again: `python -m tests.campaign.races`; root.

Groups of one device each race side by side. In each race a device plugin pod and a pod with a claim of its own are
made together for the same device, and scheduled while kubelet and daemon stand still: so the cluster has given the
device to both. Then all go on; an API server that is slow for a moment makes the race even, for the daemon asks it
what a claim was given. The claim takes a spare device where the first cannot be had, if the cluster learns that in
time. Arms: `binding` conditions on; those off and `taints` on; `neither` in the cluster.
Here is what is done; who won and what became of the other is `races_report`'s.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.journal import DEVICE_PLUGIN, DRA, ENDED, merged
from tests.campaign.races_report import Race, Table, Told, report
from tests.campaign.real import in_order, leave
from tests.campaign.real_bed import SYNC_S, Bed, node
from tests.campaign.real_evidence import Objects, uses
from tests.campaign.real_faults import frozen
from tests.campaign.real_load import Fate, Plan
from tests.cluster import audit
from tests.e2e.objects import FirstAvailable, Request
from tests.e2e.stage import Group

ARMS: Mapping[str, tuple[Mapping[str, bool], str]] = {
    "binding": ({}, "on"),
    "taints": ({}, "off"),
    "neither": (
        {"DRADeviceBindingConditions": False, "DRADeviceTaints": False, "DRADeviceTaintRules": False},
        "off",
    ),
}
"""Feature gates of every component, and the groups' `binding`."""

SETTLED_S = 35
"""Until then after a start the daemon gives nothing back that the device plugin plane had."""

PATIENCE_S = {"binding": 45.0, "taints": 45.0, "neither": 20.0}
"""How long the winner keeps its device while the loser has not come to run elsewhere. In the last arm it cannot."""

AFTER_S = 90.0
"""Then the winner ends, and the loser has so long: two of the kubelet's periodic syncs, and half of it more."""

MOST_SLOW_S = 4.0
"""How long the API server does not answer at most: what decides who wins."""

SCHEDULED_S = 15.0
"""How long kubelet and daemon stand still at most."""

_TICK_S = 0.1


@dataclass(slots=True)
class Course:
    """One race while it goes on.

    Attributes:
        race: what is kept of it.
        pods: the pods that now stand for each plane.
        won: when and by which plane the device was opened.
        ended: when the winner was told to end.
        over: whether both have had a device, or time has run out.
    """

    race: Race
    pods: dict[str, str] = field(default_factory=dict)
    won: tuple[float, str] | None = None
    ended: float | None = None
    over: bool = False


class Track:
    """All groups, and the races on them.

    Attributes:
        races: all so far.
        told: events about pods and claims, and how pods ended, as first seen.
    """

    def __init__(self, bed: Bed, groups: Sequence[Group], spare: Group, arm: str, rng: random.Random) -> None:
        self.races: list[Race] = []
        self.told: dict[str, Told] = {}
        self._bed = bed
        self._groups = groups
        self._spare = spare
        self._arm = arm
        self._rng = rng
        self._slow = 0.5
        self._step = 0.5
        self._looked = 0.0

    def round(self, count: int) -> None:
        """Run so many races side by side, each on a group of its own."""
        courses = [self._course(group) for group in self._groups[:count]]
        self._begin(courses)
        deadline = time.monotonic() + PATIENCE_S[self._arm] + AFTER_S + 60
        while not all(course.over for course in courses) and time.monotonic() < deadline:
            self._look(courses)
            self._bed.pause(_TICK_S)
        self._steer(courses)
        for kind in ("Pod", "ResourceClaim"):
            self._bed.delete_all(kind)
        for group in self._groups:
            self._bed.offered(group, 1)

    def _course(self, group: Group) -> Course:
        race = Race(len(self.races), group, self._spare, self._slow)
        self.races.append(race)
        return Course(race)

    def _begin(self, courses: Sequence[Course]) -> None:
        """Make the pods, have them scheduled while nobody can act on it, and let go."""
        with frozen(self._bed.component("kubelet")), frozen(self._bed.daemon.process):
            starts = [(plane, course) for course in courses for plane in (DRA, DEVICE_PLUGIN)]
            self._rng.shuffle(starts)
            for plane, course in starts:
                self._make(course, plane)
            with suppress(AssertionError):
                self._bed.wait_for(lambda: self._scheduled(len(courses)), SCHEDULED_S, "all to be scheduled")
            server = self._bed.component("kube-apiserver")
            server.freeze()
        begun = time.monotonic()
        for course in courses:
            course.race.begun = begun
        try:
            self._bed.pause(self._slow)
        finally:
            server.thaw()

    def _scheduled(self, count: int) -> bool:
        """Whether every device plugin pod is bound, and every claim allocated."""
        pods = self._bed.cluster.list("Pod", self._bed.namespace, labelSelector=f"plane={DEVICE_PLUGIN}")
        claims = self._bed.cluster.list("ResourceClaim", self._bed.namespace)
        bound = sum(bool(pod["spec"].get("nodeName")) for pod in pods)
        return bound == count == sum("allocation" in (claim.get("status") or {}) for claim in claims)

    def _make(self, course: Course, plane: str) -> None:
        race = course.race
        name = f"{plane}-{race.number}-{len(race.pods[plane])}"
        pattern = "/dev/crypto/*"  # whichever it is given
        plan = Plan(
            name, plane, race.group, 1, Fate.DELETED, 0, claim=f"either-{race.group.name}", pattern=pattern
        )
        manifest = plan.manifest(self._bed.journal_file)
        manifest["metadata"]["namespace"] = self._bed.namespace
        path = self._bed.cluster.api.path("v1", "Pod", self._bed.namespace)
        made = self._bed.cluster.api.create(path, manifest)
        race.pods[plane].append(made["metadata"]["uid"])
        course.pods[plane] = name

    def _look(self, courses: Sequence[Course]) -> None:
        pods = {p["metadata"]["name"]: p for p in self._bed.cluster.list("Pod", self._bed.namespace)}
        opened = {
            note.holder: (note.mono / 1e9, note.path) for note in self._bed.notes() if note.event == "open"
        }
        if time.monotonic() - self._looked > 0.5:
            self._hear()
        for course in courses:
            if not course.over:
                self._follow(course, pods, opened)

    def _hear(self) -> None:
        self._looked = time.monotonic()
        for event in self._bed.cluster.list("Event", self._bed.namespace):
            key = event["metadata"]["uid"]
            if key not in self.told:
                about, text = event["involvedObject"], str(event.get("message", ""))
                self.told[key] = Told(self._looked, about.get("uid", ""), str(event.get("reason", "")), text)

    def _follow(
        self, course: Course, pods: Mapping[str, Any], opened: Mapping[str, tuple[float, str]]
    ) -> None:
        """Do what the cluster's controllers and the winner would do next."""
        race = course.race
        for plane, name in list(course.pods.items()):
            self._heed(pods.get(name))
            if (course.won is None or course.won[1] != plane) and _is_over(pods.get(name)):
                self._make(course, plane)  # refused or evicted: its controller makes another at once
        had = {plane: [opened[u] for u in race.pods[plane] if u in opened] for plane in (DEVICE_PLUGIN, DRA)}
        now = time.monotonic()
        if course.won is None:
            firsts = [(t, plane) for plane, uses_ in had.items() for t, path in uses_ if path == race.path]
            course.won = min(firsts, default=None)
            return
        loser = DRA if course.won[1] == DEVICE_PLUGIN else DEVICE_PLUGIN
        if had[loser]:
            course.over = True
        elif course.ended is None and (loser == DEVICE_PLUGIN or now - course.won[0] > PATIENCE_S[self._arm]):
            # A device plugin pod has nowhere else to go; it is told at its admission, or waits unbound.
            if loser == DRA or now - course.won[0] > 3:
                self._bed.cluster.delete("Pod", course.pods[course.won[1]], self._bed.namespace, wait=None)
                course.ended = race.freed = now
        elif course.ended is not None and now - course.ended > AFTER_S:
            course.over = True

    def _heed(self, pod: Mapping[str, Any] | None) -> None:
        """What a pod's own status says of its end is word to its owner too."""
        if pod is not None and pod["status"].get("phase") == "Failed":
            uid, status = pod["metadata"]["uid"], pod["status"]
            reason, text = f"status: {status.get('reason')}", str(status.get("message", ""))
            self.told.setdefault(uid, Told(time.monotonic(), uid, reason, text))

    def _steer(self, courses: Sequence[Course]) -> None:
        """Give the plane that wins seldom a better start in the next round, in ever smaller steps."""
        wins = [c.won[1] for c in courses if c.won is not None]
        if wins:
            ahead = (wins.count(DEVICE_PLUGIN) - wins.count(DRA)) / len(wins)
            self._slow = min(MOST_SLOW_S, max(0.0, self._slow - self._step * ahead))
            self._step = max(0.05, self._step * 0.8)


def _is_over(pod: Mapping[str, Any] | None) -> bool:
    return pod is None or "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") in ENDED


def run(arm: str, races: int, side: int, seed: int, keep: Path | None) -> Table:
    """Run one arm; `keep` is a folder for the evidence and the logs."""
    gates, binding = ARMS[arm]
    with (
        tempfile.TemporaryDirectory(prefix="races-") as folder,
        node("1.37.1", Path(folder), dict(gates)) as bed,
    ):
        groups = [bed.plant(f"race{i}n", 1) for i in range(side)]
        spare = bed.plant("spare", side)
        for group in groups:
            either = FirstAvailable("devices", (Request("race", group.name), Request("spare", spare.name)))
            bed.apply(bed.dra.template(f"either-{group.name}", either))
        begun = time.monotonic()
        configs = [group.config(binding=binding) for group in groups] + [spare.config(mode="dra")]
        bed.start(*configs, releaseGraceSeconds=5)
        for group in groups:
            bed.offered(group, 1)
        bed.pause(SETTLED_S - (time.monotonic() - begun))
        bed.snapshot()
        track = Track(bed, groups, spare, arm, random.Random(seed))
        while len(track.races) < races:
            track.round(min(side, races - len(track.races)))
            print(time.strftime("%H:%M:%S "), f"{len(track.races)} races", flush=True)
        bed.snapshot()
        offset = time.monotonic() - time.time()
        objects = list(Objects(offset).lines(audit.entries(bed.cluster.audit_log), bed.snapshots))
        opened = uses(bed.notes(), objects)
        lines = merged(bed.told.lines, objects, opened.lines)
        if keep is not None:
            leave(bed, lines, keep)
        return report(arm, track.races, lines, list(track.told.values()))


def main() -> int:
    """Run an arm and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.races", description=__doc__)
    parser.add_argument("--arm", choices=sorted(ARMS), required=True)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--side-by-side", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the evidence and the logs")
    arguments = parser.parse_args()
    table = run(arguments.arm, arguments.races, arguments.side_by_side, arguments.seed, arguments.keep)
    print(f"syncFrequency {SYNC_S}s, nodeStatusUpdateFrequency 1s, {arguments.side_by_side} side by side")
    print(table.text)
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(in_order(main))
