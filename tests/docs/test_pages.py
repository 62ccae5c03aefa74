"""Links lead somewhere, manifests are valid, and every word of the code that a reader may meet is explained."""

from __future__ import annotations

import ast
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config import parse
from bridge.devices.kinds.base import Kind
from bridge.planes import modes
from bridge.planes.report import Cause
from bridge.platform.events import Reason
from tests.docs import reference
from tests.docs.pages import HOW, REPOSITORY, Block, anchors, blocks, links, pages, prose, told
from tests.manifests.builds import KUSTOMIZE, read
from tests.unit.trees import Tree

DOCS = REPOSITORY / "docs"
BLOCKS = [block for page in pages() for block in blocks(page)]
YAML = [block for block in BLOCKS if block.language == "yaml"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def test_there_are_the_pages_that_are_promised() -> None:
    promised = {"migration", "configuration", "security", "uninstall", "troubleshooting"}
    assert {page.stem for page in DOCS.glob("*.md")} == promised | {"writing-a-kind", "writing-a-driver"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for line, target in links(page):
        assert "://" not in target, f"{page.name}:{line} leads out of the repository"
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}:{line}: {target}"
        assert not heading or heading in anchors(there), f"{page.name}:{line}: no heading #{heading}"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_page_is_found_from_the_readme_and_paths_are_there(page: Path) -> None:
    if page.parent == DOCS:
        assert f"docs/{page.name}" in {target for _, target in links(REPOSITORY / "README.md")}
    for line, text in prose(page):
        for path in re.findall(r"`((?:bridge|kustomize|samples|tests|docs)/[\w./-]*)`", text):
            assert (REPOSITORY / path).exists(), f"{page.name}:{line}: {path}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in ("", "console", "yaml", "python", "mermaid")
    if block.language == "console":
        assert block.words[1:] and block.words[1] in HOW and len(block.words) == 2
        assert block.commands
    else:
        assert len(block.words) <= 1 and not block.commands


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_what_its_kind_says(block: Block) -> None:
    for one in yaml.safe_load_all(block.text):
        assert {"apiVersion", "kind"} <= one.keys()
        if one["kind"] == "BridgeConfig":
            parse(block.text)
        elif one["kind"] in ("Kustomization", "Component"):
            named = [*one.get("resources", []), *one.get("components", [])]
            assert not [path for path in named if not is_there(block, path)]
        else:
            assert {"name"} <= one["metadata"].keys(), "taken by a real API server in `cluster` blocks"
            assert block.file


def is_there(block: Block, path: str) -> bool:
    """Whether a kustomization's path is in the repository, or is a file, or its folder, that the page makes."""
    whole = Path(os.path.normpath(Path(block.file).parent / path))
    made = {Path(one.file) for one in blocks(block.page) if one.file}
    made |= {Path(name) for one in blocks(block.page) for name in re.findall(r"> (\S+)", one.text)}
    return (REPOSITORY / whole).exists() or any(file.is_relative_to(whole) for file in made)


def run(block: Block, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A block as a module."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile(block.text, str(block), "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    run(block, monkeypatch)
    assert ast.get_docstring(ast.parse(block.text)) or "class" in block.text


def test_the_kind_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (block for block in PYTHON if block.page.stem == "writing-a-kind")
    kind = run(block, monkeypatch).TtyKind()
    assert isinstance(kind, Kind)
    tree = Tree(tmp_path)
    tree.file("/dev/ttyS1")
    found = kind.discover("lines", kind.options(), tree.roots)
    assert len(found.devices) == 1 and found.devices[0].attributes == {"line": 1}
    assert found.parts == {"/dev/ttyS1": 1} and not found.problems
    assert kind.watches(kind.options(), tree.roots).directories == {"/dev"}


def test_the_reference_is_what_the_schema_says() -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    assert reference.page(text) == text, "`make docs` writes it anew"


def test_every_event_reason_cause_and_alert_is_explained() -> None:
    page = DOCS / "troubleshooting.md"
    (rules,) = read(KUSTOMIZE / "components" / "monitoring" / "rules.yaml")
    alerts = [rule["alert"] for rule in rules["spec"]["groups"][0]["rules"]]
    conditions = [
        "Ready",
        "Serving",
        "NotServing",
        "Switched",
        "EvidenceComplete",
        "SourcesAnswer",
        "SourceSilent",
    ]
    assert not told([*Reason, *modes.Reason, *Cause, *alerts, *conditions], page)


TEXTS = (
    "held by",
    "reserved for",
    "is quarantined since",
    "is unplugged",
    "is not healthy",
    "has the ledger",
    "serves there already",
    "is no longer in the configuration",
    "needs the API server",
    "cannot listen on daemon.metricsAddress",
    "no healthy devices present",
)
"""Pieces of what a reader sees, without the names in it; the last one is the kubelet's."""


def test_the_texts_that_are_explained_are_those_that_are_said() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    sources = [path for name in ("bridge", "dra_v1") for path in (REPOSITORY / name).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert not [text for text in TEXTS if text not in page]
    assert not [text for text in TEXTS[:-1] if text not in code]


def test_every_phase_and_mode_is_in_the_guide() -> None:
    assert not told(["device-plugin", "dual", "dra", "Refused", "Waiting"], DOCS / "migration.md")


def test_every_mount_and_right_of_the_daemon_is_in_the_page_on_security() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    (daemonset,) = read(KUSTOMIZE / "base" / "daemonset.yaml")
    volumes = daemonset["spec"]["template"]["spec"]["volumes"]
    paths = [volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume]
    assert all(path in page or f"`{path.rpartition('/')[2]}`" in page for path in paths)
    rules = [
        rule
        for file in ("rbac.yaml", "driver-rbac.yaml")
        for one in read(KUSTOMIZE / "base" / file)
        for rule in one.get("rules", ())
    ]
    for rule in rules:
        rows = [
            line
            for line in page.splitlines()
            if f"`{rule['resources'][0]}`" in line and "| right |" not in line
        ]
        verbs = {verb.removeprefix("associated-node:") for verb in rule["verbs"]}
        if rule["resources"] != ["resourceclaims/driver"]:
            assert any(all(verb in row for verb in verbs) for row in rows), rule


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_lines_are_short_enough_to_read(page: Path) -> None:
    assert not [n for n, line in prose(page) if len(line) > 140 and "|" not in line and "`" not in line]
