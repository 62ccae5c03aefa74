"""Every sample belongs to a scene that is tried on a real node, and fits the configuration there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bridge.cli import app
from bridge.config import load, parse
from tests.e2e.daemon import configuration
from tests.e2e.scenes import SAMPLES, SCENES, Scene, containers, is_configuration, objects

FILES = sorted(path for path in SAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
DRIVERS = {"deviceplugin_driver.py", "dra_driver.py"}
POWER = SAMPLES / "power-device-plugin"


def run(*arguments: object, folder: Path) -> str:
    """What a command says, run as the samples say it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        shown = CliRunner().invoke(app, [*map(str, arguments)])
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def below(path: Path) -> str:
    return str(path.relative_to(SAMPLES))


@pytest.mark.parametrize("path", FILES, ids=below)
def test_no_sample_is_alone(path: Path) -> None:
    if path.parent == SAMPLES:
        assert path.name in DRIVERS
        return
    assert path.suffix == ".yaml" and path.read_text().startswith("# "), "it says what it shows"
    if is_configuration(path):
        kinds = {one["kind"] for one in objects(path)}
        assert kinds == {"BridgeConfig"} or path.name == "configmap.yaml"
        return
    assert [scene for scene in SCENES if path in (*scene.workloads, *scene.classes)]


@pytest.mark.parametrize("path", [path for path in FILES if "BridgeConfig" in path.read_text()], ids=below)
def test_a_configuration_is_valid(path: Path) -> None:
    if path.suffix == ".yaml" and is_configuration(path) and path.name != "configmap.yaml":
        assert load(path).groups


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_what_is_asked_for_is_offered(scene: Scene) -> None:
    config = load(SAMPLES / scene.config) if scene.config else parse(configuration(scene.groups))
    resources = {group.resource_name for group in config.groups}
    classes = {one["metadata"]["name"] for path in scene.classes for one in objects(path)}
    classes = classes or {group.driver_name for group in config.groups}
    asked, claimed = set(), set()
    for path in scene.workloads:
        for one in objects(path):
            for container in containers(one):
                asked |= {name for name in container["resources"].get("limits", {}) if "/" in name}
            if one["kind"].startswith("ResourceClaim"):
                spec = one["spec"]["spec"] if one["kind"].endswith("Template") else one["spec"]
                claimed |= {r["exactly"]["deviceClassName"] for r in spec["devices"]["requests"]}
    assert asked and asked <= resources
    assert claimed and claimed <= classes


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene.classes], ids=str)
def test_classes_are_what_the_command_prints(scene: Scene) -> None:
    (path,) = scene.classes
    comment, _, text = path.read_text().partition("\n")
    command = comment.partition(": bridge ")[2].split()
    assert run(*command, folder=path.parent) == text


@pytest.mark.parametrize(("file", "more"), [("config.yaml", ()), ("config-together.yaml", ("--together",))])
def test_the_configuration_of_the_plugin_is_imported(file: str, more: tuple[str, ...]) -> None:
    assert run("config", "import", "configmap.yaml", *more, folder=POWER) == (POWER / file).read_text()


def test_the_claims_of_the_plugins_users_are_what_convert_makes() -> None:
    command = ["convert", "-f", "deployment.yaml", "--config", "config.yaml"]
    assert run(*command, folder=POWER) == (POWER / "dra" / "deployment.yaml").read_text()
