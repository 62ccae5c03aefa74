"""The sources of evidence: what each one's absence is called, and how often the API server is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bridge.config.model import Daemon
from bridge.daemon.own_pods import OwnPods
from bridge.daemon.source_health import WITHOUT, SourceBook, SourceHealth
from bridge.daemon.sources import Sources
from bridge.ledger.evidence import DeviceName
from bridge.ledger.holds import PodHolder
from bridge.platform.budget import Budget
from dra_v1.kube_errors import Json, Unreachable
from tests.unit.kubelet_peer import short_folder

RESOURCE = "device-bridge.io/acc"


class Api:
    """Answers a list of pods; counts."""

    def __init__(self, *pods: Json) -> None:
        self.pods, self.lists, self.away = list(pods), 0, False

    async def list(self, path: str, params: dict[str, str]) -> Json:
        assert (path, params) == ("/api/v1/pods", {"fieldSelector": "spec.nodeName=node-a"})
        self.lists += 1
        if self.away:
            raise Unreachable(0, "", "connection refused", "list", path)
        return {"items": self.pods}


def pod(name: str, uid: str, phase: str = "Running", grace: int | None = 30, **annotations: str) -> Json:
    return {
        "metadata": {"namespace": "default", "name": name, "uid": uid, "annotations": annotations},
        "spec": {} if grace is None else {"terminationGracePeriodSeconds": grace},
        "status": {"phase": phase},
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


class Bench:
    def __init__(self, folder: Path, api: Api) -> None:
        self.told: list[tuple[str, bool]] = []
        self.holders: list[PodHolder] = []
        self.fresh = False
        self.used: dict[DeviceName, bool] | OSError = {}
        self.checkpoint = folder / "device-plugins" / "kubelet_internal_checkpoint"
        self.checkpoint.parent.mkdir()
        self.sources = Sources(
            Daemon(kubelet_root=folder, cri_socket=str(folder / "cri.sock")),
            [RESOURCE],
            "node-a",
            api,  # type: ignore[arg-type]
            lambda: self.holders,
            self._probe,
            lambda name, yes: self.told.append((name, yes)),
            dict,
            lambda: self.fresh,
            Budget(),
        )

    async def _probe(self) -> dict[DeviceName, bool]:
        if isinstance(self.used, OSError):
            raise self.used
        return self.used

    def health(self, name: str) -> SourceHealth:
        return next(health for health in self.sources.health() if health.name == name)

    def notes(self, uid: str) -> None:
        entry = {"PodUID": uid, "ContainerName": "c", "ResourceName": RESOURCE, "DeviceIDs": {"-1": ["acc0"]}}
        data = {"PodDeviceEntries": [entry], "RegisteredDevices": {}}
        self.checkpoint.write_text(json.dumps({"Data": data, "Checksum": 1}))


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    made = Bench(folder, Api())
    async with made.sources:
        yield made


def test_every_source_says_what_its_absence_does_before_it_was_ever_asked() -> None:
    health = SourceBook(lambda name, yes: None).all()
    assert [h.name for h in health] == list(WITHOUT)
    assert all(h.available is None and h.without and not h.error for h in health)


async def test_a_source_that_does_not_answer_tells_why_and_is_counted_once(bench: Bench) -> None:
    await bench.sources.look()
    await bench.sources.look()
    podresources, runtime = bench.health("podresources"), bench.health("runtime")
    assert podresources.available is False and "no socket" in podresources.error
    assert runtime.available is False and "no container runtime answers" in runtime.error
    assert bench.health("checkpoint").available is True, "a file that was never made is no damage"
    assert bench.health("kubelet").available is False
    assert bench.told.count(("runtime", False)) == 1 and bench.told.count(("checkpoint", True)) == 1


async def test_a_damaged_checkpoint_and_one_of_another_version_are_missing_evidence(bench: Bench) -> None:
    for content in ("{ not JSON", json.dumps({"v2": {"entries": []}})):
        bench.checkpoint.write_text(content)
        assert (await bench.sources.look()).checkpointed is None
        assert bench.health("checkpoint").available is False
    bench.notes("uid-p")
    assert (await bench.sources.look()).checkpointed == {(RESOURCE, "acc0"): frozenset({"uid-p"})}
    back = bench.health("checkpoint")
    assert back.available and "cannot be read" in back.error, "the last error stays to be read"


async def test_h14_a_checkpoint_that_is_gone_is_lost_where_something_is_held_and_else_empty(
    folder: Path,
) -> None:
    api = Api(pod("other", "uid-o"))
    bench = Bench(folder, api)
    async with bench.sources:
        empty = await bench.sources.look()
        assert empty.checkpointed == {} and not empty.checkpoint_lost
        bench.holders = [PodHolder("default", "p", "main", "uid-p")]
        gone = await bench.sources.look()
        assert gone.checkpointed is None and gone.checkpoint_lost
        assert (gone.ended, gone.ended_names) == ({"uid-p"}, {("default", "p")}), (
            "whoever is left to tell is asked"
        )
        assert "has lost its checkpoint" in bench.health("checkpoint").error
        bench.notes("uid-o")
        back = await bench.sources.look()
        assert back.checkpointed and not back.checkpoint_lost and bench.health("checkpoint").available


async def test_the_record_of_claims_is_read_while_the_ledger_is_new(folder: Path) -> None:
    bench = Bench(folder, Api())
    async with bench.sources:
        assert (await bench.sources.look()).prepared is None
        bench.fresh = True
        assert (await bench.sources.look()).prepared == frozenset(), "no claim was ever prepared"
        (folder / "dra_manager_state").write_text("{")
        assert (await bench.sources.look()).prepared is None


async def test_lists_of_pods_are_within_the_budget() -> None:
    api, budget = Api(pod("p", "uid-p")), Budget()
    pods = OwnPods("node-a", api, lambda trouble: None, lambda: 0.0, budget)  # type: ignore[arg-type]
    await pods.look({"uid-p"})
    await pods.list()
    assert api.lists == budget.taken == 2


async def test_the_clock_of_a_health_moves_only_when_it_changes() -> None:
    book = SourceBook(lambda name, yes: None)
    book.note("runtime", "away")
    first = next(h for h in book.all() if h.name == "runtime")
    book.note("runtime", "away for another reason")
    second = next(h for h in book.all() if h.name == "runtime")
    assert second.since == first.since and second.error == "away for another reason"
    book.note("runtime", "")
    assert next(h for h in book.all() if h.name == "runtime").since >= first.since


async def test_a_probe_that_cannot_be_read_is_told_and_shows_nothing(bench: Bench) -> None:
    bench.used = OSError("nr_used_credits: permission denied")
    assert (await bench.sources.look()).used == {}
    assert bench.health("in-use probe").available is False
    bench.used = {("nx", "nx-gzip"): True}
    assert (await bench.sources.look()).used == {("nx", "nx-gzip"): True}
    assert bench.health("in-use probe").available is True


async def test_a_node_at_rest_asks_the_api_server_nothing(folder: Path) -> None:
    api = Api()
    bench = Bench(folder, api)
    async with bench.sources:
        for _ in range(5):
            await bench.sources.look()
    assert api.lists == 0


async def test_without_a_runtime_the_holders_are_asked_for_while_they_are_still_there(folder: Path) -> None:
    api = Api(pod("p", "uid-p", grace=90))
    bench = Bench(folder, api)
    bench.holders = [PodHolder("default", "p", "main")]
    async with bench.sources:
        first = await bench.sources.look()
        assert first.graces == {("default", "p"): 90.0} and first.ended_names == frozenset()
        api.pods.clear()
        bench.sources.pods._next = 0
        gone = await bench.sources.look()
        assert gone.ended_names == {("default", "p")}
        assert gone.graces == {("default", "p"): 90.0}, "what it was is kept for as long as it holds"
        asked = api.lists
        await bench.sources.look()
        assert api.lists == asked, "settled: nothing more to ask"


async def test_an_api_server_that_is_away_leaves_it_open(folder: Path) -> None:
    api = Api()
    api.away = True
    bench = Bench(folder, api)
    bench.holders = [PodHolder("default", "p", "main")]
    async with bench.sources:
        assert (await bench.sources.look()).ended_names == frozenset()
        assert bench.health("pods").available is False


async def test_the_same_question_is_asked_with_growing_pauses() -> None:
    api, now = Api(pod("p", "uid-p")), [0.0]
    pods = OwnPods("node-a", api, lambda trouble: None, lambda: now[0], Budget())  # type: ignore[arg-type]
    for second in range(120):
        now[0] = float(second)
        await pods.look({"uid-p"})
    assert api.lists <= 8, "1 2 4 8 16 30 30 s"
    await pods.look({"uid-p", "uid-q"})
    assert api.lists <= 9 and await pods.look({"uid-q"}) is None


async def test_h32_an_ended_pod_and_a_static_one() -> None:
    api = Api(
        pod("done", "uid-d", "Succeeded", grace=None),
        pod("static", "uid-mirror", **{"kubernetes.io/config.hash": "uid-static"}),
    )
    pods = OwnPods("node-a", api, lambda trouble: None, lambda: 0.0, Budget())  # type: ignore[arg-type]
    found = await pods.look({"uid-d"})
    assert found is not None and found.uids() == {"uid-mirror", "uid-static"}
    assert found.graces[("default", "done")] == 30.0
