"""The list of deliberate breaks follows the code: `python -m tests.mutations` tries them, this keeps them possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.breaks import BREAKS
from tests.mutations.one import Break

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.name)
def test_a_break_has_its_line_and_its_tests(one: Break) -> None:
    text = (ROOT / one.file).read_text()
    assert text.count(one.old) == 1, "change the break as the code changed"
    assert one.old != one.new
    for test in one.tests:
        assert (ROOT / test.partition("::")[0]).is_file(), test
