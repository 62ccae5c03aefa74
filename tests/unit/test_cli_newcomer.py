"""What somebody meets who tries the commands for the first time: words for types, hints, and nothing left unsaid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli import app
from bridge.cli.finding import Finding
from bridge.cli.problems import word
from tests.unit.test_cli import COMMANDS, Bench

REPOSITORY = Path(__file__).parents[2]
WIDE = {"COLUMNS": "200", "TERM": "dumb"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.config["daemon"]["kubeletRoot"] = str(tmp_path / "kubelet")
    return made


@pytest.mark.parametrize("command", [*COMMANDS, ("convert",), ("ledger",), ()], ids=" ".join)
def test_help_speaks_of_no_types_of_the_language(command: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env=WIDE)
    assert shown.exit_code == 0
    for odd in ("<bool>", "<str>", "<path>", "<list", "list[", "[[", "{file}", "{DEVICE}"):
        assert odd not in shown.output, odd


def test_words_for_types() -> None:
    assert [word(one) for one in ("<bool>", "<str>", "<list[Path]>", "<path>", "<a|b>", "<list[a|b]>")] == [
        "",
        "TEXT",
        "PATH",
        "PATH",
        "a|b",
        "a|b",
    ]


@pytest.mark.parametrize(
    "arguments",
    [("plan", "--to", "foo"), ("run", "--log-level", "foo"), ("config", "import", "-", "--mode", "foo")],
)
def test_a_wrong_choice_is_said_plainly(arguments: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*arguments], env=WIDE)
    assert shown.exit_code == 2
    assert "'foo' is not one of" in shown.output and "Value error" not in shown.output


def test_the_version_as_an_option() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"{__version__}\n")


def test_config_check_takes_its_file_as_it_is(bench: Bench) -> None:
    bench.bridge("config", "check")
    shown = bench.bridge("config", "check", str(bench.file), config=False)
    assert (shown.exit_code, shown.output) == (0, f"{bench.file}: valid, 1 group(s): acc\n")


def test_config_show_has_no_table(bench: Bench) -> None:
    shown = bench.bridge("config", "show", "-o", "table")
    assert shown.exit_code == 2 and "valid" not in shown.stdout and "apiVersion" not in shown.stdout


@pytest.mark.parametrize("command", [("devices",), ("holds",), ("explain", "x")], ids=" ".join)
def test_without_a_configuration_there_is_the_cluster_to_ask(bench: Bench, command: tuple[str, ...]) -> None:
    shown = bench.bridge(*command, "--config", "/nowhere.yaml", config=False)
    assert shown.exit_code == 2 and "or ask a node of the cluster with --node" in shown.stderr


@pytest.mark.parametrize("option", ["--dev-root", "--sys-root"])
def test_a_folder_to_look_in_that_is_not_there(bench: Bench, option: str) -> None:
    shown = bench.bridge("discover", option, "/nonexist")
    assert shown.exit_code == 2 and shown.stdout == ""
    assert shown.stderr == f"bridge: {option} /nonexist: there is no such folder\n"


def test_what_is_left_out_is_said_once(bench: Bench) -> None:
    bench.config["groups"][0]["options"]["include"] = ["/dev/pool", "/dev/p*"]
    bench.tree.at("/dev/pool").mkdir()
    bench.tree.at("/dev/pipes").mkdir()
    shown = bench.look("discover")
    assert shown.exit_code == 0
    assert shown.stderr == "group acc: /dev/pool is a directory, not a device node; it is left out\n", (
        "of what a wildcard meets the nodes are asked for"
    )


def test_doctor_where_there_is_no_kubelet(bench: Bench) -> None:
    shown = bench.look("doctor", "-o", "json")
    found = {one["check"]: one for one in json.loads(shown.stdout)}
    assert shown.exit_code == 1 and next(iter(found)) == "kubelet"
    assert found["kubelet"]["found"].startswith("no kubelet on this machine")
    assert found["evidence: checkpoint"]["verdict"] == "note"
    assert not [check for check in found if check.startswith("kubelet:")], "what a kubelet would have made"
    assert "start the daemon" in found["ledger"]["mend"]


def test_doctor_names_the_folder_that_a_kubelet_has_not_made(bench: Bench) -> None:
    (bench.folder / "kubelet" / "plugins_registry").mkdir(parents=True)
    found = {one["check"]: one for one in json.loads(bench.look("doctor", "-o", "json").stdout)}
    assert "kubelet" not in found and found["kubelet: plugin registry"]["ok"]
    assert not found["kubelet: device plugins"]["ok"]


def test_doctor_fits_a_screen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = bench.look("doctor").stdout.splitlines()
    assert lines[0].startswith("WRONG  kubelet: no kubelet on this machine")
    starts = {line[:6].strip() for line in lines}
    assert starts == {"WRONG", "note", "ok", ""}, "a finding begins a line, what belongs to it is under it"
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)


def test_doctor_without_any_configuration_looks_at_what_needs_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = bench.folder / "none.yaml"
    monkeypatch.setattr("bridge.cli.doctor.DEFAULT_CONFIG", nowhere)
    shown = bench.bridge("doctor", "-o", "json", "--config", str(nowhere), config=False)
    first, *others = json.loads(shown.stdout)
    assert shown.exit_code == 1 and first["check"] == "configuration" and not first["ok"]
    assert {"ledger", "evidence: runtime", "CDI folder"} <= {one["check"] for one in others}
    named = bench.bridge("doctor", "--config", "/nowhere/else.yaml", config=False)
    assert named.exit_code == 2


def test_a_finding_in_lines() -> None:
    assert list(Finding("daemon", False, "is not there", "start it").lines(30)) == [
        "WRONG  daemon: is not there",
        "         mend: start it",
    ]


def test_ledger_check_says_what_to_do_where_there_is_none(bench: Bench) -> None:
    shown = bench.bridge("ledger", "check")
    assert shown.exit_code == 1 and "start the daemon, which makes one" in shown.stderr


def test_the_sample_driver_opens_its_kubeconfig_first(tmp_path: Path) -> None:
    cdi = tmp_path / "cdi"
    command = [sys.executable, "samples/dra_driver.py", "--node-name", "x", "--kubeconfig", "/nope"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, "--cdi-dir", str(cdi)],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and not cdi.exists()
    assert len(done.stderr.splitlines()) == 1 and "/nope" in done.stderr
