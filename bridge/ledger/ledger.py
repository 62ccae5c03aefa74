"""The ledger as the rest of the daemon sees it: transactions in, an account to read, news of changes.

A transaction is decided on the account in memory and awaited until it is on disk (S1); transactions that
arrive while a commit is under way share the next one. If a commit fails, the account is read back from the
file and every waiting transaction fails: nothing is answered that is not durable.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bridge.ledger.account import Account
from bridge.ledger.holds import (
    Change,
    ClaimHolder,
    Compared,
    DropClaim,
    DropHold,
    Hold,
    LiftQuarantine,
    Phase,
    Pick,
    Plane,
    PodHolder,
    PreparedClaim,
    PutClaim,
    PutHold,
    PutQuarantine,
    PutRecord,
    PutSwitch,
    Quarantine,
    Record,
    Refused,
)
from bridge.ledger.store import EVERYTHING, LedgerError, Opened, Store, open_store
from bridge.ledger.switches import Switch

log = logging.getLogger(__name__)

Listener = Callable[[frozenset[str]], None]
"""Called after each change with the parts it touched; the empty set means any part may be."""


class Ledger:
    """The one durable account of both planes. Use `Ledger.open`; single event loop.

    Attributes:
        account: what is held now; it is another object after a failed commit, so never keep it.
        damaged: whether this opening found damage, and so quarantined everything.
        fresh: whether the file is new and has never been compared with whole evidence, by any process; see `compared`.
        rebooted: whether the machine was booted since the ledger was opened last.
        failure: why the file can be neither written nor read; empty while all is well.
    """

    def __init__(self, opened: Opened, boot: str, clock: Callable[[], float]) -> None:
        self.account: Account = opened.account
        self._store: Store = opened.store
        self._next_hold = opened.next_hold
        self._boot = boot
        self._clock = clock
        self._listeners: list[Listener] = []
        self._waiting: list[tuple[Sequence[Change], asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "ledger")
        self.damaged = opened.damaged is not None
        self.fresh = opened.fresh
        self.rebooted = bool(opened.previous_boot) and opened.previous_boot != boot
        self.failure: str = ""

    @classmethod
    async def open(cls, folder: Path, *, boot: str = "", clock: Callable[[], float] = time.time) -> Ledger:
        """Open the ledger of a state folder under its exclusive lock.

        After damage everything is quarantined, durably. Raises LedgerError and its kinds.
        """
        opened = await asyncio.to_thread(open_store, folder, boot)
        if opened.damaged is not None:
            aside, why = opened.damaged
            log.critical("ledger damaged, everything is quarantined", extra={"file": str(aside), "why": why})
        return cls(opened, boot, clock)

    async def close(self) -> None:
        """Finish what is under way, close the file, give up the lock."""
        while self._committer is not None:
            await asyncio.wait([self._committer])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown()

    def subscribe(self, listener: Listener) -> None:
        """Be told of every change, right after the account has it."""
        self._listeners.append(listener)

    # The device plugin plane

    async def grant(self, picks: Sequence[Pick]) -> tuple[Hold, ...]:
        """Hand out devices through the device plugin API: all of them or none (H28).

        An ID that this plane has out already is handed out anew: among its own IDs the kubelet is the only
        authority (kubelet-contract A.4). Raises Refused or LedgerError.
        """
        await self._usable()
        earlier = [self.account.of_share(Plane.DEVICE_PLUGIN, p.group, p.share) for p in picks]
        ending = frozenset(h.id for h in earlier if h is not None)
        self._check(Plane.DEVICE_PLUGIN, picks, ending)
        now = self._clock()
        granted = tuple(self._new(Plane.DEVICE_PLUGIN, Phase.GRANTED, p, PodHolder(), now) for p in picks)
        await self._commit([*(DropHold(i) for i in sorted(ending)), *map(PutHold, granted)])
        return granted

    async def attribute(self, hold_id: int, pod: PodHolder) -> None:
        """Record which pod has a granted device, once evidence names it. A hold that ended is left alone."""
        hold = self.account.get(hold_id)
        if hold is not None and (hold.holder != pod or hold.phase is not Phase.HELD):
            await self._commit([PutHold(replace(hold, holder=pod, phase=Phase.HELD))])

    async def adopt(self, pick: Pick, pod: PodHolder) -> Hold:
        """Take up a device plugin hold that evidence shows and the ledger lacks, quarantined or not: this is no
        hand-out. Raises Refused if it does not fit beside what the ledger has."""
        await self._usable()
        self.account.check_room(pick)
        hold = self._new(Plane.DEVICE_PLUGIN, Phase.HELD, pick, pod, self._clock())
        await self._commit([PutHold(hold)])
        return hold

    async def adopt_claim(self, pick: Pick, claim: ClaimHolder, phase: Phase) -> None:
        """The same for a device of a claim, RESERVED or PREPARED; what is RESERVED by then may become PREPARED.

        A claim that was taken up so has no answer yet: its next Prepare is decided anew, over its own holds.
        """
        await self._usable()
        mine = next((h for h in self.account.of_claim(pick.group, claim.uid) if h.share == pick.share), None)
        if mine is None:
            self.account.check_room(pick)
            self.account.check_share(Plane.DRA, pick)
            await self._commit([PutHold(self._new(Plane.DRA, phase, pick, claim, self._clock()))])
        elif mine.phase is Phase.RESERVED and phase is Phase.PREPARED:
            await self._commit([PutHold(replace(mine, phase=phase))])

    async def compared(self) -> None:
        """Note, for good, that a new ledger has taken up all that whole evidence shows."""
        await self._commit([Compared()])
        self.fresh = False

    async def release(self, hold_ids: Iterable[int]) -> tuple[Hold, ...]:
        """End device plugin holds whose release is proven (S4); those that were ended. Holds that ended already are
        passed over."""
        await self._usable()
        holds = tuple(h for i in hold_ids if (h := self.account.get(i)) is not None)
        await self._commit([DropHold(h.id) for h in holds])
        return holds

    # The DRA plane

    async def reserve(self, group: str, claim: ClaimHolder, picks: Sequence[Pick]) -> None:
        """Hold what a claim was seen allocated, before the kubelet asks for it: all of it or nothing.

        What the claim has already stays as it is; what was reserved for an allocation that it no longer has
        ends. Raises Refused or LedgerError.
        """
        await self._usable()
        mine = {h.share: h for h in self.account.of_claim(group, claim.uid)}
        picked = {p.share for p in picks}
        ending = frozenset(h.id for h in mine.values() if h.phase is Phase.RESERVED and h.share not in picked)
        fresh = [p for p in picks if p.share not in mine]
        self._check(Plane.DRA, fresh, ending)
        now = self._clock()
        changes: list[Change] = [DropHold(i) for i in sorted(ending)]
        changes += [PutHold(self._new(Plane.DRA, Phase.RESERVED, p, claim, now)) for p in fresh]
        await self._commit(changes)

    async def prepare(self, group: str, claim: ClaimHolder, picks: Sequence[Pick], answer: str) -> None:
        """Hand out a claim's devices of one group and keep the answer: all of them or none (H28).

        Admin access needs no pick: it never holds and is never refused. Holds of the same claim that were
        reserved, or are being released, and are picked go on; those not picked end, the claim no longer names
        them (S4).
        Raises Refused or LedgerError.
        """
        await self._usable()
        mine = {h.share: h for h in self.account.of_claim(group, claim.uid)}
        kept = [h for p in picks if (h := mine.pop(p.share, None)) is not None]
        again = {h.share for h in kept}
        fresh = [p for p in picks if p.share not in again]
        ending = frozenset(h.id for h in mine.values() if h.phase is not Phase.PREPARED)
        for pick in picks:
            self.account.check_quarantine(pick)
        self._check(Plane.DRA, fresh, ending)
        now = self._clock()
        changes: list[Change] = [DropHold(i) for i in sorted(ending)]
        changes += [PutHold(replace(h, phase=Phase.PREPARED, holder=claim)) for h in kept]
        changes += [PutHold(self._new(Plane.DRA, Phase.PREPARED, p, claim, now)) for p in fresh]
        changes.append(PutClaim(PreparedClaim(group, claim, answer, now)))
        await self._commit(changes)

    async def unprepare(self, group: str, uid: str, *, by_name: bool = False) -> None:
        """Record that the kubelet has unprepared a claim: its holds stay until it is deallocated (S4).

        `by_name`: it was made for a pod that asked by resource name, which its holds remember from now on, for its
        answer goes. An unknown claim is no error (kubelet-contract B.2).
        """
        await self._usable()
        changes: list[Change] = [
            PutHold(replace(h, phase=Phase.RELEASING, by_name=h.by_name or by_name))
            for h in self.account.of_claim(group, uid)
            if h.phase is not Phase.RELEASING
        ]
        if self.account.prepared(group, uid) is not None:
            changes.append(DropClaim(group, uid))
        await self._commit(changes)

    async def deallocated(
        self, group: str, uid: str, still: frozenset[str] = frozenset()
    ) -> tuple[Hold, ...]:
        """End the holds of a claim that is no longer allocated and is not, or no longer, prepared; those that were
        ended.

        `still` are shares that its allocation names even so.
        """
        await self._usable()
        holds = tuple(
            h
            for h in self.account.of_claim(group, uid)
            if h.phase is not Phase.PREPARED and h.share not in still
        )
        await self._commit([DropHold(h.id) for h in holds])
        return holds

    # Modes

    async def switch(self, switch: Switch) -> None:
        """Remember how far a group is between two modes. Raises LedgerError."""
        await self._usable()
        await self._commit([PutSwitch(switch)])

    # By force

    async def force_release(self, hold_ids: Iterable[int], who: str, why: str) -> tuple[Hold, ...]:
        """End holds without proof, as an operator demands, and keep a record of it; those that were ended.

        The answer of a claim that loses a hold goes too: its next Prepare is decided anew.
        """
        await self._usable()
        holds = [h for i in hold_ids if (h := self.account.get(i)) is not None]
        claims = {(h.group, h.holder.uid) for h in holds if isinstance(h.holder, ClaimHolder)}
        changes: list[Change] = [DropHold(h.id) for h in holds]
        changes += [DropClaim(*key) for key in sorted(claims) if self.account.prepared(*key) is not None]
        now = self._clock()
        changes += [
            PutRecord(Record(now, "release", who, f"{h.group}/{h.share} of {h.holder}, {h.phase}: {why}"))
            for h in holds
        ]
        await self._commit(changes)
        return tuple(holds)

    async def force_lift(self, group: str, device: str, who: str, why: str) -> Quarantine | None:
        """End a quarantine, as an operator demands, and keep a record of it; the one that was ended."""
        found = next((q for q in self.account.quarantines() if (q.group, q.device) == (group, device)), None)
        if found is not None:
            text = f"quarantine of {group}/{device}, {found.reason}: {why}"
            record = Record(self._clock(), "lift", who, text)
            await self._commit([LiftQuarantine(group, device), PutRecord(record)])
        return found

    # Quarantine

    async def quarantine(self, group: str, device: str, reason: str) -> None:
        """Let nobody have a device (`*`: all of a group; group `*`: everything)."""
        await self._commit([PutQuarantine(Quarantine(group, device, reason, self._clock()))])

    async def lift(self, group: str, device: str) -> None:
        """End a quarantine."""
        await self._commit([LiftQuarantine(group, device)])

    # Within

    async def _usable(self) -> None:
        """After a failure that could not even be read back: try again, or refuse (S5). Else costs nothing."""
        if not self.failure:
            return
        loop = asyncio.get_running_loop()
        try:
            account, _ = await loop.run_in_executor(self._thread, self._store.load)
        except sqlite3.Error as error:
            self.failure = str(error)
            raise LedgerError(f"the ledger cannot be read: {error}; nothing is handed out") from error
        if self.failure:
            self.account, self.failure = account, ""
            self._tell(frozenset())

    def _check(self, plane: Plane, picks: Sequence[Pick], ending: frozenset[int]) -> None:
        planned: Counter[str] = Counter()
        shares: set[str] = set()
        for pick in picks:
            if pick.share in shares:
                raise Refused(pick, f"{pick.share} is named twice in one request; each can be had once")
            shares.add(pick.share)
            self.account.check(pick, ending, planned)
            self.account.check_share(plane, pick, ending)
            for use in pick.uses:
                planned[use.part] += use.amount

    def _new(
        self, plane: Plane, phase: Phase, pick: Pick, holder: PodHolder | ClaimHolder, now: float
    ) -> Hold:
        hold_id = self._next_hold
        self._next_hold += 1
        return Hold(
            hold_id, plane, phase, pick.group, pick.device, pick.share, holder, pick.uses, now, self._boot
        )

    async def _commit(self, changes: Sequence[Change]) -> None:
        """Apply to the account, wait for the disk. Raises LedgerError if it does not get there.

        Where nothing is left to change, what made it so may still be on its way there: that is waited for too.
        """
        if not changes and self._committer is None:
            return
        touched = self._apply(changes)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._committer is None:
            self._committer = asyncio.create_task(self._write_out(), name="ledger-commit")
        if list(changes) != [Compared()]:  # what is held is as it was
            self._tell(touched)
        # Shielded: a caller that gives up must not undo what others share.
        await asyncio.shield(done)

    def _apply(self, changes: Sequence[Change]) -> frozenset[str]:
        touched: set[str] = set()
        for change in changes:
            match change:
                case PutHold(hold):
                    touched.update(use.part for use in hold.uses)
                case DropHold(hold_id) if (ended := self.account.get(hold_id)) is not None:
                    touched.update(use.part for use in ended.uses)
                case PutQuarantine() | LiftQuarantine():
                    touched.add(EVERYTHING)
                case _:
                    pass
            self.account.apply(change)
        return frozenset() if EVERYTHING in touched else frozenset(touched)

    def _tell(self, touched: frozenset[str]) -> None:
        for listener in self._listeners:
            listener(touched)

    async def _write_out(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    await loop.run_in_executor(self._thread, self._store.write, [c for c, _ in batch])
                except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                    await self._read_back(batch, error)
                    continue
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
        finally:
            self._committer = None

    async def _read_back(
        self, batch: list[tuple[Sequence[Change], asyncio.Future[None]]], error: Exception
    ) -> None:
        """A commit failed: what is on disk is the truth, and nobody waiting was served."""
        log.error("ledger commit failed", extra={"error": str(error), "transactions": len(batch)})
        loop = asyncio.get_running_loop()
        try:
            self.account, _ = await loop.run_in_executor(self._thread, self._store.load)
            self.failure = ""
        except sqlite3.Error as again:
            self.failure = str(again)
            log.critical("ledger cannot be read back", extra={"error": str(again)})
        # What was decided meanwhile stood on the account that is now void.
        batch, self._waiting = batch + self._waiting, []
        for _, done in batch:
            if not done.done():
                done.set_exception(
                    LedgerError(f"the ledger could not be written: {error}; nothing was handed out")
                )
                done.exception()  # seen: a caller that went away must not make the loop complain
        self._tell(frozenset())
