"""The command line: help, exit codes (0 done, 1 went wrong, 2 wrong input), texts and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from bridge import __version__
from bridge.cli import app
from bridge.config import parse
from bridge.daemon.settings import Settings
from bridge.ledger.holds import ClaimHolder, Pick, Use
from bridge.ledger.ledger import Ledger
from bridge.sandbox.observe import Observations
from bridge.sandbox.tree import Tree

COMMANDS = (
    ("run",),
    ("discover",),
    ("devices",),
    ("sandbox",),
    ("version",),
    ("config", "check"),
    ("config", "show"),
    ("config", "schema"),
    ("config", "import"),
    ("config", "manifests"),
    ("holds",),
    ("explain",),
    ("release",),
    ("doctor",),
    ("ledger", "check"),
    ("ledger", "export"),
    ("mode", "get"),
    ("mode", "set"),
    ("status",),
    ("plan",),
)


class Bench:
    """A configuration file, a device tree, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "bridge.yaml"
        self.tree = Tree(folder / "root", Observations())
        self.config: dict[str, Any] = {
            "apiVersion": "device-bridge.io/v1alpha1",
            "kind": "BridgeConfig",
            "groups": [{"name": "acc", "kind": "device-node", "options": {"include": ["/dev/crypto/acc*"]}}],
            "daemon": {"stateDir": str(folder / "state")},
        }

    def bridge(self, *arguments: str, config: bool = True) -> Result:
        """Run a command on the written configuration."""
        self.file.write_text(yaml.safe_dump(self.config))
        more = ["--config", str(self.file)] if config else []
        return CliRunner().invoke(app, [*arguments, *more])

    def look(self, *arguments: str) -> Result:
        """Run a command that looks at the tree."""
        root = self.folder / "root"
        return self.bridge(*arguments, "--dev-root", str(root / "dev"), "--sys-root", str(root / "sys"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(bench: Bench, command: Sequence[str]) -> None:
    shown = bench.bridge(*command, "--help", config=False)
    assert shown.exit_code == 0
    assert f"Example: bridge {' '.join(command)}" in shown.output


@pytest.mark.parametrize(
    "command", ["devices", "holds", "explain", "mode get", "mode set", "status", "plan", "doctor"]
)
def test_a_command_of_operators_states_its_exit_codes(bench: Bench, command: str) -> None:
    shown = bench.bridge(*command.split(), "--help", config=False)
    assert "Exit 0:" in shown.output and "2:" in shown.output


def test_without_a_command_it_lists_them(bench: Bench) -> None:
    shown = bench.bridge(config=False)
    assert all(
        name in shown.output for name in ("run", "discover", "devices", "sandbox", "config", "version")
    )


def test_version(bench: Bench) -> None:
    assert bench.bridge("version", config=False).output == f"{__version__}\n"


def test_a_command_that_does_not_exist(bench: Bench) -> None:
    assert bench.bridge("discoverr", config=False).exit_code == 2


def test_config_check_says_what_is_valid(bench: Bench) -> None:
    shown = bench.bridge("config", "check")
    assert shown.exit_code == 0 and shown.output == f"{bench.file}: valid, 1 group(s): acc\n"


@pytest.mark.parametrize(
    "command", [("config", "check"), ("config", "show"), ("discover",), ("devices",), ("run",)], ids=" ".join
)
def test_every_command_tells_all_configuration_errors_at_once(bench: Bench, command: Sequence[str]) -> None:
    bench.config["mode"] = "both"
    bench.config["groups"].append({"name": "Bad Name", "kind": "quantum"})
    bench.config["daemon"]["rescanSeconds"] = "often"
    shown = bench.bridge(*command)
    assert shown.exit_code == 2
    for field in ("mode", "groups[1].name", "groups[1].kind", "daemon.rescanSeconds"):
        assert field in shown.stderr, field
    assert "Traceback" not in shown.output


def test_a_configuration_file_that_is_not_there(bench: Bench) -> None:
    shown = bench.bridge("config", "check", "--config", "/nowhere/bridge.yaml", config=False)
    assert shown.exit_code == 2 and "/nowhere/bridge.yaml" in shown.stderr


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_config_show_is_a_configuration_that_means_the_same(bench: Bench, form: str) -> None:
    shown = bench.bridge("config", "show", "-o", form)
    assert shown.exit_code == 0
    effective = yaml.safe_load(shown.output) if form == "yaml" else json.loads(shown.output)
    assert effective["groups"][0]["resourceName"] == "device-bridge.io/acc", "defaults are filled in"
    assert parse(yaml.safe_dump(effective)).dump() == effective


def test_config_schema_is_a_json_schema(bench: Bench) -> None:
    schema = json.loads(bench.bridge("config", "schema", config=False).output)
    assert "groups" in schema["properties"] and schema["$schema"].startswith("https://json-schema.org/")


def test_discover_as_table_and_as_json(bench: Bench) -> None:
    bench.tree.add_many("/dev/crypto/acc{}", 2)
    table = bench.look("discover")
    assert table.exit_code == 0
    assert table.output.splitlines()[0].split() == ["GROUP", "DEVICE", "HEALTH", "NUMA", "SHARES", "NODES"]
    assert len(table.output.splitlines()) == 3
    rows = json.loads(bench.look("discover", "-o", "json").stdout)
    assert [(row["device"], row["health"], row["parts"]) for row in rows] == [
        ("crypto-acc0", "ok", {"/dev/crypto/acc0": 1}),
        ("crypto-acc1", "ok", {"/dev/crypto/acc1": 1}),
    ]


def test_discover_tells_that_it_found_nothing(bench: Bench) -> None:
    shown = bench.look("discover")
    assert shown.exit_code == 0 and "no device found" in shown.output
    assert json.loads(bench.look("discover", "--output", "json").stdout) == []


def test_devices_without_a_ledger_is_an_error_that_says_why(bench: Bench) -> None:
    shown = bench.look("devices")
    assert shown.exit_code == 1
    assert "there is no ledger" in shown.stderr and "the daemon has not run" in shown.stderr


async def test_devices_tells_who_has_what(bench: Bench) -> None:
    bench.tree.add_many("/dev/crypto/acc{}", 4)
    ledger = await Ledger.open(bench.folder / "state", clock=lambda: 0.0)

    def pick(number: int) -> Pick:
        name = f"crypto-acc{number}"
        return Pick("acc", name, name, (Use(f"/dev/crypto/acc{number}", 1, 1),))

    await ledger.grant([pick(0)])
    await ledger.prepare("acc", ClaimHolder("default", "train", "uid-1"), [pick(1)], "{}")
    await ledger.quarantine("acc", "crypto-acc2", "in doubt")
    rows = {row["device"]: row for row in json.loads(bench.look("devices", "-o", "json").stdout)}
    assert rows["crypto-acc0"]["plane"] == "device-plugin" and rows["crypto-acc0"]["state"] == "granted"
    assert rows["crypto-acc0"]["since"] == "1970-01-01T00:00:00Z"
    assert (rows["crypto-acc1"]["holder"], rows["crypto-acc1"]["uid"]) == ("claim default/train", "uid-1")
    assert (rows["crypto-acc2"]["state"], rows["crypto-acc2"]["why"]) == ("quarantined", "in doubt")
    assert rows["crypto-acc3"]["state"] == "free"
    table = bench.look("devices")
    assert "claim default/train" in table.output and len(table.output.splitlines()) == 5
    await ledger.close()


async def test_devices_shows_a_quarantine_of_held_devices_too(bench: Bench) -> None:
    bench.tree.add_many("/dev/crypto/acc{}", 2)
    bench.config["groups"][0]["options"]["replicas"] = 2
    ledger = await Ledger.open(bench.folder / "state")
    pick = Pick("acc", "crypto-acc0", "crypto-acc0", (Use("/dev/crypto/acc0", 2, 2),))
    await ledger.prepare("acc", ClaimHolder("default", "c", "u1"), [pick], "{}")
    await ledger.quarantine("acc", "*", "whose it is cannot be told")
    await ledger.close()
    rows = json.loads(bench.look("devices", "-o", "json").stdout)
    assert [(row["device"], row["state"], row["why"]) for row in rows] == [
        ("crypto-acc0", "all shares held, quarantined", "whose it is cannot be told"),
        ("crypto-acc0", "prepared, quarantined", "whose it is cannot be told"),
        ("crypto-acc1", "quarantined", "whose it is cannot be told"),
    ]
    bench.config["groups"][0]["options"]["replicas"] = 1
    table = bench.look("devices").stdout.splitlines()
    assert len(table) == 3 and "prepared, quarantined" in table[1]


async def test_devices_of_a_damaged_ledger(bench: Bench) -> None:
    (bench.folder / "state").mkdir()
    (bench.folder / "state" / "ledger.db").write_bytes(b"junk" * 1000)
    shown = bench.look("devices")
    assert shown.exit_code == 1 and "cannot read the ledger" in shown.stderr


def test_run_becomes_the_daemon_with_its_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    handed: list[str] = []

    def become(program: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        became.append(list(arguments))
        handed.append(Settings.parse(arguments[-1]).config.read_text())

    monkeypatch.setattr(os, "execve", become)
    stdin = os.dup(0)
    try:
        shown = bench.bridge("run", "--node-name", "worker-1", "--log-level", "debug", "--kubeconfig", "/k")
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
    assert shown.exit_code == 0, shown.output
    (arguments,) = became
    assert arguments[0] == sys.executable and "bridge.daemon" in arguments
    settings = Settings.parse(arguments[-1])
    assert (settings.node_name, settings.log_level) == ("worker-1", "debug")
    assert settings.kubeconfig == Path("/k") and not settings.accept_empty_ledger
    assert json.loads(handed[0]) == bench.config, "the daemon needs no library to read it"


@pytest.mark.parametrize("wrong", [("--log-level", "loud"), ("--log-format", "xml"), ("--no-such-option",)])
def test_run_with_a_wrong_option(bench: Bench, wrong: Sequence[str]) -> None:
    assert bench.bridge("run", *wrong).exit_code == 2


@pytest.mark.parametrize("code", [0, 1])
def test_sandbox_ends_as_the_tour_does(bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def tour(*, keep: bool) -> int:
        return code

    monkeypatch.setattr("bridge.sandbox.tour.tour", tour)
    assert bench.bridge("sandbox", config=False).exit_code == code
