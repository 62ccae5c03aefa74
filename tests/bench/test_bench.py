"""The bench itself: its arithmetic, and a small run of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bench.__main__ import PARTS, main
from tests.bench.figures import Figure, percentile, table, write
from tests.cluster.versions import DEFAULT, release


def test_percentiles_are_samples() -> None:
    samples = [float(i) for i in range(1, 101)]
    assert percentile(samples, 50) == 50
    assert percentile(samples, 99) == 99
    assert percentile(reversed_of(samples), 100) == 100
    assert percentile([7.0], 50) == 7


def reversed_of(samples: list[float]) -> list[float]:
    return samples[::-1]


@pytest.mark.parametrize(
    ("figure", "ok"),
    [
        (Figure("beside a floor", 4.0, "ms", 2.0, 2.0), True),
        (Figure("beside a floor", 4.1, "ms", 2.0, 2.0), False),
        (Figure("by itself", 150.0, "ms", 150.0), True),
        (Figure("by itself", 150.1, "ms", 150.0), False),
    ],
)
def test_a_limit_is_of_the_ratio_where_there_is_a_floor(figure: Figure, ok: bool) -> None:
    assert figure.ok is ok
    assert ("ok" if ok else "TOO MUCH") in table([figure])


def test_the_json_has_what_is_promised(tmp_path: Path) -> None:
    write([Figure("a", 3.0, "ms", 2.0, 2.0), Figure("b", 1.0, "s", 2.0)], tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == [
        {"name": "a", "value": 3.0, "unit": "ms", "floor": 2.0, "ratio": 1.5, "limit": 2.0, "ok": True},
        {"name": "b", "value": 1.0, "unit": "s", "floor": None, "ratio": None, "limit": 2.0, "ok": True},
    ]


@pytest.mark.e2e
@pytest.mark.timeout(1800)  # a cold build of the node takes minutes
def test_a_small_run_measures_every_part(tmp_path: Path) -> None:
    version = os.environ.get("K8S", DEFAULT)
    if release(version).resource_api != "v1":
        pytest.skip(f"the bench speaks resource.k8s.io/v1, which Kubernetes {version} does not serve")
    output = tmp_path / "bench.json"
    main(["--quick", "--output", str(output)])  # on a busy machine a limit may be missed: not judged here
    rows = json.loads(output.read_text())
    assert len(rows) >= len(PARTS)
    # An idle daemon may well not run for a whole tick in so short a time.
    # And the device plugin API needs no request, and a claim may be let go before its pod is seen to be gone.
    assert all(row["value"] > 0 or row["name"].startswith(("idle", "requests", "pod gone")) for row in rows)
