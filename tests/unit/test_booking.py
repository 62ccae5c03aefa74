"""Who waits for a claim that lets go, for what, and how long."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import cast

import pytest

from bridge.ledger.holds import ClaimHolder, Hold, Phase, Pick, Plane, Refused, Use
from bridge.planes import booking
from bridge.planes.booking import book, book_patiently
from bridge.planes.deallocation import Deallocations

USES = (Use("/dev/acc0", 1, 1),)
PICK = Pick("acc", "acc0", "acc0", USES)


def hold(phase: Phase, uid: str = "u1") -> Hold:
    return Hold(1, Plane.DRA, phase, "acc", "acc0", "acc0", ClaimHolder("default", "c", uid), USES, 0.0)


class Asked:
    """Deallocations that answer as told; True: something has ended."""

    def __init__(self, *answers: bool, silent: bool = False) -> None:
        self.answers, self.silent = list(answers), silent
        self.times = 0

    async def ask(self, uids: Collection[str], *, within: float | None = None) -> bool:
        self.times += 1
        if self.silent:
            assert within is not None, "without a bound this would never end"
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=within)
            return False
        return self.answers.pop(0) if self.answers else False

    def it(self) -> Deallocations:
        return cast(Deallocations, self)


class Ledger:
    """Refuses for these holds, one after another; then books."""

    def __init__(self, *blockers: Sequence[Hold]) -> None:
        self.blockers = list(blockers)
        self.asked = 0

    async def act(self) -> str:
        self.asked += 1
        if self.blockers:
            raise Refused(PICK, "held", tuple(self.blockers.pop(0)))
        return "booked"


@pytest.mark.parametrize("phase", [Phase.RELEASING, Phase.RESERVED])
async def test_a_claim_asks_once_whether_what_stands_in_its_way_has_let_go(phase: Phase) -> None:
    asked = Asked(True)
    assert await book(Ledger([hold(phase)]).act, asked.it()) == "booked"
    with pytest.raises(Refused):
        await book(Ledger([hold(phase)], [hold(phase)]).act, asked.it())
    assert asked.times == 2


async def test_a_pod_waits_until_the_claim_that_has_left_is_deallocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(booking, "PAUSE_S", 0.001)
    asked, ledger = Asked(False, False, True), Ledger(*[[hold(Phase.RELEASING)]] * 3)
    assert await book_patiently(ledger.act, asked.it()) == "booked"
    assert (asked.times, ledger.asked) == (3, 4)


@pytest.mark.parametrize(
    "blockers",
    [(), (hold(Phase.RESERVED),), (hold(Phase.PREPARED),)],
)
async def test_a_pod_is_refused_at_once_where_waiting_would_not_help(blockers: tuple[Hold, ...]) -> None:
    asked, ledger = Asked(), Ledger(blockers)
    with pytest.raises(Refused):
        await book_patiently(ledger.act, asked.it())
    assert (asked.times, ledger.asked) == (0, 1)


async def test_of_a_shared_device_one_share_that_is_leaving_may_be_enough() -> None:
    ledger = Ledger([hold(Phase.RELEASING), hold(Phase.PREPARED, "u2")])
    assert await book_patiently(ledger.act, Asked(True).it()) == "booked"


async def test_a_silent_api_server_keeps_a_pod_waiting_for_no_longer_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(booking, "PATIENCE_S", 0.05)
    monkeypatch.setattr(booking, "PAUSE_S", 0.001)
    asked, ledger = Asked(silent=True), Ledger(*[[hold(Phase.RELEASING)]] * 100)
    async with asyncio.timeout(10):
        with pytest.raises(Refused):
            await book_patiently(ledger.act, asked.it())
    assert asked.times == 1
