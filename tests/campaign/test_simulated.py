"""A short campaign, and campaigns against a daemon with a planted defect: each of these must be found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.campaign.plan import Args, Maker, Plan, Scene, Step
from tests.campaign.plants import DOUBLE_USE, LOST_DEVICE, STUCK_POD
from tests.campaign.shrink import shrink
from tests.campaign.simulated import Limits, history

SCENE = Scene(seed=1, devices=4, profile="1.37", binding="off")


def pod(name: str, plane: str, run: int = 20) -> Step:
    args: Args = {
        "name": name,
        "plane": plane,
        "count": 1,
        "run": run,
        "stop": 0,
        "fails": False,
        "init": False,
    }
    return Step("pod", args)


def campaign(*options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tests.campaign", *options]
    return subprocess.run(
        program, capture_output=True, text=True, timeout=110, env={**os.environ, "GRPC_VERBOSITY": "ERROR"}
    )


def replayed(folder: Path, steps: list[Step], *options: str) -> subprocess.CompletedProcess[str]:
    plan = folder / "plan.json"
    plan.write_text(Plan(SCENE, tuple(steps)).dump())
    return campaign("--replay", str(plan), "--keep", str(folder / "out"), *options)


async def test_a_short_history_of_both_planes_with_crashes_finds_nothing(tmp_path: Path) -> None:
    maker = Maker(2)
    outcome = await history(maker.scene, maker.steps(), Limits(operations=400, seconds=12), tmp_path)
    assert outcome.findings == () and outcome.deaths == ()
    assert outcome.counts.total > 50 and outcome.counts.faults.total() > 2
    assert outcome.counts.on("device-plugin") > 10 and outcome.counts.on("dra") > 10


def test_a_planted_double_use_is_found(tmp_path: Path) -> None:
    """The scheduler knows nothing of the devices that the first pod has; three of four are asked for twice."""
    first, second = (pod(plane, plane, run=4000) for plane in ("device-plugin", "dra"))
    first.args["count"] = second.args["count"] = 3
    steps = [Step("scheduler stale", {"for": 4000}), first, Step("wait", rest=1000), second]
    ended = replayed(tmp_path, steps, "--plant", DOUBLE_USE)
    assert ended.returncode == 1 and "double use at" in ended.stdout, ended


def test_a_planted_lost_device_is_found(tmp_path: Path) -> None:
    ended = replayed(tmp_path, [pod("a", "dra")], "--plant", LOST_DEVICE, "--bound", "4")
    assert ended.returncode == 1 and "acc1 has been free and in no slice for 4" in ended.stdout, ended


def test_a_planted_stuck_pod_is_found(tmp_path: Path) -> None:
    steps = [pod(f"c{n}", "dra") for n in range(3)]
    ended = replayed(tmp_path, steps, "--plant", STUCK_POD, "--bound", "4")
    assert ended.returncode == 1 and "does not run, for" in ended.stdout, ended


def test_the_same_plan_without_a_plant_is_fine_and_tells_so_in_its_last_line(tmp_path: Path) -> None:
    ended = replayed(
        tmp_path, [pod("a", "dra"), pod("b", "device-plugin"), Step("daemon killed"), pod("c", "dra")]
    )
    assert ended.returncode == 0, ended
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("campaign on the simulated node:") and "0 double uses, 0 lost, 0 stuck" in last


@pytest.mark.parametrize("seed", [1, 7])
def test_a_seed_fixes_the_plan(seed: int, tmp_path: Path) -> None:
    def plan() -> Plan:
        maker = Maker(seed)
        return Plan(maker.scene, tuple(step for step, _ in zip(maker.steps(), range(500), strict=False)))

    (tmp_path / "plan").write_text(plan().dump())
    assert Plan.load(tmp_path / "plan") == plan()


async def test_a_plan_is_cut_down_to_what_fails() -> None:
    steps = [pod(str(number), "dra") for number in range(60)]

    async def fails(part: Sequence[Step]) -> bool:
        return {"7", "41"} <= {step.args["name"] for step in part}

    assert await shrink(steps, fails, seconds=20) == (steps[7], steps[41])
