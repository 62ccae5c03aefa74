"""Every command of a page: its options exist, and what needs no machine of the reader's runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docs.checks import calls, problem
from tests.docs.pages import REPOSITORY, Block, blocks, inline_commands, pages
from tests.protocol.fleet import Fleet, running
from tests.protocol.test_plan_command import DRIVER, daemon, device_class

CONSOLE = [block for page in pages() for block in blocks(page) if block.language == "console"]
FLEET = {"status", "plan", "mode"}
SCRIPT_TIME_S = 60


@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_commands_are_written_as_the_programs_take_them(block: Block) -> None:
    assert not [said for command in block.commands if (said := problem(command))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_in_the_text_are_commands(page: Path) -> None:
    for line, command in inline_commands(page):
        words = re.sub(r"\b[A-Z]+\b|…", "x", command).split()
        said = problem(shlex.join(words))
        # In the text a command may be named without its arguments.
        assert not said or "Missing" in said or "is missing" in said or "requires" in said, (
            f"{page.name}:{line}: {said}"
        )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bridge mode set dual --batches 2", "No such option"),
        ("bridge sttus", "No such command"),
        ("bridge config show x", "unexpected extra argument"),
        ("bridge release acc0", ""),
        ("make demoo", "no such target"),
        ("kubectl exec x -- bridge doctor --fix", "No such option"),
        ("bridge config manifests | kubectl apply -f -", ""),
        ("curl x", "do not know"),
    ],
)
def test_the_check_finds_what_does_not_exist(command: str, said: str) -> None:
    assert said in problem(command) if said else not problem(command)


def folder_of(page: Path, folder: Path) -> Path:
    """A folder as a clone has it, with the files that the page writes."""
    for name in ("samples", "kustomize"):
        shutil.copytree(REPOSITORY / name, folder / name, dirs_exist_ok=True)
    for block in blocks(page):
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Where `bridge` and `python` are these, and devices are looked for in the folder."""
    bin_ = folder / ".bin"
    bin_.mkdir(exist_ok=True)
    for name, program in {"bridge": "-m bridge", "python": ""}.items():
        (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (bin_ / name).chmod(0o755)
    (folder / "dev").mkdir(exist_ok=True)
    return {
        **{name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "NODE_NAME")},
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "BRIDGE_DEV_ROOT": str(folder / "dev"),
    }


HERE = [page for page in pages() if any(b.words[1:] == ("here",) for b in blocks(page))]


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.name)
def test_commands_that_need_no_cluster_run(page: Path, tmp_path: Path) -> None:
    folder = folder_of(page, tmp_path)
    for block in blocks(page):
        for command in block.commands if block.words[1:] == ("here",) else ():
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                check=False,
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment(folder),
                timeout=SCRIPT_TIME_S,
            )
            assert done.returncode == 0, f"{block}: {command}\n{done.stdout}{done.stderr}"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path) as made:
        for name in ("worker-1", "worker-2", "worker-3"):
            made.node(name, "device-plugin", labels={"pool": "crypto"})
            daemon(made, name)
        made.registry.create("deviceclasses", device_class(DRIVER, "device-bridge.io/acc"))
        yield made


def asked_of_a_fleet(page: Path) -> list[tuple[str, list[str]]]:
    """The commands of a page that concern all nodes, with where they stand."""
    return [
        (f"{block}: {command}", call[1:])
        for block in blocks(page)
        if block.words[1:] == ("cluster",)
        for command in block.commands
        for call in calls(command)
        if call[0] == "bridge" and call[1] in FLEET
    ]


@pytest.mark.parametrize(
    "page", [page for page in pages() if asked_of_a_fleet(page)], ids=lambda page: page.name
)
async def test_commands_of_a_fleet_run_against_a_simulated_one(page: Path, fleet: Fleet) -> None:
    """Those that only read and label; a daemon is asked on the real node alone."""
    for where, call in asked_of_a_fleet(page):
        done = await fleet.bridge(*("0s" if word == "30s" else word for word in call))
        assert done.exit_code == 0, f"{where}\n{done.output}"
