"""A ledger that is new, or was lost: what it takes up and fences off until it was compared with whole evidence."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge.daemon.lost_claims import LostClaims
from bridge.ledger.doubts import Claims
from bridge.ledger.evidence import UNKNOWN_GRACE_S, ClaimedDevice, Grace, Sighting
from bridge.ledger.holds import ClaimHolder, Phase, Pick, Plane, PodHolder, Refused, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.reconcile import Names, Reconciler
from bridge.platform import checkpoint
from bridge.platform.budget import Budget
from bridge.platform.checkpoint import Damaged, Missing, NotedDevice
from dra_v1.kube import ApiError

RESOURCE, DRIVER = "device-bridge.io/acc", "acc.device-bridge.io"
KEY = (RESOURCE, "acc0")
YOUNG = Sighting(0.0, listed={}, checkpointed={}, live={}, prepared=frozenset())
WHOLE = replace(YOUNG, kubelet_stable=True)
NOTED = {KEY: frozenset({"uid-p"})}
RUNS = {("default", "p"): frozenset({"uid-p"})}
PREPARED = ClaimedDevice(DRIVER, "acc0", "acc0", ("default", "c"), "uid-c")


def pick(name: str, group: str = "acc") -> Pick:
    if not name.startswith("acc"):
        raise LookupError(f"{name} is no device of group {group}")
    return Pick(group, name, name, (Use(f"/dev/{name}", 1, 1),))


class Told:
    """What the API server says of claims."""

    def __init__(self, read: bool = True, admin: frozenset[tuple[str, str, str, str]] = frozenset()) -> None:
        self.read, self.admin = read, admin


class Bench:
    """A folder with a ledger, and what compares it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self, claims: Claims | None = None) -> None:
        self.ledger = await Ledger.open(self.folder)
        names = Names({"acc": RESOURCE}, {"acc": DRIVER}, lambda group, name: pick(name, group))
        self.reconciler = Reconciler(self.ledger, names, self._never, self, Grace(), claims)

    async def killed(self, claims: Claims | None = None) -> None:
        """Nothing is done at the end of a process that its kill would leave out."""
        await self.ledger.close()
        await self.open(claims)

    async def see(self, *sightings: Sighting) -> None:
        for sighting in sightings:
            await self.reconciler.act_on(sighting, self.ledger.account.on_plane(Plane.DEVICE_PLUGIN))

    def held(self) -> dict[str, tuple[Phase, str]]:
        return {h.share: (h.phase, h.holder.uid) for h in self.ledger.account}

    async def refused(self, device: str = "acc0") -> str:
        with pytest.raises(Refused) as refused:
            await self.ledger.grant([pick(device)])
        return str(refused.value)

    def ended(self, plane: Plane, group: str, devices: list[str], holder: str, why: str) -> None:
        pass

    def taken_up(self, plane: Plane, group: str, devices: list[str], holder: str) -> None:
        """What was found is seen in the ledger."""

    async def _never(self) -> Sighting:
        raise AssertionError("sightings are handed in")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.open()
    yield made
    await made.ledger.close()


async def test_it_stays_new_over_restarts_until_one_whole_sighting_was_taken_up(bench: Bench) -> None:
    for seen in (
        YOUNG,
        replace(WHOLE, listed=None),
        replace(WHOLE, live=None),
        replace(WHOLE, checkpointed=None),
        replace(WHOLE, prepared=None),
    ):
        await bench.see(seen)
        assert bench.ledger.fresh
        await bench.killed()
        assert bench.ledger.fresh
    await bench.killed(Told(read=False))
    await bench.see(WHOLE)
    assert bench.ledger.fresh, "claims were not read"
    await bench.killed()
    await bench.see(WHOLE)
    assert not bench.ledger.fresh
    await bench.killed()
    assert not bench.ledger.fresh


async def test_s5_what_is_noted_for_a_pod_that_has_not_started_is_fenced_until_it_starts(
    bench: Bench,
) -> None:
    await bench.see(replace(YOUNG, checkpointed=NOTED))
    assert "noted acc0 for the pod with UID uid-p" in await bench.refused()
    await bench.ledger.grant([pick("acc1")])
    await bench.killed()
    await bench.see(replace(YOUNG, checkpointed=NOTED))
    assert "uid-p" in await bench.refused(), "another process knows as little"
    await bench.see(replace(WHOLE, checkpointed=NOTED), replace(WHOLE, checkpointed=NOTED))
    assert "uid-p" in await bench.refused() and bench.ledger.fresh, "whole, and still not known to have ended"
    await bench.see(replace(WHOLE, checkpointed=NOTED, live=RUNS))
    assert bench.held()["acc0"] == (Phase.HELD, "uid-p") and not bench.ledger.account.quarantines()


