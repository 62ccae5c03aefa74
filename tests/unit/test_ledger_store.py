"""The ledger's file: what survives, what is refused, what happens to a file that cannot be read (S1, S5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.ledger import store
from bridge.ledger.holds import ClaimHolder, Hold, Phase, Pick, Plane, PodHolder, PutHold, Refused, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import (
    EVERYTHING,
    LedgerError,
    LedgerFromTheFuture,
    LedgerLocked,
    examine,
    open_store,
    read_account,
    read_records,
)

CLAIM = ClaimHolder("default", "train", "uid-1")

DAMAGES = 400


def exclusive(name: str) -> Pick:
    return Pick("acc", name, name, (Use(f"/dev/{name}", 1, 1),))


def share(device_id: str, capacity: int = 3) -> Pick:
    return Pick("nx", "nx-gzip", device_id, (Use("/dev/crypto/nx-gzip", 1, capacity),))


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Ledger]:
    ledger = await Ledger.open(folder)
    try:
        yield ledger
    finally:
        await ledger.close()


async def reopened(ledger: Ledger, folder: Path) -> Ledger:
    await ledger.close()
    return await Ledger.open(folder)


async def test_both_planes_holds_survive_a_restart_with_holder_parts_and_answer(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, boot="boot-a", clock=lambda: 1000.0)
    (granted,) = await ledger.grant([exclusive("acc0")])
    await ledger.attribute(granted.id, PodHolder("default", "old", "main", "pod-uid"))
    await ledger.prepare("acc", CLAIM, [exclusive("acc1")], "answer")
    before = sorted(ledger.account, key=lambda h: h.id)

    ledger = await reopened(ledger, tmp_path)

    assert sorted(ledger.account, key=lambda h: h.id) == before
    assert before[0].holder == PodHolder("default", "old", "main", "pod-uid")
    assert (before[0].phase, before[1].phase) == (Phase.HELD, Phase.PREPARED)
    prepared = ledger.account.prepared("acc", "uid-1")
    assert prepared is not None and prepared.answer == "answer"
    await ledger.close()


async def test_a_device_that_dra_holds_is_refused_to_the_device_plugin_and_the_refusal_names_the_claim(
    tmp_path: Path,
) -> None:
    ledger = await Ledger.open(tmp_path, clock=lambda: 0.0)
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    with pytest.raises(Refused) as refused:
        await ledger.grant([exclusive("acc0")])
    assert str(refused.value) == (
        "acc0 is held by claim default/train through DRA since 1970-01-01T00:00:00Z; "
        "it is offered again when that claim is deallocated"
    )
    await ledger.close()


async def test_a_device_that_the_device_plugin_holds_is_refused_to_dra(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    (hold,) = await ledger.grant([exclusive("acc0")])
    with pytest.raises(Refused, match="a pod not yet identified through the device plugin API"):
        await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.release([hold.id])
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.close()


async def test_h28_one_refused_device_leaves_none_of_the_request_booked(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("acc", CLAIM, [exclusive("acc1")], "")
    with pytest.raises(Refused):
        await ledger.grant([exclusive("acc0"), exclusive("acc1")])
    with pytest.raises(Refused):
        await ledger.prepare(
            "acc", ClaimHolder("d", "b", "uid-2"), [exclusive("acc2"), exclusive("acc1")], ""
        )
    assert [hold.device for hold in ledger.account] == ["acc1"]
    assert ledger.account.prepared("acc", "uid-2") is None
    await ledger.close()


async def test_h28_one_request_may_not_take_more_than_a_part_has(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    with pytest.raises(Refused):
        await ledger.grant([share("nx-gzip--0", 2), share("nx-gzip--1", 2), share("nx-gzip--2", 2)])
    assert len(ledger.account) == 0
    await ledger.close()


async def test_the_kubelet_may_have_its_own_id_again_and_the_hold_is_a_new_one(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    (first,) = await ledger.grant([exclusive("acc0")])
    (second,) = await ledger.grant([exclusive("acc0")])
    assert second.id > first.id
    assert [hold.id for hold in ledger.account] == [second.id]
    await ledger.close()


async def test_h7_unprepare_alone_does_not_free_a_device(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.unprepare("acc", "uid-1")
    with pytest.raises(Refused, match="being released"):
        await ledger.grant([exclusive("acc0")])
    await ledger.deallocated("acc", "uid-1")
    await ledger.grant([exclusive("acc0")])
    await ledger.close()


async def test_what_was_handed_out_by_resource_name_is_known_until_the_hold_ends(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    other = ClaimHolder("default", "other", "uid-2")
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.prepare("acc", other, [exclusive("acc1")], "")
    await ledger.unprepare("acc", CLAIM.uid, by_name=True)
    await ledger.unprepare("acc", CLAIM.uid)  # the kubelet may ask again
    await ledger.unprepare("acc", other.uid)
    ledger = await reopened(ledger, tmp_path)
    assert {h.share: h.by_name for h in ledger.account} == {"acc0": True, "acc1": False}
    assert ledger.account.prepared("acc", CLAIM.uid) is None
    await ledger.close()


async def test_deallocation_does_not_free_what_is_still_prepared(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.deallocated("acc", "uid-1")
    assert len(ledger.account) == 1
    await ledger.close()


async def test_hold_numbers_are_never_used_again_even_after_a_restart(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    (hold,) = await ledger.grant([exclusive("acc0")])
    await ledger.release([hold.id])
    ledger = await reopened(ledger, tmp_path)
    (later,) = await ledger.grant([exclusive("acc0")])
    assert later.id > hold.id
    await ledger.close()


def test_the_schema_itself_refuses_to_book_a_part_twice(tmp_path: Path) -> None:
    opened = open_store(tmp_path)
    use = (Use("/dev/acc0", 1, 1),)
    first = Hold(1, Plane.DRA, Phase.PREPARED, "acc", "acc0", "acc0", CLAIM, use, 0.0)
    second = Hold(2, Plane.DEVICE_PLUGIN, Phase.GRANTED, "acc", "acc0", "acc0", PodHolder(), use, 0.0)
    opened.store.write([[PutHold(first)]])
    with pytest.raises(sqlite3.IntegrityError, match="above its capacity"):
        opened.store.write([[PutHold(second)]])
    account, _ = opened.store.load()
    assert [hold.id for hold in account] == [1]
    opened.store.close()


async def test_a_second_daemon_is_told_who_has_the_ledger(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    with pytest.raises(LedgerLocked, match=f"process {os.getpid()}"):
        await Ledger.open(tmp_path)
    await ledger.close()


async def test_a_ledger_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    await (await Ledger.open(tmp_path)).close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerFromTheFuture, match="schema 99"):
        await Ledger.open(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 500)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def miscounted(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE parts SET used = used + 1")


def unknown_phase(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE holds SET phase = 'dancing'")


@pytest.mark.parametrize("damage", [garbage, empty, gone, miscounted, unknown_phase])
async def test_a_damaged_ledger_is_kept_aside_and_everything_is_quarantined(
    tmp_path: Path, damage: object
) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.grant([exclusive("acc0")])
    await ledger.close()
    assert callable(damage)
    damage(tmp_path / "ledger.db")

    ledger = await Ledger.open(tmp_path)

    for name in ("acc0", "acc7"):
        with pytest.raises(Refused, match="quarantined"):
            await ledger.grant([exclusive(name)])
        with pytest.raises(Refused, match="quarantined"):
            await ledger.prepare("acc", CLAIM, [exclusive(name)], "")
    if damage is not gone:
        assert list(tmp_path.glob("ledger.db.damaged-*"))
    ledger = await reopened(ledger, tmp_path)
    with pytest.raises(Refused, match="quarantined"):
        await ledger.grant([exclusive("acc0")])
    await ledger.close()


async def test_a_ledger_with_any_bytes_overwritten_is_opened_as_sound_or_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever SQLite makes of it, and however it says so: a daemon that only breaks would never serve again."""
    monkeypatch.setattr(store, "LOG_ROOM", 0)
    ledger = await Ledger.open(tmp_path / "whole")
    await ledger.grant([exclusive("acc0"), exclusive("acc1")])
    await ledger.prepare("acc", CLAIM, [exclusive("acc2")], "answer")
    await ledger.close()
    whole = (tmp_path / "whole/ledger.db").read_bytes()
    dice = random.Random(7)
    for number in range(DAMAGES):
        folder = tmp_path / str(number)
        folder.mkdir()
        bad = bytearray(whole)
        at, size = dice.choice([100, len(bad) // 2, len(bad)]), dice.choice([1, 4, 64, 512, 4096])
        at = dice.randrange(at)
        bad[at : at + size] = dice.choice([bytes(size), b"\xff" * size, dice.randbytes(size)])
        (folder / "ledger.db").write_bytes(bad)
        (folder / "ledger.lock").write_text("1\n")
        try:
            with contextlib.suppress(LedgerFromTheFuture):
                opened = open_store(folder)
                opened.store.close()
                everything = opened.account.quarantine_of(EVERYTHING, EVERYTHING)
                assert (opened.damaged is None) == (everything is None)
            with contextlib.suppress(LedgerError):
                examine(folder)
        except Exception as error:
            raise AssertionError(f"damage {number}: {size} bytes at {at}") from error
        shutil.rmtree(folder)


async def test_a_damaged_ledger_is_replaced_by_one_that_never_was_without_its_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await Ledger.open(tmp_path)).close()
    garbage(tmp_path / "ledger.db")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bridge.ledger.store._sign", dies)
        open_store(tmp_path)
    ledger = await Ledger.open(tmp_path)
    with pytest.raises(Refused, match="quarantined"):
        await ledger.grant([exclusive("acc0")])
    await ledger.close()


@pytest.mark.parametrize("again", [False, True])
async def test_a_hold_that_had_a_part_to_itself_keeps_it_when_the_capacity_grows(
    tmp_path: Path, again: bool
) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("nx", CLAIM, [share("nx-gzip", 1)], "")
    if again:
        ledger = await reopened(ledger, tmp_path)
    with pytest.raises(Refused):
        await ledger.grant([share("nx-gzip--1", 4)])
    assert ledger.account.room("/dev/crypto/nx-gzip", 4) == 0
    await ledger.unprepare("nx", "uid-1")
    await ledger.deallocated("nx", "uid-1")
    await ledger.grant([share("nx-gzip--1", 4)])
    await ledger.close()


async def test_a_kept_hold_on_a_quarantined_device_is_not_prepared_again(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.unprepare("acc", "uid-1")
    await ledger.quarantine("acc", "acc0", "in doubt")
    with pytest.raises(Refused, match="in doubt"):
        await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.close()


async def test_preparing_other_devices_never_ends_a_hold_that_was_not_unprepared(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "")
    await ledger.prepare("acc", CLAIM, [exclusive("acc1")], "")
    assert sorted(h.device for h in ledger.account) == ["acc0", "acc1"]
    await ledger.close()


async def test_a_failed_commit_hands_out_nothing_and_the_account_is_what_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.grant([exclusive("acc0")])

    def full(transactions: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger._store, "write", full)
        with pytest.raises(LedgerError, match="disk is full; nothing was handed out"):
            await ledger.grant([exclusive("acc1")])
    assert [hold.device for hold in ledger.account] == ["acc0"]
    await ledger.grant([exclusive("acc1")])
    ledger = await reopened(ledger, tmp_path)
    assert sorted(hold.device for hold in ledger.account) == ["acc0", "acc1"]
    await ledger.close()


async def test_a_state_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot use the state folder"):
        await Ledger.open(tmp_path / "file" / "state")


async def test_h4_a_claim_seen_allocated_holds_its_device_before_it_is_prepared(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.reserve("acc", CLAIM, [exclusive("acc0")])
        with pytest.raises(Refused, match="acc0 is reserved for claim"):
            await ledger.grant([exclusive("acc0")])
        await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "answer")
        assert [hold.phase for hold in ledger.account] == [Phase.PREPARED]
        await ledger.reserve("acc", CLAIM, [exclusive("acc0")])
        assert [hold.phase for hold in ledger.account] == [Phase.PREPARED], (
            "a late sighting takes nothing back"
        )


async def test_a_reservation_ends_when_its_claim_is_no_longer_allocated_or_has_another_device(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.reserve("acc", CLAIM, [exclusive("acc0")])
        await ledger.reserve("acc", CLAIM, [exclusive("acc1")])
        assert [hold.share for hold in ledger.account] == ["acc1"]
        await ledger.deallocated("acc", CLAIM.uid)
        assert len(ledger.account) == 0


async def test_what_is_released_by_force_is_recorded_and_its_claim_is_decided_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "answer")
        (hold,) = ledger.account
        assert await ledger.force_release([hold.id, 4711], "root", "the node was rebuilt") == (hold,)
        assert len(ledger.account) == 0 and ledger.account.prepared("acc", CLAIM.uid) is None
    (record,) = read_records(tmp_path)
    assert (record.what, record.who) == ("release", "root")
    assert "acc/acc0" in record.text and str(CLAIM) in record.text and "rebuilt" in record.text


async def test_a_reboot_is_told_from_a_restart(tmp_path: Path) -> None:
    said = []
    for boot in ("one", "one", "two", "two"):
        ledger = await Ledger.open(tmp_path, boot=boot)
        said.append(ledger.rebooted)
        await ledger.close()
    assert said == [False, False, True, False]


async def test_h16_nothing_left_to_do_is_answered_only_when_what_did_it_is_on_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.prepare("acc", CLAIM, [exclusive("acc0")], "answer")
        first = asyncio.ensure_future(ledger.unprepare("acc", CLAIM.uid))
        await asyncio.sleep(0)
        await ledger.unprepare("acc", CLAIM.uid)
        assert first.done() and [hold.phase for hold in read_account(tmp_path)] == [Phase.RELEASING]


async def test_a_share_can_be_had_once_whatever_room_there_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        await ledger.prepare("nx", CLAIM, [share("nx--0")], "")
        other = ClaimHolder("default", "other", "uid-2")
        with pytest.raises(Refused, match="nx--0 is held by claim default/train"):
            await ledger.prepare("nx", other, [share("nx--0")], "")
        with pytest.raises(Refused, match="nx--1 is named twice in one request"):
            await ledger.grant([share("nx--1"), share("nx--1")])
        await ledger.grant([share("nx--0")])
        assert len(ledger.account) == 2


async def test_the_schema_itself_refuses_one_share_too_many(tmp_path: Path) -> None:
    opened_now = open_store(tmp_path)
    holds = [
        Hold(
            n,
            Plane.DEVICE_PLUGIN,
            Phase.GRANTED,
            "nx",
            "nx",
            f"nx--{n}",
            PodHolder(),
            share("x", 2).uses,
            0.0,
        )
        for n in range(1, 4)
    ]
    opened_now.store.write([[PutHold(hold) for hold in holds[:2]]])
    with pytest.raises(sqlite3.IntegrityError, match="above its capacity"):
        opened_now.store.write([[PutHold(holds[2])]])
    opened_now.store.close()
