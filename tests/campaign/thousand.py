"""Many short pods on few devices: `python -m tests.campaign.thousand`; root.

Eight devices, half of the pods of each plane, twelve at a time, the kernel as judge. Two independent drivers for the
same devices handed 45 of 200 pods a device that another had open; here it must be none. What a device plugin pod
cannot be spared in `shared` is a refusal at admission where the scheduler still counted on a device that DRA has just
taken: how often that happens, and how far the node's status was behind when it did, is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign import journal
from tests.campaign.checker import DOUBLE_USE, Bounds, check
from tests.campaign.journal import DEVICE_PLUGIN, DRA, ENDED, Claim, Line, Node, Pod
from tests.campaign.real import in_order
from tests.campaign.real_bed import SYNC_S, Bed, node
from tests.campaign.real_evidence import Objects, uses
from tests.campaign.real_load import Fate, Plan
from tests.cluster import audit
from tests.e2e import journal as daemon_log
from tests.e2e.stage import Group

DEVICES = 8
AT_ONCE = 12
HOLD_S = 0.5
SETTLED_S = 35
"""Until then after a start the daemon gives nothing back that the device plugin plane had: not what is measured."""

SILENCE_S = 180
"""No pod has ended for so long: something is stuck."""

_TICK_S = 0.1


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        made, succeeded: pods by plane.
        refused: pods that failed at admission: what they were told, by their UID.
        evicted: pods that the cluster moved on after they had lost a race, by plane.
        failed: other failures, for people.
        seconds: from the first pod made to the last pod ended.
        double: double uses, for people.
        lags: for how long at a time the node's status counted devices that DRA had taken, in seconds, sorted.
        behind: of refused pods, for how long it had done so when they were bound, sorted; 0 where it did not.
        refused_by_daemon: hand-outs that the daemon refused, by plane.
    """

    made: Counter[str] = field(default_factory=Counter)
    succeeded: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    evicted: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    double: list[str] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)
    refused_by_daemon: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """Of the device plugin's pods those refused at admission."""
        return len(self.refused) / max(1, self.made[DEVICE_PLUGIN])


