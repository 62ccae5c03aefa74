"""What the image is made from, looked at without an engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bridge import __version__
from tests.image.built import IMAGE, REPOSITORY

CONTAINER = REPOSITORY / "container"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
TEXT = (REPOSITORY / "Containerfile").read_text()
RUNTIME, BUILD = CONTAINER / "requirements.txt", CONTAINER / "build.txt"


def pins(path: Path) -> dict[str, str]:
    """Versions by name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_the_image_runs_what_the_tests_ran_with() -> None:
    locked = pins(REPOSITORY / "requirements.lock")
    # Only where Windows is does the command line need it.
    assert set(pins(RUNTIME)) - set(locked) <= {"colorama"}
    assert all(locked.get(name, version) == version for name, version in pins(RUNTIME).items())


def test_the_image_has_what_the_daemon_needs_and_nothing_of_the_tests() -> None:
    project = PROJECT["project"]
    assert names(project["dependencies"]) <= set(pins(RUNTIME))
    extras = names([line for lines in project["optional-dependencies"].values() for line in lines])
    assert not (extras - names(project["dependencies"])) & set(pins(RUNTIME))


def test_the_builder_has_what_the_project_is_built_with() -> None:
    lines = [line for line in (CONTAINER / "build.in").read_text().splitlines() if not line.startswith("#")]
    assert names(PROJECT["build-system"]["requires"]) <= names(lines) <= set(pins(BUILD))


@pytest.mark.parametrize("path", [RUNTIME, BUILD], ids=lambda path: path.name)
def test_every_package_is_named_by_its_hashes(path: Path) -> None:
    entries = path.read_text().replace("\\\n", " ").splitlines()
    assert len(entries) == len(pins(path))
    assert all("--hash=sha256:" in entry for entry in entries)


def test_the_version_is_said_in_one_way() -> None:
    assert f"ARG VERSION={__version__}\n" in TEXT
    assert f"device-bridge:{__version__}" == IMAGE
    base = yaml.safe_load((REPOSITORY / "kustomize/base/kustomization.yaml").read_text())
    assert base["images"] == [{"name": "device-bridge", "newTag": __version__}]
    # What a component adds comes after the base, whose tag it then does not get.
    for path in (REPOSITORY / "kustomize/components").rglob("*.yaml"):
        named = re.findall(r"image: (device-bridge.*)", path.read_text())
        assert set(named) <= {IMAGE}, path


def test_nothing_runs_in_the_stage_that_is_shipped_and_nobody_is_root() -> None:
    builder, shipped = TEXT.split("\nFROM ")[1:]
    assert "\nRUN" in builder and "\nRUN" not in shipped
    assert re.findall(r"^USER (.*)", builder, re.MULTILINE) == ["1001"]
    assert re.findall(r"^USER (.*)", shipped, re.MULTILINE) == ["1001"]
    said = re.sub("#.*", "", TEXT + (CONTAINER / "build.sh").read_text())
    assert not re.search(r"\b(microdnf|dnf|yum|apt|apt-get|apk)\b", said)


def test_the_engine_is_given_every_package_of_the_project() -> None:
    given = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert f"!{package}" in given
        assert f"COPY {package} {package}\n" in TEXT


def test_the_bill_of_materials_says_the_same_of_the_same() -> None:
    said = [_bill() for _ in range(2)]
    assert said[0] == said[1]
    bill = json.loads(said[0])
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/device-bridge@{__version__}"
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    grpc = next(one for one in bill["components"] if one["name"] == "grpcio")
    assert grpc["purl"] == f"pkg:pypi/grpcio@{pins(RUNTIME)['grpcio']}"
    assert grpc["licenses"] == [{"expression": "Apache-2.0"}] or grpc["licenses"][0]["license"]["name"]


def _bill() -> str:
    folder = Path(yaml.__file__).parents[1]
    command = [sys.executable, "-I", str(CONTAINER / "sbom.py"), str(folder)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={"SOURCE_DATE_EPOCH": "1700000000"}
    )
    return done.stdout


def test_it_is_built_and_run() -> None:
    pytest.skip("the image is built and run where root may start an engine: pytest -m e2e tests/image")
