"""When a prepared claim counts as unprepared though nobody said so (H21): each thing that speaks against it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.daemon import orphans
from bridge.daemon.orphans import Orphans, may_be_orphaned, nobody_uses
from bridge.ledger.evidence import ClaimedDevice, Sighting
from bridge.ledger.holds import ClaimHolder, Phase, Pick, Use
from bridge.ledger.ledger import Ledger
from bridge.planes.report import News, Orphaned, Report
from bridge.platform.budget import Budget
from dra_v1.kube import ApiError, NotFound
from dra_v1.resource_api import ResourceApi

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


class Server:
    """An API server without pods, and with a claim or without.

    Attributes:
        claim: the claim that it has; None for none.
        trouble: what it answers about claims.
        silent: whether it does not answer about pods.
    """

    def __init__(self) -> None:
        self.api = self
        self.claim: dict[str, Any] | None = None
        self.trouble: ApiError | None = None
        self.silent = False

    async def get_claim(self, namespace: str, name: str) -> dict[str, Any]:
        if self.trouble is not None:
            raise self.trouble
        if self.claim is None:
            raise NotFound(404, "NotFound", "not found", "get", name)
        return self.claim

    find_claim = ResourceApi.find_claim

    async def pods(self) -> list[dict[str, Any]] | None:
        return None if self.silent else []


class Bench:
    """A ledger with one prepared claim, and what looks for orphans in it; also the folder of CDI files."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.server = ledger, Server()
        self.removed: list[str] = []
        self.told: list[str] = []
        self.kept: list[str] = []
        self.news: list[News] = []
        self._at = 0.0
        self.orphans = Orphans(
            ledger,
            {"acc": DRIVER},
            self._never,
            lambda uid: (),
            self.server.pods,
            self.server,  # type: ignore[arg-type]
            Budget(),
            self,
            Report(self.news.append),
            self.told.append,
            lambda claim: self.kept.append(claim.holder.uid),
        )

    async def _never(self) -> Sighting:
        raise AssertionError("sightings are handed in")

    def remove_claim(self, group: str, uid: str) -> bool:
        self.removed.append(uid)
        return True

    async def see(self, *sightings: Sighting, apart: float = 60.0) -> None:
        for sighting in sightings:
            self._at += apart
            claims = self.ledger.account.prepared_claims()
            await self.orphans.act_on(replace(sighting, at=self._at), claims)

    @property
    def phases(self) -> list[Phase]:
        return [hold.phase for hold in self.ledger.account]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = await Ledger.open(tmp_path)
    pick = Pick("acc", "acc0", "acc0", (Use("/dev/acc0", 1, 1),))
    await ledger.prepare("acc", HOLDER, [pick], "{}")
    yield Bench(ledger)
    await ledger.close()


async def test_h21_it_takes_two_looks_in_a_row(bench: Bench) -> None:
    await bench.see(QUIET)
    assert bench.phases == [Phase.PREPARED]
    await bench.see(replace(QUIET, claimed=LISTED), QUIET)
    assert bench.phases == [Phase.PREPARED], "listed in between: it begins anew"
    await bench.see(replace(QUIET, live=RUNS), QUIET)
    assert bench.phases == [Phase.PREPARED], "somebody ran in between"
    await bench.see(QUIET)
    assert bench.phases == [Phase.RELEASING] and bench.removed == bench.told == ["uid-c"]
    assert bench.news == [Orphaned("acc", ("acc0",), "claim default/c")]


async def test_h21_a_server_that_does_not_say_proves_nothing(bench: Bench) -> None:
    for trouble in (ApiError(503, "", "away", "get", "c"), NotFound(404, "", "no such path", "get", "c")):
        bench.server.trouble = trouble
        await bench.see(*[QUIET] * 5)
        assert bench.phases == [Phase.PREPARED]


async def test_h21_pods_that_nobody_can_list_prove_nothing(bench: Bench) -> None:
    bench.server.silent = True
    await bench.see(*[QUIET] * 5)
    assert bench.phases == [Phase.PREPARED]
    bench.server.silent = False
    await bench.see(QUIET, QUIET)
    assert bench.phases == [Phase.RELEASING]


async def test_a_claim_that_lives_on_without_a_device_is_told_once_after_some_minutes(bench: Bench) -> None:
    allocated = {"devices": {"results": [{"request": "r", "driver": DRIVER, "pool": "n", "device": "acc0"}]}}
    with_device = {"metadata": {"namespace": "default", "name": "c", "uid": "uid-c"}} | {
        "status": {"allocation": allocated}
    }
    without = {"metadata": {"namespace": "default", "name": "c", "uid": "uid-c"}, "status": {}}
    bench.server.claim = with_device
    await bench.see(*[QUIET] * 10)
    assert bench.kept == []
    await bench.see(replace(QUIET, claimed=LISTED))  # it begins anew
    bench.server.claim = without
    await bench.see(QUIET, QUIET)
    assert bench.kept == [], "an Unprepare may come yet"
    await bench.see(*[QUIET] * 200)
    assert bench.kept == ["uid-c"] and bench.phases == [Phase.PREPARED]
    await bench.see(replace(QUIET, claimed=LISTED))
    bench.server.claim = with_device
    await bench.see(*[QUIET] * 2)
    bench.server.claim = without
    await bench.see(*[QUIET] * 10)
    assert bench.kept == ["uid-c"] * 2, "another time is told again"


async def test_h21_a_claim_that_is_there_is_asked_for_ever_more_seldom(bench: Bench) -> None:
    asked = 0

    async def there(namespace: str, name: str) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"metadata": {"namespace": "default", "name": "c", "uid": "uid-c"}}

    bench.server.get_claim = there  # type: ignore[method-assign]
    await bench.see(*[QUIET] * 60)
    assert asked == 6, "after 0, 1, 3, 7, 15 and 31 minutes"
    await bench.see(*[QUIET] * 240)
    assert asked == 6 + 4, "and each hour"
    assert bench.phases == [Phase.PREPARED]


async def test_h21_of_many_that_nobody_lists_some_are_asked_for_in_each_look_and_all_in_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "QUESTIONS", 2)
    for number in range(1, 5):
        pick = Pick("acc", f"acc{number}", f"acc{number}", (Use(f"/dev/acc{number}", 1, 1),))
        await bench.ledger.prepare("acc", ClaimHolder("default", f"c{number}", f"uid-{number}"), [pick], "{}")
    asked: list[str] = []

    async def there(namespace: str, name: str) -> dict[str, Any]:
        asked.append(name)
        uid = "uid-c" if name == "c" else f"uid-{name[1:]}"
        return {"metadata": {"namespace": "default", "name": name, "uid": uid}}

    bench.server.get_claim = there  # type: ignore[method-assign]
    await bench.see(QUIET)
    assert len(asked) == 2
    await bench.see(QUIET, QUIET)
    assert set(asked) == {"c", "c1", "c2", "c3", "c4"}
