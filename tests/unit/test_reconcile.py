"""The reconciler with scripted sightings: what it names, takes up, doubts and ends, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.ledger.evidence import ClaimedDevice, Grace, Sighting
from bridge.ledger.holds import ClaimHolder, Hold, Phase, Pick, Plane, PodHolder, Refused, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.reconcile import Names, Reconciler
from bridge.ledger.store import LedgerError

RESOURCE = "device-bridge.io/acc"
POD = PodHolder("default", "p", "main")
QUIET = Sighting(0.0, listed={}, checkpointed={}, live={}, prepared=frozenset(), kubelet_stable=True)
LIVE = {("default", "p"): frozenset({"uid-p"})}
DRIVER = "acc.device-bridge.io"


class Script:
    """Sightings, one a look, at the times given; the last one again and again, ten seconds apart."""

    def __init__(self) -> None:
        self.next: list[Sighting] = []
        self.last = QUIET
        self.looks = 0

    def then(self, *sightings: Sighting) -> None:
        self.next.extend(sightings)

    async def look(self) -> Sighting:
        self.looks += 1
        self.last = self.next.pop(0) if self.next else replace(self.last, at=self.last.at + 10)
        return self.last


class Releases:
    """Who was told to be free."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.found: list[str] = []
        self.told = asyncio.Event()

    def taken_up(self, plane: Plane, group: str, devices: list[str], holder: str) -> None:
        self.found += [f"{group}/{device} {holder}" for device in devices]

    def ended(self, plane: Plane, group: str, devices: list[str], holder: str, why: str) -> None:
        self.seen += devices
        self.told.set()


def pick(name: str, group: str = "acc") -> Pick:
    if not name.startswith("acc"):
        raise LookupError(f"{name} is no device of group {group}")
    return Pick(group, name, name, (Use(f"/dev/{name}", 1, 1),))


class Bench:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.script, self.releases = ledger, Script(), Releases()
        self.reconciler = Reconciler(
            ledger,
            Names({"acc": RESOURCE}, {"acc": DRIVER}, lambda group, name: pick(name, group)),
            self.script.look,
            self.releases,
            Grace(),
        )

    async def see(self, *sightings: Sighting) -> None:
        """Let it look at these and decide."""
        for sighting in sightings:
            await self.reconciler.act_on(sighting, self.ledger.account.on_plane(Plane.DEVICE_PLUGIN))

    def held(self) -> dict[str, tuple[Phase, str]]:
        return {h.share: (h.phase, str(h.holder)) for h in self.ledger.account.on_plane(Plane.DEVICE_PLUGIN)}


@pytest.fixture
def wall() -> list[float]:
    return [time.time()]


@pytest.fixture
async def bench(tmp_path: Path, wall: list[float]) -> AsyncIterator[Bench]:
    ledger = await Ledger.open(tmp_path, clock=lambda: wall[0])
    yield Bench(ledger)
    await ledger.close()


def times(sighting: Sighting, at: Iterable[float]) -> list[Sighting]:
    return [replace(sighting, at=moment) for moment in at]


async def test_a_grant_learns_its_pod_from_podresources_and_its_uid_from_the_runtime(bench: Bench) -> None:
    await bench.ledger.grant([pick("acc0")])
    key = (RESOURCE, "acc0")
    await bench.see(replace(QUIET, listed={key: POD}, checkpointed={key: frozenset({"uid-p"})}, live=LIVE))
    assert bench.held() == {"acc0": (Phase.HELD, "pod default/p")}
    (hold,) = bench.ledger.account
    assert hold.holder == PodHolder("default", "p", "main", "uid-p")


async def test_h12_a_grant_that_nobody_shows_ends_after_the_grace_and_not_before(bench: Bench) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(*times(QUIET, [0, 1, 30, 59.9]))
    assert bench.held() == {"acc0": (Phase.GRANTED, "a pod not yet identified")}
    await bench.see(*times(QUIET, [60]))
    assert bench.held() == {} and bench.releases.seen == ["acc0"]


async def test_a_grant_whose_pod_ended_before_it_was_seen_waits_for_the_grace_too(bench: Bench) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(*times(QUIET, [0, 10]))
    await bench.see(replace(QUIET, at=20, checkpointed=None))
    await bench.see(*times(QUIET, [65]))
    assert bench.held(), "an absence that was broken off begins anew"
    await bench.see(*times(QUIET, [67]))
    assert bench.held() == {}


async def test_a_held_device_ends_when_two_whole_sightings_agree(bench: Bench) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc0"): POD}))
    await bench.see(*times(QUIET, [1]))
    assert bench.held(), "one look proves nothing"
    await bench.see(*times(QUIET, [1.5]))
    assert bench.held()
    await bench.see(*times(QUIET, [2.5]))
    assert bench.held() == {}


