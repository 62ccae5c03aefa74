"""When a prepared claim counts as unprepared though nobody said so (H21): each thing that speaks against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bridge.daemon.orphans import may_be_orphaned, nobody_uses
from bridge.ledger.evidence import ClaimedDevice, Sighting
from bridge.ledger.holds import ClaimHolder

DRIVER = "acc.device-bridge.io"
HOLDER = ClaimHolder("default", "c", "uid-c")
QUIET = Sighting(0.0, listed={}, checkpointed={}, live={}, kubelet_stable=True)
LISTED = frozenset({ClaimedDevice(DRIVER, "acc0", "acc0", ("default", "c"))})
OTHERS = frozenset(
    {
        ClaimedDevice("other.example.com", "acc0", "acc0", ("default", "c")),
        ClaimedDevice(DRIVER, "acc0", "acc0", ("elsewhere", "c")),
    }
)
RUNS = {("default", "p"): frozenset({"uid-p"})}


def pod(uid: str = "uid-p", phase: str = "Running", **more: Any) -> dict[str, Any]:
    meta = {"namespace": "default", "name": "p", "uid": uid, "annotations": more.pop("annotations", None)}
    return {"metadata": meta, "spec": more, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("what", "sighting", "may_be"),
    [
        ("every source answers and nobody lists it", QUIET, True),
        ("claims of other drivers and namespaces are listed", replace(QUIET, claimed=OTHERS), True),
        ("the kubelet lists it", replace(QUIET, claimed=LISTED), False),
        ("podresources does not answer", replace(QUIET, listed=None), False),
        ("the runtime does not answer", replace(QUIET, live=None), False),
        ("the kubelet has only just started", replace(QUIET, kubelet_stable=False), False),
    ],
)
def test_h21_table_of_sightings(what: str, sighting: Sighting, may_be: bool) -> None:
    assert may_be_orphaned(HOLDER, DRIVER, sighting) is may_be, what


@pytest.mark.parametrize(
    ("what", "pods", "unused"),
    [
        ("the runtime runs a pod that the API server has, without the claim", [pod()], True),
        ("a pod that was deleted by force runs on (H9)", [], False),
        ("another pod of its name took its place", [pod("uid-q")], False),
        ("it runs although the API server says that it ended", [pod(phase="Failed")], False),
        ("it names the claim", [pod(resourceClaims=[{"name": "dev", "resourceClaimName": "c"}])], False),
        (
            "a static pod, under another UID than its mirror (H32)",
            [pod("uid-m", annotations={"kubernetes.io/config.hash": "uid-p"})],
            True,
        ),
    ],
)
def test_h21_table_of_pods(what: str, pods: list[dict[str, Any]], unused: bool) -> None:
    assert nobody_uses(HOLDER, pods, replace(QUIET, live=RUNS)) is unused, what