async def test_s5_and_until_it_is_proven_to_have_ended(bench: Bench) -> None:
    ended = replace(YOUNG, checkpointed=NOTED, ended=frozenset({"uid-p"}))
    await bench.see(replace(ended, live=None), replace(ended, live=None, at=UNKNOWN_GRACE_S - 1))
    assert await bench.refused(), "it may run on, deleted by force, and the runtime does not say"
    await bench.see(replace(ended, live=None, at=UNKNOWN_GRACE_S))
    assert not bench.ledger.account.quarantines(), "no pod lasts so long"
    await bench.killed()
    await bench.see(replace(YOUNG, checkpointed=NOTED))
    assert await bench.refused()
    await bench.see(ended)
    await bench.ledger.grant([pick("acc0")])


async def test_s5_a_checkpoint_that_cannot_be_read_closes_a_new_ledgers_groups(bench: Bench) -> None:
    await bench.see(replace(YOUNG, checkpointed=None))
    assert "checkpoint cannot be read" in await bench.refused()
    await bench.see(replace(YOUNG, checkpointed=NOTED))
    await bench.ledger.grant([pick("acc1")])
    await bench.see(replace(YOUNG, checkpointed=None))
    assert "uid-p" in await bench.refused(), "what was read before stands"
    await bench.ledger.grant([pick("acc2")])


async def test_s5_claims_that_the_kubelet_has_prepared_are_taken_up_at_the_start_and_end_as_all_do(
    bench: Bench,
) -> None:
    await bench.see(replace(YOUNG, prepared=frozenset({PREPARED})))
    assert bench.held() == {"acc0": (Phase.PREPARED, "uid-c")}
    await bench.ledger.deallocated("acc", "uid-c")
    assert "held by claim default/c" in await bench.refused(), "S4: it runs until the kubelet unprepares it"
    await bench.ledger.unprepare("acc", "uid-c")
    await bench.ledger.deallocated("acc", "uid-c")
    await bench.see(replace(WHOLE, prepared=frozenset({PREPARED})))
    assert bench.held() == {}, "a record that is older than the end is not taken up"
    await bench.ledger.grant([pick("acc0")])


async def test_s5_what_does_not_fit_is_fenced_and_admin_access_is_not(bench: Bench) -> None:
    other = replace(PREPARED, device="old-7", name="old-7")
    await bench.see(replace(WHOLE, prepared=frozenset({other})))
    assert "claim default/c uses old-7" in await bench.refused() and bench.ledger.fresh
    await bench.killed(Told(admin=frozenset({("acc", "default", "c", "acc0")})))
    await bench.see(replace(WHOLE, prepared=frozenset({PREPARED}), claimed=frozenset({PREPARED})))
    assert bench.held() == {} and not bench.ledger.fresh
    await bench.ledger.grant([pick("acc0")])


async def test_a_claim_that_was_reserved_before_becomes_prepared(bench: Bench) -> None:
    await bench.ledger.adopt_claim(pick("acc0"), ClaimHolder("default", "c", "uid-c"), Phase.RESERVED)
    await bench.see(replace(YOUNG, prepared=frozenset({PREPARED})))
    assert bench.held() == {"acc0": (Phase.PREPARED, "uid-c")}
    with pytest.raises(Refused, match="held by claim default/c"):
        await bench.ledger.adopt_claim(pick("acc0"), ClaimHolder("default", "d", "uid-d"), Phase.PREPARED)


class Roster:
    """A group with devices acc0 and acc1."""

    dra_offered = True

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def pick(self, name: str, units: int, share: str = "") -> Pick:
        return pick(name)


class Server:
    """An API server.

    Attributes:
        silent: whether it does not answer about claims.
    """

    def __init__(self) -> None:
        self.silent = False
        self.asked: list[str] = []

    async def find_claim(self, namespace: str, name: str) -> dict[str, Any] | None:
        self.asked.append(name)
        if self.silent:
            raise ApiError(503, "", "away", "get", name)
        if name == "gone":
            return None
        devices = [result("acc0", adminAccess=True)] if name == "monitor" else [result("acc0")]
        return {
            "metadata": {"namespace": namespace, "name": name, "uid": f"uid-{name}"},
            "status": {"allocation": {"devices": {"results": [*devices, result("acc1", pool="node-b")]}}},
        }