@pytest.mark.parametrize(
    ("what", "sighting"),
    [
        ("podresources", replace(QUIET, listed=None)),
        ("the checkpoint", replace(QUIET, checkpointed=None)),
        ("a kubelet that has only just started", replace(QUIET, kubelet_stable=False)),
    ],
)
async def test_h13_without_a_source_nothing_ends(bench: Bench, what: str, sighting: Sighting) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc0"): POD}))
    await bench.see(*times(sighting, [10, 1000, 100_000]))
    assert bench.held(), what
    await bench.see(*times(QUIET, [100_001, 100_003]))
    assert bench.held() == {}


@pytest.mark.parametrize("step", [1e9, -1e9])
async def test_h42_steps_of_the_wall_clock_neither_end_nor_keep_a_hold(
    bench: Bench, wall: list[float], step: float
) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(*times(QUIET, [0, 1]))
    wall[0] += step
    await bench.see(*times(QUIET, [2, 59]))
    assert bench.held(), "a leap of the wall clock is no grace"
    await bench.see(*times(QUIET, [61]))
    assert bench.held() == {}


async def test_h42_holds_of_an_earlier_process_wait_for_their_grace_again(tmp_path: Path) -> None:
    """How long a hold has been there by the wall clock counts for nothing after a restart."""
    ledger = await Ledger.open(tmp_path, clock=lambda: 0.0)
    await ledger.grant([pick("acc0")])
    await ledger.close()
    ledger = await Ledger.open(tmp_path)
    bench = Bench(ledger)
    await bench.see(*times(QUIET, [5000, 5001, 5059]))
    assert bench.held()
    await bench.see(*times(QUIET, [5060]))
    assert bench.held() == {}
    await ledger.close()


async def test_h15_what_the_kubelet_has_out_is_taken_up_at_the_start(bench: Bench) -> None:
    bench.script.then(
        replace(
            QUIET,
            listed={(RESOURCE, "acc0"): POD, ("example.com/other", "x"): POD},
            checkpointed={(RESOURCE, "acc1"): frozenset({"uid-p", "uid-gone"})},
            live=LIVE,
        )
    )
    await bench.reconciler.take_up()
    assert bench.held() == {"acc0": (Phase.HELD, "pod default/p"), "acc1": (Phase.HELD, "pod default/p")}


async def test_h10_a_stale_entry_of_the_checkpoint_is_not_taken_up(bench: Bench) -> None:
    stale = replace(QUIET, checkpointed={(RESOURCE, "acc0"): frozenset({"uid-gone"})}, live=LIVE)
    bench.script.then(stale)
    await bench.reconciler.take_up()
    assert bench.held() == {}


async def test_h18_an_id_that_nobody_knows_fences_the_group_until_it_is_gone(bench: Bench) -> None:
    out = replace(QUIET, listed={(RESOURCE, "old-7"): POD})
    await bench.see(out)
    with pytest.raises(Refused, match=r"by evidence: old-7"):
        await bench.ledger.grant([pick("acc0")])
    await bench.see(replace(out, listed=None))
    assert bench.ledger.account.quarantines(), "not seeing is not knowing"
    await bench.see(QUIET)
    await bench.ledger.grant([pick("acc0")])


async def test_a_device_that_both_planes_hold_is_quarantined(bench: Bench) -> None:
    await bench.ledger.prepare("acc", ClaimHolder("default", "c", "uid-c"), [pick("acc0")], "{}")
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc0"): POD}))
    (fence,) = bench.ledger.account.quarantines()
    assert (fence.group, fence.device) == ("acc", "acc0")
    assert "pod default/p" in fence.reason and "claim default/c" in fence.reason
    assert bench.held() == {}


async def test_a_release_that_cannot_be_written_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.ledger.grant([pick("acc0")])
    await bench.see(*times(QUIET, [0, 1]))
    with monkeypatch.context() as patched:

        async def full(_: object) -> tuple[Hold, ...]:
            raise LedgerError("disk full")

        patched.setattr(bench.ledger, "release", full)
        await bench.see(*times(QUIET, [70]))
    assert bench.held() and bench.releases.seen == []
    await bench.see(*times(QUIET, [71]))
    assert bench.held() == {} and bench.releases.seen == ["acc0"]


async def test_what_ended_otherwise_while_a_look_was_acted_on_is_not_told_as_released(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, used = await bench.ledger.grant([pick("acc0"), pick("acc1")])
    await bench.see(*times(QUIET, [0, 1]))
    attribute = bench.ledger.attribute

    async def meanwhile(hold_id: int, pod: PodHolder) -> None:
        await bench.ledger.force_release([gone.id], "me", "stale")
        await attribute(hold_id, pod)

    monkeypatch.setattr(bench.ledger, "attribute", meanwhile)
    await bench.see(replace(QUIET, at=70, listed={(RESOURCE, "acc1"): POD}))
    assert bench.held().keys() == {used.share} and bench.releases.seen == []


async def test_it_does_not_look_while_this_plane_holds_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("SOON_S", "UNDECIDED_S", "SETTLED_S"):
        monkeypatch.setattr(f"bridge.ledger.reconcile.{pause}", 0.0)
    task = asyncio.create_task(bench.reconciler.run())
    await bench.ledger.prepare("acc", ClaimHolder("default", "c", "uid-c"), [pick("acc1")], "{}")
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.script.looks == 1, "the first whole look is the last"
    await bench.ledger.grant([pick("acc0")])
    async with asyncio.timeout(10):
        await bench.releases.told.wait()
    assert bench.releases.seen == ["acc0"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_both_planes_seem_to_have_is_fenced_until_one_of_them_lets_go(bench: Bench) -> None:
    await bench.ledger.prepare("acc", ClaimHolder("default", "c", "uid-c"), [pick("acc0")], "{}")
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc0"): POD}))
    quarantine = bench.ledger.account.quarantine_of("acc", "acc0")
    assert quarantine is not None and "default/p" in quarantine.reason and "default/c" in quarantine.reason
    await bench.ledger.unprepare("acc", "uid-c")
    await bench.ledger.deallocated("acc", "uid-c")
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc0"): POD}))
    assert bench.held() == {"acc0": (Phase.HELD, "pod default/p")}
    assert bench.ledger.account.quarantine_of("acc", "acc0") is None


async def test_a_device_of_a_claim_that_the_ledger_lost_is_fenced_until_its_pods_are_gone(
    bench: Bench,
) -> None:
    used = ClaimedDevice(DRIVER, "acc0", "acc0", ("default", "lost"))
    await bench.see(replace(QUIET, claimed=frozenset({used})))
    with pytest.raises(Refused, match="claim default/lost uses acc0"):
        await bench.ledger.grant([pick("acc0")])
    await bench.see(QUIET)
    await bench.ledger.grant([pick("acc0")])


async def test_a_list_older_than_a_claims_end_fences_nothing(bench: Bench) -> None:
    await bench.see(QUIET)
    used = ClaimedDevice(DRIVER, "acc0", "acc0", ("default", "just-ended"))
    await bench.see(replace(QUIET, claimed=frozenset({used})))
    await bench.ledger.grant([pick("acc0")])


async def test_admin_access_of_a_prepared_claim_is_no_unknown_claim(bench: Bench) -> None:
    await bench.ledger.prepare("acc", ClaimHolder("default", "monitor", "uid-m"), [], "{}")
    await bench.see(
        replace(QUIET, claimed=frozenset({ClaimedDevice(DRIVER, "acc0", "acc0", ("default", "monitor"))}))
    )
    await bench.ledger.grant([pick("acc0")])


async def test_a_new_ledger_gives_nothing_before_the_kubelet_has_said_what_pods_hold(bench: Bench) -> None:
    await bench.see(replace(QUIET, listed=None))
    with pytest.raises(Refused, match="the ledger is new"):
        await bench.ledger.grant([pick("acc0")])
    await bench.see(replace(QUIET, listed={(RESOURCE, "acc1"): POD}))
    assert bench.held() == {"acc1": (Phase.HELD, "pod default/p")}
    await bench.ledger.grant([pick("acc0")])


async def test_a_look_tells_nothing_of_what_was_handed_out_after_it_began(bench: Bench) -> None:
    before = bench.ledger.account.on_plane(Plane.DEVICE_PLUGIN)
    await bench.ledger.grant([pick("acc0")])
    await bench.reconciler.act_on(replace(QUIET, listed={(RESOURCE, "acc0"): POD}), before)
    assert bench.held() == {"acc0": (Phase.GRANTED, "a pod not yet identified")}


async def test_the_end_of_a_pod_is_looked_at_soon_and_until_the_runtime_is_done_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause, seconds in (("SOON_S", 0.0), ("UNDECIDED_S", 0.0), ("SETTLED_S", 3600.0)):
        monkeypatch.setattr(f"bridge.ledger.reconcile.{pause}", seconds)
    await bench.ledger.grant([pick("acc0")])
    running = replace(QUIET, listed={(RESOURCE, "acc0"): POD}, live=LIVE)
    bench.script.then(running)
    attributed = asyncio.Event()
    bench.ledger.subscribe(lambda parts: attributed.set())
    task = asyncio.create_task(bench.reconciler.run())
    async with asyncio.timeout(10):
        await attributed.wait()
        assert bench.held()["acc0"][0] is Phase.HELD
        # Its sandbox is still there at the first look after its end.
        bench.script.then(replace(running, listed={}, at=1), replace(QUIET, at=2), replace(QUIET, at=3))
        bench.reconciler.pod_ended()
        await bench.releases.told.wait()
    assert bench.releases.seen == ["acc0"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
