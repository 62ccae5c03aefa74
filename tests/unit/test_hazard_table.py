"""The table of hazards in `tests/README.md` is true: what it names exists, and no test of a hazard is left out."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
HAZARDS = range(1, 44)
_NUMBER = re.compile(r"_h(\d+)(?=_)")
_TEST = re.compile(r"`([\w/]+\.py::\w+(?:::\w+)?)`")


def rows() -> dict[int, str]:
    """The last cell of each row, by hazard."""
    found: dict[int, str] = {}
    for line in (TESTS / "README.md").read_text().splitlines():
        if match := re.match(r"\| H(\d+) \| [^|]+ \| ([^|]*) \|$", line):
            number = int(match[1])
            assert number not in found, f"H{number} has two rows"
            found[number] = match[2].strip()
    return found


@functools.cache
def collected() -> frozenset[str]:
    """Every test function of the tree, as pytest names it, without its parameters."""
    return frozenset(_functions())


def _functions() -> Iterator[str]:
    for file in sorted(TESTS.rglob("test_*.py")):
        name = file.relative_to(TESTS).as_posix()
        for node in ast.parse(file.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
            prefix = f"{name}::{node.name}" if isinstance(node, ast.ClassDef) else name
            for one in inner:
                if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test_"):
                    yield f"{prefix}::{one.name}"


def test_every_hazard_has_a_row() -> None:
    assert sorted(rows()) == list(HAZARDS)


@pytest.mark.parametrize("number", HAZARDS)
def test_a_hazard_has_its_tests_in_the_table_or_a_reason_why_not(number: int) -> None:
    cell = rows()[number]
    named, there = set(_TEST.findall(cell)), collected()
    assert named <= there, "the table names what is not there (any longer)"
    numbered = {test for test in there if str(number) in _NUMBER.findall(test.rpartition("::")[2])}
    assert numbered <= named, "tests of this hazard that the table lacks"
    without_names = re.sub(r"<br>|\s", "", _TEST.sub("", cell))
    assert named or without_names, "neither a test nor a reason"


def test_no_test_carries_the_number_of_no_hazard() -> None:
    numbers = {int(n) for test in collected() for n in _NUMBER.findall(test.rpartition("::")[2])}
    assert numbers <= set(HAZARDS)
