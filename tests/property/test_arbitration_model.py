"""Both planes at once against a model of a few dozen lines, with `kill -9` at any moment.

Calls of both planes begin together, as they do on a node. The model decides them one after the other by one rule:
what does not fit into the parts is refused. The ledger must decide as it does; and whenever the process dies, what
is on disk must be a beginning of that history, with every transaction whole and everything that was answered in it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bridge.ledger.holds import ClaimHolder, Phase, Plane, Refused
from bridge.ledger.ledger import Ledger
from tests.property.test_ledger_model import DEVICES, PARTS, pick

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA
GROUP = "g"

Held = Mapping[tuple[Plane, str], tuple[str, str]]
"""Who has what, and how: (owner, phase) by (plane, share)."""


@dataclass(frozen=True)
class Call:
    """What one plane asks for; `owner` is a claim, or empty for the device plugin."""

    what: str
    owner: str
    names: tuple[str, ...]


def decide(held: Held, call: Call) -> Held | None:
    """The model: the state after a call, or None if it is refused."""
    mine = {n: how for (plane, n), (owner, how) in held.items() if plane is DRA and owner == call.owner}
    match call.what:
        case "grant":
            rest = {key: value for key, value in held.items() if key not in {(DP, n) for n in call.names}}
            return fit({**rest, **{(DP, n): ("", "granted") for n in call.names}})
        case "prepare" | "reserve":
            preparing = call.what == "prepare"
            loose = ("reserved", "releasing") if preparing else ("reserved",)
            gone = {n for n, how in mine.items() if how in loose and n not in call.names}
            if any(held.get((DRA, n), (call.owner, ""))[0] != call.owner for n in call.names):
                return None
            after = {key: value for key, value in held.items() if key not in {(DRA, n) for n in gone}}
            for name in call.names:
                if preparing or name not in mine:
                    after[DRA, name] = (call.owner, "prepared" if preparing else "reserved")
            return fit(after) if set(call.names) - set(mine) else after
        case "unprepare":
            return {**held, **{(DRA, n): (call.owner, "releasing") for n in mine}}
        case "deallocated":
            return {k: v for k, v in held.items() if k[0] is DP or v[0] != call.owner or v[1] == "prepared"}
        case _:
            return {key: value for key, value in held.items() if key not in {(DP, n) for n in call.names}}


def fit(held: Held) -> Held | None:
    """The same if no part is booked above its capacity."""
    used = dict.fromkeys(PARTS, 0)
    for _, name in held:
        for part, amount in DEVICES[name].items():
            used[part] += amount
    return held if all(used[part] <= PARTS[part] for part in PARTS) else None


names = st.lists(st.sampled_from(sorted(DEVICES)), min_size=1, max_size=2, unique=True).map(tuple)
claims = st.sampled_from(["c1", "c2", "c3"])
calls = st.one_of(
    st.builds(Call, st.just("grant"), st.just(""), names),
    st.builds(Call, st.sampled_from(["prepare", "reserve"]), claims, names),
    st.builds(Call, st.sampled_from(["unprepare", "deallocated"]), claims, st.just(())),
    st.builds(Call, st.just("release"), st.just(""), names),
)


class ArbitrationMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.root = tempfile.TemporaryDirectory()
        self.lives = 0
        self.held: Held = {}
        self.ledger = self.wait(Ledger.open(self.folder))

    @property
    def folder(self) -> Path:
        return Path(self.root.name) / str(self.lives)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.wait(self.ledger.close())
        self.loop.close()
        self.root.cleanup()

    @rule(asked=st.lists(calls, min_size=1, max_size=5))
    def at_once(self, asked: list[Call]) -> None:
        answers = self.wait(self.begin(asked, steps=None))
        for call, answer in zip(asked, answers, strict=True):
            after = decide(self.held, call)
            assert isinstance(answer, Refused) == (after is None), (call, answer, self.held)
            self.held = self.held if after is None else after

    @rule(asked=st.lists(calls, min_size=1, max_size=5), steps=st.integers(0, 30))
    def killed(self, asked: list[Call], steps: int) -> None:
        answers = self.wait(self.begin(asked, steps))
        history = [self.held]
        least = 0
        for call, answer in zip(asked, answers, strict=True):
            after = decide(history[-1], call)
            assert isinstance(answer, Refused) <= (after is None), (call, answer)
            if after is not None:
                history.append(after)
                if answer == "done":
                    least = len(history) - 1
        found = self.account()
        assert found in history[least:], f"{found} is none of {history[least:]}"
        self.held = found

    async def begin(self, asked: list[Call], steps: int | None) -> list[object]:
        """Make all calls at once; the answers. With `steps`: die after so many turns of the loop, answers so far."""
        tasks = [asyncio.ensure_future(self.call(call)) for call in asked]
        if steps is None:
            return list(await asyncio.gather(*tasks, return_exceptions=True))
        for step in range(steps):
            # Now and then a pause that lets the ledger's thread come forward.
            await asyncio.sleep(0.0002 if step % 5 == 4 else 0)
        answers = [(task.exception() or task.result()) if task.done() else "no answer" for task in tasks]
        before, dying = self.folder, self.ledger
        self.lives += 1
        # What a killed process leaves behind is what its files are at that moment.
        shutil.copytree(before, self.folder)
        await asyncio.gather(*tasks, return_exceptions=True)
        await dying.close()
        self.ledger = await Ledger.open(self.folder)
        return answers

    async def call(self, call: Call) -> str:
        claim, picks = ClaimHolder("n", call.owner, call.owner), [pick(name) for name in call.names]
        match call.what:
            case "grant":
                await self.ledger.grant(picks)
            case "prepare":
                await self.ledger.prepare(GROUP, claim, picks, "")
            case "reserve":
                await self.ledger.reserve(GROUP, claim, picks)
            case "unprepare":
                await self.ledger.unprepare(GROUP, call.owner)
            case "deallocated":
                await self.ledger.deallocated(GROUP, call.owner)
            case _:
                holds = [self.ledger.account.of_share(DP, GROUP, name) for name in call.names]
                await self.ledger.release([hold.id for hold in holds if hold is not None])
        return "done"

    def account(self) -> Held:
        how = {Phase.GRANTED: "granted", Phase.HELD: "granted"}
        return {
            (h.plane, h.share): (h.holder.uid, how.get(h.phase, str(h.phase))) for h in self.ledger.account
        }

    @invariant()
    def the_account_is_the_model(self) -> None:
        assert self.account() == self.held
        assert fit(self.held) is not None


ArbitrationMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestArbitrationMachine = ArbitrationMachine.TestCase