def result(device: str, pool: str = "node-a", **more: Any) -> dict[str, Any]:
    return {"request": "dev", "driver": DRIVER, "pool": pool, "device": device} | more


def pods_with(claims: Sequence[str]) -> list[dict[str, Any]]:
    named = [{"name": name, "resourceClaimName": name} for name in claims]
    meta = {"namespace": "default", "name": "p", "uid": "uid-p"}
    return [{"metadata": meta, "spec": {"resourceClaims": named}, "status": {"phase": "Pending"}}]


def lost_claims(
    bench: Bench, server: Server, claims: Sequence[str], budget: Budget | None = None
) -> LostClaims:
    async def pods() -> list[dict[str, Any]]:
        return pods_with(claims)

    return LostClaims(
        bench.ledger,
        {"acc": DRIVER},
        "node-a",
        lambda group: Roster(),  # type: ignore[arg-type, return-value]
        pods,
        server,  # type: ignore[arg-type]
        budget or Budget(),
        lambda: False,
    )


async def test_s5_what_was_allocated_to_pods_of_this_node_is_reserved_before_anything_is_offered(
    bench: Bench,
) -> None:
    server, budget = Server(), Budget()
    lost = lost_claims(bench, server, ["c", "monitor", "gone"], budget)
    assert not lost.read
    await lost.take_up()
    assert lost.read and bench.held() == {"acc0": (Phase.RESERVED, "uid-c")}, (
        "of its own pool, and no admin access"
    )
    assert lost.admin == {("acc", "default", "monitor", "acc0")} and budget.taken == 3


async def test_an_api_server_that_is_silent_leaves_claims_unread_and_stops_no_start(bench: Bench) -> None:
    server = Server()
    server.silent = True
    lost = lost_claims(bench, server, ["c"])
    await lost.take_up()
    assert not lost.read and bench.held() == {}


async def test_a_ledger_that_was_compared_asks_nothing(bench: Bench) -> None:
    await bench.see(WHOLE)
    server = Server()
    await lost_claims(bench, server, ["c"]).take_up()
    assert server.asked == []


async def test_a_pod_of_podresources_explains_what_is_noted(bench: Bench) -> None:
    pod = PodHolder("default", "p", "main")
    await bench.see(replace(YOUNG, checkpointed=NOTED, listed={KEY: pod}))
    assert set(bench.held()) == {"acc0"} and not bench.ledger.account.quarantines()


def record(**more: Any) -> dict[str, Any]:
    device = {
        "PoolName": "node-a",
        "DeviceName": "acc0",
        "RequestNames": ["dev"],
        "CDIDeviceIDs": [],
        "ShareID": None,
    }
    entry = {
        "ClaimUID": "uid-c",
        "ClaimName": "c",
        "Namespace": "default",
        "PodUIDs": {"uid-p": {}},
        "DriverState": {DRIVER: {"Devices": [device | more]}, "other.example.com": {"Devices": None}},
    }
    return {"Data": json.dumps({"ClaimInfoStateList": [entry]}), "Checksum": 1}


def test_the_kubelets_record_of_claims(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.CLAIMS
    assert checkpoint.read_claims(path) == Missing(path)
    path.write_text(json.dumps(record()))
    found = NotedDevice("uid-c", "default", "c", DRIVER, "node-a", "acc0", "")
    assert checkpoint.read_claims(path) == (found,)
    path.write_text(json.dumps(record(ShareID="s-1")))
    assert checkpoint.read_claims(path) == (replace(found, share_id="s-1"),)
    path.write_text(json.dumps({"Data": json.dumps({"ClaimInfoStateList": None}), "Checksum": 1}))
    assert checkpoint.read_claims(path) == ()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"Data": {}}', '{"Data": "{}"}', json.dumps(record(DeviceName=""))]
)
def test_a_record_of_claims_that_is_not_understood_is_damaged(tmp_path: Path, content: str) -> None:
    path = tmp_path / checkpoint.CLAIMS
    path.write_text(content)
    assert isinstance(checkpoint.read_claims(path), Damaged)
