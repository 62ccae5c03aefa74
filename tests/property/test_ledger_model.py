"""The ledger against a model of a few lines: random transitions of both planes, with restarts in between.

The model knows one rule: the sum over a part never exceeds its capacity. Whatever the ledger accepts must fit it,
whatever it refuses must not, and a restart changes nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bridge.ledger.holds import ClaimHolder, Phase, Pick, Plane, Refused, Use
from bridge.ledger.ledger import Ledger

PARTS = {"pf": 2, "acc0": 1, "acc1": 1, "nx": 3}
# A physical function uses all of a part of which each virtual one uses one.
DEVICES: dict[str, dict[str, int]] = {
    "pf": {"pf": 2},
    "vf0": {"pf": 1},
    "vf1": {"pf": 1},
    "acc0": {"acc0": 1},
    "both": {"acc0": 1, "acc1": 1},
    "nx--0": {"nx": 1},
    "nx--1": {"nx": 1},
    "nx--2": {"nx": 1},
    "nx--3": {"nx": 1},
}
names = st.sampled_from(sorted(DEVICES))
claims = st.sampled_from(["c1", "c2", "c3"])


def pick(name: str) -> Pick:
    uses = tuple(Use(part, amount, PARTS[part]) for part, amount in sorted(DEVICES[name].items()))
    return Pick("g", name, name, uses)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = self.run(Ledger.open(Path(self.folder.name)))
        # The model: what each (plane, share) uses, and which claim has it.
        self.held: dict[tuple[Plane, str], dict[str, int]] = {}
        self.owner: dict[str, str] = {}
        self.releasing: set[str] = set()
        self.reserved: set[str] = set()

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.ledger.close())
        self.loop.close()
        self.folder.cleanup()

    def fits(self, wanted: list[str], without: set[tuple[Plane, str]]) -> bool:
        total = dict.fromkeys(PARTS, 0)
        for key, uses in self.held.items():
            for part, amount in uses.items() if key not in without else ():
                total[part] += amount
        for name in wanted:
            for part, amount in DEVICES[name].items():
                total[part] += amount
        return all(total[part] <= PARTS[part] for part in PARTS)

    @rule(wanted=st.lists(names, min_size=1, max_size=3, unique=True))
    def grant(self, wanted: list[str]) -> None:
        again = {(Plane.DEVICE_PLUGIN, name) for name in wanted}
        try:
            self.run(self.ledger.grant([pick(name) for name in wanted]))
        except Refused:
            assert not self.fits(wanted, again)
            return
        assert self.fits(wanted, again)
        self.held.update({(Plane.DEVICE_PLUGIN, name): DEVICES[name] for name in wanted})

    @rule(claim=claims, wanted=st.lists(names, min_size=1, max_size=2, unique=True))
    def prepare(self, claim: str, wanted: list[str]) -> None:
        mine = {name for name, owner in self.owner.items() if owner == claim}
        foreign = {name for name in wanted if self.owner.get(name, claim) != claim}
        if mine - self.releasing - self.reserved or foreign:
            return  # an allocation does not change while it is prepared; the scheduler gives a share once
        fresh = [name for name in wanted if name not in mine]
        ended = {(Plane.DRA, name) for name in mine if name not in wanted}
        try:
            self.run(self.ledger.prepare("g", ClaimHolder("n", claim, claim), [pick(n) for n in wanted], ""))
        except Refused:
            assert not self.fits(fresh, ended)
            return
        assert self.fits(fresh, ended)
        for _, name in ended:
            self.forget(name)
        for name in wanted:
            self.held[Plane.DRA, name] = DEVICES[name]
            self.owner[name] = claim
            self.releasing.discard(name)
            self.reserved.discard(name)

    @rule(claim=claims, wanted=st.lists(names, min_size=1, max_size=2, unique=True))
    def reserve(self, claim: str, wanted: list[str]) -> None:
        mine = {name for name, owner in self.owner.items() if owner == claim}
        if any(self.owner.get(name, claim) != claim for name in wanted):
            return  # the scheduler gives a share once
        ended = {name for name in mine & self.reserved if name not in wanted}
        fresh = [name for name in wanted if name not in mine]
        try:
            self.run(self.ledger.reserve("g", ClaimHolder("n", claim, claim), [pick(n) for n in wanted]))
        except Refused:
            assert not self.fits(fresh, {(Plane.DRA, name) for name in ended})
            return
        assert self.fits(fresh, {(Plane.DRA, name) for name in ended})
        for name in ended:
            self.forget(name)
        for name in fresh:
            self.held[Plane.DRA, name] = DEVICES[name]
            self.owner[name] = claim
            self.reserved.add(name)

    def forget(self, name: str) -> None:
        del self.held[Plane.DRA, name]
        del self.owner[name]
        self.releasing.discard(name)
        self.reserved.discard(name)

    @rule(claim=claims)
    def unprepare(self, claim: str) -> None:
        self.run(self.ledger.unprepare("g", claim))
        self.releasing |= {name for name, owner in self.owner.items() if owner == claim}
        self.reserved -= self.releasing

    @rule(claim=claims)
    def deallocate(self, claim: str) -> None:
        self.run(self.ledger.deallocated("g", claim))
        for name in [
            n for n, owner in self.owner.items() if owner == claim and n in self.releasing | self.reserved
        ]:
            self.forget(name)

    @rule(name=names)
    def release(self, name: str) -> None:
        hold = self.ledger.account.of_share(Plane.DEVICE_PLUGIN, "g", name)
        if hold is not None:
            self.run(self.ledger.release([hold.id]))
            del self.held[Plane.DEVICE_PLUGIN, name]

    @rule(name=names, plane=st.sampled_from(Plane))
    def force_release(self, name: str, plane: Plane) -> None:
        hold = self.ledger.account.of_share(plane, "g", name)
        if hold is None:
            return
        self.run(self.ledger.force_release([hold.id], "someone", "a test"))
        assert self.ledger.account.prepared("g", hold.holder.uid) is None
        if plane is Plane.DRA:
            self.forget(name)
        else:
            del self.held[plane, name]

    @rule()
    def restart(self) -> None:
        self.run(self.ledger.close())
        self.ledger = self.run(Ledger.open(Path(self.folder.name)))

    @invariant()
    def the_account_is_the_model(self) -> None:
        account = self.ledger.account
        assert {(h.plane, h.share) for h in account} == set(self.held)
        for part, capacity in PARTS.items():
            used = sum(uses.get(part, 0) for uses in self.held.values())
            assert account.used(part) == used <= capacity
        for hold in account.on_plane(Plane.DRA):
            assert (hold.phase is Phase.RELEASING) == (hold.share in self.releasing)
            assert (hold.phase is Phase.RESERVED) == (hold.share in self.reserved)


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase
