"""`python -m tests.campaign`: random histories, judged; exit code 1 on any finding, 2 where it could not do enough.

--seed 7 --minutes 5                        as many seeds from 7 on as fit
--operations 200000 --crashes 2000 --seeds 20 --minutes 40
--replay out/plan-7.json                    the recorded plan of a failing seed again
--plant double-use|lost-device|stuck-pod    with a defect in the daemon: must exit 1
--real [--k8s 1.37.1]                       on the real node
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.checker import Bounds
from tests.campaign.plan import Maker, Plan, Step, sorts
from tests.campaign.plants import PLANTS
from tests.campaign.shrink import shrink
from tests.campaign.simulated import BOUNDS, Limits, Outcome, history
from tests.campaign.summary import Counts, summary

SEED_SECONDS = 60.0
"""How long one seed goes on where only the time is given."""

SHRINK_SECONDS = 120.0
ENOUGH = 10**9


@dataclass(slots=True)
class Total:
    """What all seeds together have come to."""

    counts: Counts
    findings: Counter[str]
    seeds: int = 0
    failing: int | None = None


def main() -> int:
    """Run what the command line says."""
    chosen = _arguments().parse_args()
    if chosen.real:
        return _real(chosen)
    if chosen.one:
        return asyncio.run(_one(chosen))
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="campaign-"))
    folder.mkdir(parents=True, exist_ok=True)
    code = 1
    try:
        code = asyncio.run(_replay(chosen, folder) if chosen.replay else _campaign(chosen, folder))
    finally:
        if code == 0 and chosen.keep is None:
            shutil.rmtree(folder)
    return code


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=0, help="how many; without: as many as fit in the time")
    parser.add_argument("--minutes", type=float, default=1.0, help="when to end in any case")
    parser.add_argument("--operations", type=int, default=0, help="how many to do, over all seeds")
    parser.add_argument(
        "--crashes", type=int, default=0, help="how many of the operations are kills of the daemon"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=3 * (os.cpu_count() or 1),
        help="seeds side by side: each waits more than it works",
    )
    parser.add_argument(
        "--without", action="append", default=[], choices=sorted(sorts()), help="no such fault"
    )
    parser.add_argument("--plant", choices=sorted(PLANTS), default="")
    parser.add_argument(
        "--bound",
        type=float,
        default=BOUNDS.offered,
        help="seconds that things may take where nothing disturbs",
    )
    parser.add_argument(
        "--shrink", type=float, default=SHRINK_SECONDS, help="seconds spent on a shorter plan"
    )
    parser.add_argument(
        "--keep", type=Path, help="a folder for journals, logs and plans; else only of failures"
    )
    parser.add_argument("--replay", type=Path, help="a recorded plan")
    parser.add_argument("--real", action="store_true", help="on the real node (root)")
    parser.add_argument("--k8s", default="1.37.1", help="with --real: the Kubernetes release")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    return parser


def _real(chosen: argparse.Namespace) -> int:
    """Hand over to the real node's own program."""
    program = [sys.executable, "-m", "tests.campaign.real", "--k8s", chosen.k8s]
    program += ["--seed", str(chosen.seed), "--minutes", str(chosen.minutes)]
    if chosen.keep is not None:
        program += ["--keep", str(chosen.keep)]
    os.execv(sys.executable, program)


# -- one seed, in a process of its own


async def _one(chosen: argparse.Namespace) -> int:
    """Run one seed; what came of it lies in its folder."""
    maker = Maker(chosen.seed, frozenset(chosen.without), _share(chosen))
    limits = Limits(chosen.operations or ENOUGH, chosen.minutes * 60)
    outcome = await history(maker.scene, maker.steps(), limits, chosen.one, chosen.plant, _bounds(chosen))
    _write(chosen.one, Plan(maker.scene, outcome.steps), outcome)
    return 1 if outcome.findings else 0


def _bounds(chosen: argparse.Namespace) -> Bounds:
    return Bounds(chosen.bound, chosen.bound + BOUNDS.runs - BOUNDS.offered, chosen.bound)


def _share(chosen: argparse.Namespace) -> float | None:
    """Which part of the operations is to be crashes; None: what the plan thinks right."""
    return chosen.crashes / chosen.operations if chosen.crashes and chosen.operations else None


def _write(folder: Path, plan: Plan, outcome: Outcome) -> None:
    (folder / f"plan-{plan.scene.seed}.json").write_text(plan.dump())
    told = {
        "counts": outcome.counts.dump(),
        "findings": [[finding.what, str(finding)] for finding in outcome.findings],
        "deaths": outcome.deaths,
        "seconds": outcome.seconds,
    }
    (folder / "outcome.json").write_text(json.dumps(told))


# -- all of them


async def _campaign(chosen: argparse.Namespace, folder: Path) -> int:
    begun = time.monotonic()
    until = begun + chosen.minutes * 60
    total = Total(Counts(), Counter())
    seeds = chosen.seeds or (max(20, chosen.workers) if chosen.operations else 0)
    each = -(-chosen.operations // seeds) if seeds else 0
    numbers: Iterator[int] = iter(range(chosen.seed, chosen.seed + (seeds or ENOUGH)))

    async def worker() -> None:
        for number in numbers:
            left = until - time.monotonic()
            if left <= 1 or total.failing is not None:
                return
            await _seed(chosen, folder / f"seed-{number}", number, each, left, total)

    workers = [asyncio.create_task(worker()) for _ in range(chosen.workers)]
    await asyncio.gather(*workers)
    if total.failing is not None:
        await _explain(chosen, folder / f"seed-{total.failing}", total.failing)
    counts = total.counts
    print(summary("simulated", total.seeds, counts, total.findings, time.monotonic() - begun))
    if total.findings:
        return 1
    if counts.total < chosen.operations or counts.crashes < chosen.crashes:
        print(
            f"too little in {chosen.minutes:g} minutes: wanted {chosen.operations} and {chosen.crashes} crashes"
        )
        return 2
    return 0


async def _seed(
    chosen: argparse.Namespace, folder: Path, number: int, each: int, left: float, total: Total
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seconds = left if each else min(left, SEED_SECONDS)
    command = [sys.executable, "-m", "tests.campaign", "--one", str(folder), "--seed", str(number)]
    command += ["--minutes", str(seconds / 60), "--operations", str(each), "--bound", str(chosen.bound)]
    if (share := _share(chosen)) is not None:
        command += ["--crashes", str(round(share * each))]
    for sort in chosen.without:
        command += ["--without", sort]
    if chosen.plant:
        command += ["--plant", chosen.plant]
    # What gRPC says of each killed daemon is no news here.
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "GRPC_VERBOSITY": "ERROR"})
    code = await process.wait()
    outcome = folder / "outcome.json"
    if not outcome.exists():
        total.failing, total.findings["broken history"] = number, total.findings["broken history"] + 1
        print(f"seed {number}: the history broke with exit code {code}")
        return
    told = json.loads(outcome.read_text())
    counts = Counts.load(told["counts"])
    total.counts.add(counts)
    total.seeds += 1
    total.findings.update(what for what, _ in told["findings"])
    deaths = f", the daemon ended by itself: {told['deaths']}" if told["deaths"] else ""
    print(
        f"seed {number}: {counts.total} operations, {counts.crashes} crashes in {told['seconds']:.0f} s{deaths}",
        flush=True,
    )
    for _, text in told["findings"]:
        print(f"seed {number}: {text}", flush=True)
    if told["findings"]:
        total.failing = number
    elif chosen.keep is None:
        shutil.rmtree(folder)


async def _explain(chosen: argparse.Namespace, folder: Path, number: int) -> None:
    """Shrink the plan of a failing seed, and print the short one."""
    file = folder / f"plan-{number}.json"
    if not file.exists() or chosen.shrink <= 0:
        return
    plan = Plan.load(file)
    told = json.loads((folder / "outcome.json").read_text())["findings"]
    wanted = {what for what, _ in told}

    async def fails(steps: Sequence[Step]) -> bool:
        outcome = await _again(chosen, plan, steps, folder / "again")
        return any(finding.what in wanted for finding in outcome.findings)

    short = await shrink(plan.steps, fails, chosen.shrink)
    shorter = folder / f"short-{number}.json"
    shorter.write_text(Plan(plan.scene, short).dump())
    print(f"seed {number}: {len(plan.steps)} steps shrunk to {len(short)} on {plan.scene}:")
    for step in short:
        print(f"  {step}")
    plant = f" --plant {chosen.plant}" if chosen.plant else ""
    print(f"again: python -m tests.campaign --replay {shorter}{plant}; journal and log: {folder}")


async def _again(chosen: argparse.Namespace, plan: Plan, steps: Sequence[Step], folder: Path) -> Outcome:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    limits = Limits(ENOUGH, ENOUGH)
    return await history(plan.scene, steps, limits, folder, chosen.plant, _bounds(chosen))


async def _replay(chosen: argparse.Namespace, folder: Path) -> int:
    plan = Plan.load(chosen.replay)
    outcome = await _again(chosen, plan, plan.steps, folder / "again")
    for finding in outcome.findings:
        print(finding)
    found = Counter(finding.what for finding in outcome.findings)
    print(summary("simulated", 1, outcome.counts, found, outcome.seconds))
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