def run(arguments: argparse.Namespace, planes: Sequence[str]) -> Outcome:
    """Run as many pods as are asked for, in turn on each of the planes."""
    outcome = Outcome()
    with (
        tempfile.TemporaryDirectory(prefix="thousand-") as folder,
        node(arguments.k8s, Path(folder), nodeStatusUpdateFrequency=arguments.status) as bed,
    ):
        group = bed.plant("acc", DEVICES)
        more: dict[str, Any] = {"sharing": arguments.sharing, "binding": arguments.binding}
        if arguments.sharing == "partition":
            more["partition"] = {"devicePlugin": DEVICES // 2}
        begun = time.monotonic()
        bed.start(group.config(**more), releaseGraceSeconds=5)
        bed.wait_for(lambda: bed.allocatable(group) and bed.published(group), 30, "devices on both planes")
        bed.pause(SETTLED_S - (time.monotonic() - begun))
        bed.snapshot()
        _run_all(bed, group, arguments.pods, planes, outcome)
        bed.snapshot()
        _judge(bed, group, outcome)
    return outcome


def _run_all(bed: Bed, group: Group, pods: int, planes: Sequence[str], outcome: Outcome) -> None:
    """Keep as many going as may be until so many have succeeded: as a controller does, one that failed is made anew."""
    begun = ended = time.monotonic()
    alive: dict[str, str] = {}
    left = Counter({plane: pods // len(planes) for plane in planes})
    while alive or left.total():
        there = {pod["metadata"]["name"]: pod for pod in bed.cluster.list("Pod", bed.namespace)}
        for name, plane in list(alive.items()):
            pod = there.get(name)
            if pod is not None and pod["status"].get("phase") not in ENDED:
                continue
            del alive[name]
            ended = time.monotonic()
            if not _count(outcome, plane, pod):
                left[plane] += 1
            bed.cluster.delete("Pod", name, bed.namespace, wait=None)
        while len(alive) < AT_ONCE and left.total():
            plane = max(planes, key=lambda plane: left[plane])
            plan = Plan(f"{plane}-{outcome.made.total()}", plane, group, 1, Fate.ENDS, HOLD_S)
            bed.apply(plan.manifest(bed.journal_file))
            alive[plan.name] = plane
            outcome.made[plane] += 1
            left[plane] -= 1
        if time.monotonic() - ended > SILENCE_S:
            outcome.failed.append(f"no pod has ended for {SILENCE_S} s; waiting: {sorted(alive)}")
            break
        bed.pause(_TICK_S)
    outcome.seconds = ended - begun


def _count(outcome: Outcome, plane: str, pod: Mapping[str, Any] | None) -> bool:
    """Note how a pod ended; whether it did its work."""
    if pod is None:
        outcome.evicted[plane] += 1
        return False
    status = pod["status"]
    if status["phase"] == "Succeeded":
        outcome.succeeded[plane] += 1
        return True
    if not status.get("containerStatuses") and status.get("reason"):
        outcome.refused[pod["metadata"]["uid"]] = f"{status['reason']}: {status.get('message', '')}"
    elif pod["metadata"].get("deletionTimestamp"):
        outcome.evicted[plane] += 1
    else:
        outcome.failed.append(f"{pod['metadata']['name']}: {json.dumps(status)[:600]}")
    return False


def _judge(bed: Bed, group: Group, outcome: Outcome) -> None:
    offset = time.monotonic() - time.time()
    objects = list(Objects(offset).lines(audit.entries(bed.cluster.audit_log), bed.snapshots))
    opened = uses(bed.notes(), objects)
    lines = journal.merged(bed.told.lines, objects, opened.lines)
    never = Bounds(offered=1e9, runs=1e9, ends=1e9)
    outcome.double = [str(f) for f in check(lines, never) if f.what == DOUBLE_USE]
    ran = {line.uid for line in objects if isinstance(line, Pod) and line.phase == "Succeeded"}
    outcome.failed += [
        f"pod {uid} has succeeded without a device of its own" for uid in ran - opened.by_pod.keys()
    ]
    entries = bed.daemon.entries()
    outcome.refused_by_daemon = Counter(e.plane for e in entries if e.message == daemon_log.REFUSED)
    behind = list(_behind(objects, group.resource))
    outcome.lags = sorted(end - begin for begin, end in behind)
    bound: dict[str, float] = {}
    for line in objects:
        if isinstance(line, Pod) and line.node:
            bound.setdefault(line.uid, line.t)
    moments = [bound[uid] for uid in outcome.refused if uid in bound]
    outcome.behind = sorted(
        next((t - begin for begin, end in behind if begin <= t < end), 0.0) for t in moments
    )


def _behind(objects: Iterable[Line], resource: str) -> Iterator[tuple[float, float]]:
    """The times in which the node's status counted more devices than those that no claim was allocated."""
    claims: dict[str, int] = {}
    allocatable, since = 0, None
    for line in objects:
        if isinstance(line, Node):
            allocatable = line.allocatable.get(resource, 0)
        elif isinstance(line, Claim):
            claims[line.uid] = 0 if line.gone else len(line.devices)
        more = allocatable > DEVICES - sum(claims.values())
        if more and since is None:
            since = line.t
        elif not more and since is not None:
            yield since, line.t
            since = None


def _report(arguments: argparse.Namespace, planes: Sequence[str], outcome: Outcome) -> str:
    made, ran = outcome.made, outcome.succeeded
    reasons = Counter(text.split(":")[0] for text in outcome.refused.values())
    for text, count in Counter(_shape(text) for text in outcome.refused.values()).most_common(5):
        print(f"refused, {count} pods: {text}")
    if outcome.lags:
        print(f"the node's status counted devices that DRA had taken, each time for {_spread(outcome.lags)}")
    if outcome.behind:
        late = sum(seconds > 0 for seconds in outcome.behind)
        print(
            f"of {len(outcome.behind)} refused pods {late} were bound in such a time, after {_spread(outcome.behind)}"
        )
    for text in [*outcome.double, *outcome.failed]:
        print(f"FOUND {text}")
    how = f"sharing {arguments.sharing}, binding {arguments.binding}, {' and '.join(planes)}"
    pace = f"syncFrequency {SYNC_S}s, nodeStatusUpdateFrequency {arguments.status}"
    return (
        f"Kubernetes {arguments.k8s}, {how}, {pace}: {made.total()} pods in {outcome.seconds:.0f} s on {DEVICES} "
        f"devices, {AT_ONCE} at a time; {len(outcome.double)} double hand-outs; ran "
        f"{ran[DEVICE_PLUGIN]} device-plugin and {ran[DRA]} dra; refused at admission {len(outcome.refused)} of "
        f"{made[DEVICE_PLUGIN]} device-plugin pods ({outcome.share:.1%}; {dict(reasons)}); evicted to run anew "
        f"{dict(outcome.evicted)}; hand-outs refused by the daemon {dict(outcome.refused_by_daemon)}; "
        f"other failures {len(outcome.failed)}"
    )


def _shape(text: str) -> str:
    """A message without what differs from pod to pod."""
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in text.split())[:400]


def _spread(values: Sequence[float]) -> str:
    p50 = statistics.median(values)
    p90 = values[int(len(values) * 0.9)] if len(values) > 1 else values[0]
    return (
        f"p50 {p50:.2f} s, p90 {p90:.2f} s, most {values[-1]:.2f} s, least {values[0]:.2f} s ({len(values)})"
    )


def main() -> int:
    """Run the pods and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.thousand", description=__doc__)
    parser.add_argument("--k8s", default="1.37.1")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--sharing", choices=("shared", "partition"), default="shared")
    parser.add_argument("--plane", choices=("both", DEVICE_PLUGIN, DRA), default="both")
    parser.add_argument("--status", default="1s", help="the kubelet's nodeStatusUpdateFrequency (default 1s)")
    parser.add_argument("--binding", choices=("auto", "off"), default="auto", help="two-phase binding")
    arguments = parser.parse_args()
    planes = (DEVICE_PLUGIN, DRA) if arguments.plane == "both" else (arguments.plane,)
    outcome = run(arguments, planes)
    print(_report(arguments, planes, outcome))
    refused_in_vain = arguments.sharing == "partition" and bool(outcome.refused)
    return 1 if outcome.double or outcome.failed or refused_in_vain else 0


if __name__ == "__main__":
    sys.exit(in_order(main))
