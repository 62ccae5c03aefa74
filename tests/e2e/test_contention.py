"""Both planes reach for the same devices at once: the kernel, the containers and the ledger agree on who had what.

Forty Jobs begin together, half of each plane. Whoever loses a race is refused and tries again; nobody is ever
given what another has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import journal
from tests.e2e.objects import Container, Manifest, PodClaim, Request, job
from tests.e2e.stage import Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(1200)]

JOBS = 40
LIMIT_S = 15 * 60
HOLD_S = 1.0
GRACE_S = 5
"""How long a device that no pod was ever matched to stays held: the shorter, the more the planes contend."""


@pytest.mark.oldest
def test_h1_no_device_is_ever_handed_out_twice(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    group, devices = stage.group(), 8
    paths = stage.judged(group, devices)
    daemon = stage.start(group.config(), releaseGraceSeconds=GRACE_S)
    stage.offered(group, devices)

    run_jobs(stage, group, devices, stage.holding(group.pattern, seconds=HOLD_S))

    notes = stage.notes()
    uses = journal.uses(notes)
    planes = ran(stage)
    assert journal.refused_by_kernel(notes) == []
    assert journal.double_uses(uses) == []
    assert {use.path for use in uses} <= set(paths)
    assert {use.holder for use in uses} == set(planes), "every container that ran has an exclusive open"
    compare_with_ledger(
        daemon.entries(), uses, planes, {group.path(i): group.device(i) for i in range(devices)}
    )
    report(capsys, stage, daemon.entries(), planes)


def test_h30_a_shared_device_never_has_more_holders_than_credits(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, credits_ = stage.group("nx"), 4
    stage.plug(NX_GZIP)
    daemon = stage.start(
        {"name": group.name, "kind": "nx-gzip", "options": {"credits": credits_}},
        sys_root=sysfs(tmp_path / "sys", credits_),
        releaseGraceSeconds=GRACE_S,
    )
    stage.wait_for(lambda: stage.allocatable(group) == credits_, 15, f"{credits_} credits allocatable")
    stage.wait_for(lambda: stage.published(group), 15, "the accelerator to be published")

    run_jobs(stage, group, credits_, stage.holding(NX_GZIP, excl=False, seconds=HOLD_S))

    notes = stage.notes()
    uses = journal.uses(notes)
    planes = ran(stage)
    assert journal.refused_by_kernel(notes) == []
    assert {use.holder for use in uses} == set(planes)
    assert 1 < journal.most_at_once(uses) <= credits_
    report(capsys, stage, daemon.entries(), planes)


NX_GZIP = "/dev/crypto/nx-gzip"


def sysfs(root: Path, credits_: int) -> Path:
    """A sysfs tree with a Power NX accelerator."""
    (root / "devices/vio/ibm,compression-v1/nx_gzip_caps").mkdir(parents=True)
    vas = root / "devices/virtual/misc/vas/vas0/gzip/default_capabilities"
    vas.mkdir(parents=True)
    (vas / "nr_total_credits").write_text(f"{credits_}\n")
    (vas / "nr_used_credits").write_text("0\n")
    return root


def run_jobs(stage: Stage, group: Group, devices: int, command: Sequence[str]) -> None:
    """Begin all Jobs at once, and wait until each has completed.

    The kubelet stands still until the scheduler has given away every device on either plane: that is what a
    kubelet or a daemon that lags behind looks like, and makes the first round a collision whatever the machine.
    """
    stage.apply(stage.dra.template("one", Request("device", group.name)))
    jobs: list[Manifest] = []
    for number in range(JOBS // 2):
        asks = Container(command, resources={group.resource: 1})
        claims = Container(command, claims=("device",))
        jobs.append(job(f"dp-{number}", asks, labels={"plane": "device-plugin"}))
        jobs.append(
            job(f"dra-{number}", claims, claims=[PodClaim("device", template="one")], labels={"plane": "dra"})
        )
    everything = Counter({"device-plugin": devices, "dra": devices})
    with kubelet_frozen(stage):
        stage.apply(*jobs)
        stage.wait_for(lambda: bound(stage) >= everything, 60, "pods to be bound")
    stage.wait_for(lambda: completed(stage) == JOBS, LIMIT_S, "all Jobs to complete")


@contextmanager
def kubelet_frozen(stage: Stage) -> Iterator[None]:
    """Make the kubelet stand still, and let it go on."""
    kubelet = stage.cluster.component("kubelet")
    kubelet.freeze()
    try:
        yield
    finally:
        kubelet.thaw()


def bound(stage: Stage) -> Counter[str]:
    """How many pods of each plane the scheduler has put on the node."""
    pods = stage.cluster.list("Pod", stage.namespace)
    return Counter(pod["metadata"]["labels"]["plane"] for pod in pods if pod["spec"].get("nodeName"))


def completed(stage: Stage) -> int:
    jobs = stage.cluster.list("Job", stage.namespace)
    assert not [j for j in jobs if j["status"].get("failed", 0) > 100]
    return sum(j["status"].get("succeeded", 0) for j in jobs)


def ran(stage: Stage) -> dict[str, str]:
    """The plane of each pod whose container ran, by the name of the pod."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["labels"]["plane"]
        for pod in stage.cluster.list("Pod", stage.namespace)
        if any(
            "containerID" in c.get("state", {}).get("terminated", {})
            for c in pod["status"].get("containerStatuses", ())
        )
    }


def compare_with_ledger(
    entries: list[journal.Entry],
    uses: list[journal.Use],
    planes: dict[str, str],
    names: dict[str, str],
) -> None:
    """The ledger had each device out to the right plane for as long as a container had it, and never to both."""
    holds = journal.ledger_holds(entries)
    assert journal.conflicts(holds) == []
    unknown = [u for u in uses if not journal.covered(u, names[u.path], planes[u.holder], holds)]
    assert unknown == []
    handed_out = Counter((d, e.plane) for e in entries if e.message == journal.HANDED_OUT for d in e.devices)
    had = Counter((names[use.path], planes[use.holder]) for use in uses)
    assert not had - handed_out, "no container has a device that nobody handed out"


def report(
    capsys: pytest.CaptureFixture[str], stage: Stage, entries: list[journal.Entry], planes: dict[str, str]
) -> None:
    """Print how hard it was, and fail where it was too easy to prove anything."""
    by_plane = Counter(planes.values())
    refused = Counter(entry.plane for entry in entries if entry.message == journal.REFUSED)
    pods = stage.cluster.list("Pod", stage.namespace)
    failed = Counter(reason(pod["status"]) for pod in pods if pod["status"]["phase"] == "Failed")
    with capsys.disabled():
        print(
            f"\n{stage.cluster.version} {stage.namespace}: containers ran {dict(by_plane)}, "
            f"hand-outs refused {dict(refused)}, pods failed and made anew {dict(failed)}"
        )
    assert min(by_plane["device-plugin"], by_plane["dra"]) >= 10
    # The daemon refuses who comes too late; and since it reserves what claims are allocated before the kubelet asks,
    # the kubelet has often seen the device go and refuses the pod itself.
    assert sum(refused.values()) + sum(failed.values()) >= 1, "nothing was contended"


def reason(status: dict[str, Any]) -> str:
    """Why a pod failed, in a word or two."""
    text = str(status.get("reason", "")) or str(status.get("message", ""))
    return re.sub(r"device-bridge\.io/\S+", "<resource>", text)
