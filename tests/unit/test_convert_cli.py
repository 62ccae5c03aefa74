"""`bridge convert`: where it reads and writes, what it says, and how it exits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from bridge.cli import app

SAMPLES = Path(__file__).parents[2] / "samples"
CONFIG = SAMPLES / "config" / "mixed.yaml"
BEFORE, AFTER = (SAMPLES / "workloads" / plane for plane in ("device-plugin", "dra"))
GPU = """\
apiVersion: v1
kind: Pod
metadata: {name: gpu}
spec:
  containers:
  - name: a
    resources: {limits: {nvidia.com/gpu: 1}}
"""


def convert(*arguments: object, text: str = "", config: bool = True) -> Result:
    more = ["--config", str(CONFIG)] if config else []
    result = CliRunner().invoke(app, ["convert", *map(str, arguments), *more], input=text)
    assert "Traceback" not in result.output
    return result


def test_help_has_an_example_and_the_exit_codes() -> None:
    shown = convert("--help", config=False)
    assert shown.exit_code == 0
    assert "Example: bridge convert -f" in shown.output and "Exit code: 0" in shown.output


def test_the_result_is_printed_and_nothing_is_written(tmp_path: Path) -> None:
    file = Path(shutil.copy(BEFORE / "cronjob.yaml", tmp_path))
    shown = convert("-f", file)
    assert (shown.exit_code, shown.stdout) == (0, (AFTER / "cronjob.yaml").read_text())
    assert file.read_text() == (BEFORE / "cronjob.yaml").read_text()


def test_a_folder_is_one_stream_of_documents() -> None:
    shown = convert("-f", BEFORE)
    texts = [(AFTER / name).read_text() for name in ("cronjob.yaml", "deployment.yaml", "list.yaml")]
    assert (shown.exit_code, shown.stdout) == (0, "---\n".join(texts))


def test_standard_input_and_the_way_back() -> None:
    there = convert("-f", "-", text=(BEFORE / "list.yaml").read_text())
    assert there.stdout == (AFTER / "list.yaml").read_text()
    home = convert("-f", "-", "--to", "device-plugin", text=there.stdout)
    assert (home.exit_code, home.stdout) == (0, (BEFORE / "list.yaml").read_text())


def test_write_replaces_what_changes_and_keeps_its_rights(tmp_path: Path) -> None:
    shutil.copytree(BEFORE, tmp_path / "in")
    file = tmp_path / "in" / "deployment.yaml"
    file.chmod(0o600)
    shown = convert("--write", tmp_path / "in")
    assert shown.exit_code == 0 and f"{file}: converted" in shown.stdout
    assert file.read_text() == (AFTER / "deployment.yaml").read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(
        p.name for p in AFTER.iterdir()
    )
    again = convert("--write", tmp_path / "in")
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "bridge: nothing to convert in 3 file(s)\n"


def test_folders_in_folders_are_asked_for(tmp_path: Path) -> None:
    shutil.copytree(BEFORE, tmp_path / "deep" / "er")
    shallow = convert("-f", tmp_path)
    assert shallow.exit_code == 2 and "no file in this folder ends with .yaml" in shallow.stderr
    assert convert("-R", "-f", tmp_path).exit_code == 0


def test_diff_shows_the_changed_lines_alone() -> None:
    shown = convert("--diff", "-f", BEFORE / "cronjob.yaml")
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 0
    assert "-            resources: {limits: {device-bridge.io/nx: 3}}" in lines
    assert "+            resources: {claims: [{name: nx}]}" in lines
    assert sum(line.startswith("-") for line in lines) == 2  # one of them the file's name
    nothing = convert("--diff", "-f", AFTER)
    assert (nothing.stdout, nothing.stderr) == ("", "bridge: nothing to convert in 3 file(s)\n")


def test_what_is_left_is_said_with_file_object_and_field() -> None:
    shown = convert("-f", BEFORE / "cronjob.yaml", "-f", "-", text=GPU)
    assert shown.exit_code == 1
    assert "standard input: Pod gpu: spec.containers[0].resources.limits['nvidia.com/gpu']" in shown.stderr
    assert "kind: ResourceClaimTemplate" in shown.stdout and "nvidia.com/gpu: 1" in shown.stdout


def test_a_class_by_hand_needs_no_configuration() -> None:
    shown = convert("-f", "-", "--class", "nvidia.com/gpu=gpu.nvidia.com", text=GPU, config=False)
    assert shown.exit_code == 0 and "deviceClassName: gpu.nvidia.com" in shown.stdout
    assert "claims: [{name: gpu}]" in shown.stdout, "by what the resource is called, not by its class"


def test_claims_for_what_is_not_offered_through_dra_are_warned_of() -> None:
    shown = convert("-f", BEFORE / "list.yaml")
    assert shown.exit_code == 0
    assert shown.stderr.startswith("bridge: group serial is in mode device-plugin")
    assert "claims of serial.device-bridge.io stay pending" in shown.stderr
    assert convert("-f", AFTER / "list.yaml").stderr == "", "what is converted already was warned of then"
    assert convert("-f", BEFORE / "cronjob.yaml").stderr == ""
    pod = yaml.safe_load(GPU.replace("nvidia.com/gpu", "device-bridge.io/serial"))
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [pod]})
    assert "group serial is in mode device-plugin" in convert("-f", "-", text=text).stderr


@pytest.mark.parametrize("version", ["v1", "v1beta2", "v1beta1"])
def test_the_version_is_written(version: str) -> None:
    shown = convert("-f", BEFORE / "deployment.yaml", "--api-version", version)
    assert f"apiVersion: resource.k8s.io/{version}\n" in shown.stdout
    assert ("exactly:" in shown.stdout) == (version != "v1beta1")


def test_shares_as_devices() -> None:
    shown = convert("-f", BEFORE / "cronjob.yaml", "--shares-as-devices")
    assert "count: 3" in shown.stdout and "credits:" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "nothing to convert"),
        (("-f", "-", "--write"), "standard input cannot be written to"),
        (("-f", "-", "--write", "--diff"), "give one of them"),
        (("-f", "-", "--class", "acc"), "--class is NAME=CLASS"),
        (("-f", "/nowhere.yaml"), "/nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_a_command_line_that_cannot_be_used(arguments: tuple[str, ...], reason: str) -> None:
    shown = convert(*arguments)
    assert shown.exit_code == 2 and reason in shown.stderr


def test_nothing_known_of_any_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.cli.convert.DEFAULT_CONFIG", tmp_path / "none.yaml")
    shown = convert("-f", "-", "--config", tmp_path / "none.yaml", text=GPU, config=False)
    assert (
        shown.exit_code == 2 and "give the bridge's configuration with --config, or --class" in shown.stderr
    )


def test_bad_files_are_said_with_their_lines_and_the_others_are_converted(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Pod\nspec: [\n")
    (tmp_path / "b.yaml").write_bytes(b"kind: Pod\nname: \xff\n")
    shutil.copy(BEFORE / "cronjob.yaml", tmp_path / "c.yaml")
    shown = convert("-f", tmp_path)
    assert shown.exit_code == 2
    assert "a.yaml: line 3: not valid YAML" in shown.stderr
    assert "b.yaml: line 2: not UTF-8 text" in shown.stderr
    assert shown.stdout == (AFTER / "cronjob.yaml").read_text()
