"""The operator's commands on the real node: what is held and why, and a release that real use stands in the way of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import REPOSITORY
from tests.e2e.objects import Container, PodClaim, Request, pod
from tests.e2e.stage import NEWS_LIMIT_S, Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(300)]


def bridge(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the node, as its root."""
    command = [sys.executable, "-m", "bridge", *arguments, "--config", str(stage.daemon.config)]
    return stage.cluster.exec(command, cwd=REPOSITORY, check=False)


def rows(stage: Stage) -> dict[str, dict[str, Any]]:
    found = bridge(stage, "holds", "-o", "json")
    assert found.returncode == 0 and not found.stderr, found.stderr
    return {row["device"]: row for row in json.loads(found.stdout)}


def held_on_both(stage: Stage) -> Group:
    """Two devices, one held by a pod of each plane, which have them open."""
    group = stage.group()
    stage.judged(group, 2)
    stage.start(group.config())
    stage.offered(group, 2)
    stage.apply(stage.dra.template("one", Request("device", group.name)))
    hold = stage.holding(group.pattern)
    stage.apply(
        pod("dra", Container(hold, claims=("device",)), claims=[PodClaim("device", template="one")]),
        pod("dp", Container(hold, resources={group.resource: 1})),
    )
    stage.opened(["dra", "dp"])
    return group


def test_holds_and_explain_name_who_has_what(stage: Stage) -> None:
    group = held_on_both(stage)
    names = {group.device(0), group.device(1)}
    pods = f"pod {stage.namespace}/dp"
    found = stage.wait_for(
        lambda: (seen := rows(stage)) and any(row["holder"] == pods for row in seen.values()) and seen,
        NEWS_LIMIT_S,
        "the pod to be named",
    )
    assert found.keys() == names
    of = {row["plane"]: row for row in found.values()}
    assert of["device-plugin"]["evidence"] == f"in use by {pods}, says podresources"
    assert of["dra"]["holder"].startswith(f"claim {stage.namespace}/dra-device-")
    told = bridge(stage, "explain", of["device-plugin"]["device"]).stdout
    assert f"held by {pods}, through the device plugin API" in told and f"delete {pods}" in told


def test_a_device_that_is_open_is_not_released_by_force_unless_forced_twice(stage: Stage) -> None:
    group = held_on_both(stage)
    path = {group.device(i): group.path(i) for i in range(2)}
    for device in path:
        refused = bridge(stage, "release", device, "--yes-i-know")
        assert refused.returncode == 1 and "is in use" in refused.stderr, refused.stderr
        assert f"(probe) has {path[device]} open" in refused.stderr, "the kernel says so"
        assert "runs" in refused.stderr, "and so does the runtime"
    assert rows(stage).keys() == set(path)
    assert bridge(stage, "release", group.device(0)).returncode == 2, "it has to be meant"


def test_the_doctor_finds_the_node_well_and_the_ledger_sound(stage: Stage, kubeconfig: Path) -> None:
    group = stage.group()
    stage.plug(group.path(0))
    stage.start(group.config())
    stage.offered(group, 1)
    found = bridge(stage, "doctor", "-o", "json", "--kubeconfig", str(kubeconfig))
    wrong = [row for row in json.loads(found.stdout) if not row["ok"]]
    assert not wrong and found.returncode == 0, wrong
    assert "sound" in bridge(stage, "ledger", "check").stdout
