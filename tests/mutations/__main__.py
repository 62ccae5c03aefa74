"""Break the code as the list says, once each, in a copy; exit 1 if a break goes unnoticed or fits nowhere any more."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.mutations.breaks import BREAKS
from tests.mutations.one import Break

REPOSITORY = Path(__file__).parents[2]
PARTS = (
    "bridge",
    "deviceplugin_v1beta1",
    "dra_v1",
    "tests",
    "kustomize",
    "samples",
    "pyproject.toml",
    "README.md",
)
LIMIT_S = 600


def main() -> int:
    """Run the chosen breaks; 0 if each was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("only", nargs="*", help="names of breaks, or beginnings of them; all by default")
    only = tuple(parser.parse_args().only)
    chosen = [b for b in BREAKS if not only or b.name.startswith(only)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each in a copy and a process of its own
        missed = [b.name for b, red in zip(chosen, pool.map(caught, chosen), strict=True) if not red]
    print(
        f"{len(chosen)} breaks, {len(chosen) - len(missed)} caught, not caught: {', '.join(missed) or 'none'}"
    )
    return bool(missed)


def caught(mutation: Break) -> bool:
    """Carry out one break, and say whether a test went red."""
    with copy() as tree:
        file = tree / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            print(f"NO LONGER FITS  {mutation.name}: {mutation.file} has it {text.count(mutation.old)} times")
            return False
        file.write_text(text.replace(mutation.old, mutation.new))
        try:
            run = pytest(tree, mutation.tests)
        except subprocess.TimeoutExpired:
            print(f"NOT CAUGHT      {mutation.name} ({mutation.keeps}) within {LIMIT_S} s")
            return False
    # 1: some tests failed. Anything else is a break that could not even be run, which proves nothing.
    red = next(
        (line for line in run.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))), ""
    )
    if run.returncode == 1:
        print(
            f"caught          {mutation.name} ({mutation.keeps}): {red.partition(' - ')[0].partition(' ')[2]}"
        )
        return True
    end = "\n".join(run.stdout.splitlines()[-5:])
    print(f"NOT CAUGHT      {mutation.name} ({mutation.keeps}), pytest ended with {run.returncode}:\n{end}")
    return False


@contextmanager
def copy() -> Iterator[Path]:
    """A copy of what tests need."""
    with tempfile.TemporaryDirectory(prefix="break-") as folder:
        tree = Path(folder)
        for name in PARTS:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree)
        yield tree


def pytest(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run some tests of a tree, until the first that fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    # The installed package is an editable one of the real tree: the copy has to come first.
    surroundings = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=tree, env=surroundings, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
