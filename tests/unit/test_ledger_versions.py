"""Upgrade and downgrade of the ledger's file: everything an older version wrote is taken over, a newer file is left."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from bridge.config import Mode
from bridge.ledger import rows, store
from bridge.ledger.holds import ClaimHolder, Phase, Pick, Plane, PodHolder, Refused, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import (
    LedgerError,
    LedgerFromTheFuture,
    open_store,
    read_account,
    read_records,
)
from bridge.ledger.switches import Gate, Switch
from tests.unit.disks import FULL, disk_below

V1 = Path(__file__).with_name("ledger_v1.sql")
"""Written by the last version of schema 1: every sort of row that it knew."""

V2 = Path(__file__).with_name("ledger_v2.sql")
"""Of schema 2, likewise."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A state folder that a daemon of schema 1 left behind."""
    return left_by(V1, tmp_path)


def left_by(version: Path, folder: Path) -> Path:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as db:
        db.executescript(version.read_text())
        db.execute("PRAGMA journal_mode=WAL")
    (folder / "ledger.lock").write_text("1\n")
    return folder


def exclusive(name: str) -> Pick:
    return Pick("acc", f"crypto-{name}", f"crypto-{name}", (Use(f"/dev/crypto/{name}", 1, 1),))


def version(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "ledger.db")) as db:
        (found,) = db.execute("PRAGMA user_version").fetchone()
    return int(found)


HELD = {
    (2, Plane.DEVICE_PLUGIN, Phase.GRANTED, "crypto-acc0", ""),
    (3, Plane.DEVICE_PLUGIN, Phase.HELD, "crypto-acc1", "uid-runs"),
    (4, Plane.DRA, Phase.PREPARED, "crypto-acc2", "uid-train"),
    (5, Plane.DRA, Phase.RELEASING, "crypto-acc3", "uid-leaves"),
    (6, Plane.DEVICE_PLUGIN, Phase.GRANTED, "nx-gzip--0", ""),
    (7, Plane.DEVICE_PLUGIN, Phase.GRANTED, "nx-gzip--1", ""),
    (8, Plane.DRA, Phase.PREPARED, "nx-gzip--2", "uid-zip"),
}


def held(ledger: Ledger) -> set[tuple[int, Plane, Phase, str, str]]:
    return {(h.id, h.plane, h.phase, h.share, h.holder.uid) for h in ledger.account}


async def test_a_ledger_of_version_1_keeps_every_hold_answer_and_quarantine(old: Path) -> None:
    ledger = await Ledger.open(old, boot="boot-of-now")
    assert not ledger.damaged and not ledger.fresh and version(old) == rows.SCHEMA_VERSION
    assert held(ledger) == HELD
    (runs,) = (hold for hold in ledger.account if hold.share == "crypto-acc1")
    assert runs.holder == PodHolder("default", "runs", "main", "uid-runs")
    assert (runs.boot, runs.since) == ("boot-of-v1", 1750000003.0)
    answers = {(c.group, c.holder.name): c.answer for c in ledger.account.prepared_claims()}
    assert answers == {
        ("acc", "train"): '{"answer": "of train"}',
        ("acc", "admin"): '{"answer": "of admin"}',
        ("nx", "zip"): '{"answer": "of zip"}',
    }
    quarantine = ledger.account.quarantine_of("acc", "crypto-acc4")
    assert quarantine is not None and quarantine.reason == "by hand: smells of smoke"
    await ledger.close()


async def test_an_upgraded_ledger_decides_as_before_and_never_uses_a_number_twice(old: Path) -> None:
    ledger = await Ledger.open(old)
    with pytest.raises(Refused, match="claim default/train"):
        await ledger.grant([exclusive("acc2")])
    with pytest.raises(Refused, match="smells of smoke"):
        await ledger.grant([exclusive("acc4")])
    share = Pick("nx", "nx-gzip", "nx-gzip--3", (Use("/dev/crypto/nx-gzip", 1, 4),))
    (last,) = await ledger.grant([share])
    assert last.id == 9, "1 was used by a hold that had ended long before"
    claim = ClaimHolder("default", "new", "uid-new")
    await ledger.reserve("acc", claim, [exclusive("acc9")])
    await ledger.force_release([2], "root", "its pod is long gone")
    await ledger.close()
    assert [record.who for record in read_records(old)] == ["root"]
    again = await Ledger.open(old)
    assert {h.phase for h in again.account.of_claim("acc", "uid-new")} == {Phase.RESERVED}
    await again.close()


def test_the_command_line_reads_a_ledger_that_its_daemon_has_not_upgraded_yet(old: Path) -> None:
    assert len(read_account(old)) == len(HELD) and read_records(old) == ()
    assert version(old) == 1, "reading changes nothing"


async def test_a_power_loss_at_any_sync_of_the_upgrade_loses_nothing(
    old: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with disk_below(old) as disk:
        ledger = await Ledger.open(old)
        disk.mark()
        moments = tuple(disk.moments)
        await ledger.close()
    seen = set[int]()
    for moment in moments:
        for reached in {0, moment.written // 2, moment.written}:
            folder = tmp_path_factory.mktemp("after")
            (folder / "ledger.db").write_bytes(moment.synced["ledger.db"])
            (folder / "ledger.db-wal").write_bytes(moment.wal(reached))
            (folder / "ledger.lock").write_text("1\n")
            seen.add(version(folder))
            ledger = await Ledger.open(folder)
            assert held(ledger) == HELD and not ledger.damaged
            await ledger.force_release([2], "root", "the tables of the new version are all there")
            await ledger.close()
    assert seen == set(range(1, rows.SCHEMA_VERSION + 1))


async def test_an_upgrade_that_the_disk_has_no_room_for_is_refused_and_leaves_the_old_file(old: Path) -> None:
    with disk_below(old) as disk:
        disk.fails = FULL
        with pytest.raises(LedgerError, match="disk is full; free disk space"):
            open_store(old)
    assert version(old) == 1 and not list(old.glob("*damaged*"))
    ledger = await Ledger.open(old)
    assert held(ledger) == HELD
    await ledger.close()


async def test_a_downgrade_is_refused_with_what_to_do_and_leaves_the_newer_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the version before this one does it, which knew schema 1 alone."""
    ledger = await Ledger.open(old)
    await ledger.close()
    with monkeypatch.context() as patch:
        patch.setattr(store, "SCHEMA_VERSION", 1)
        for opens in (open_store, read_account):
            with pytest.raises(LedgerFromTheFuture) as refused:
                opens(old)
            assert str(refused.value) == (
                f"the ledger {old / 'ledger.db'} has schema {rows.SCHEMA_VERSION}, this version knows up to 1: "
                "it was written by a newer version; run that one, or drain the node before going back"
            )
    again = await Ledger.open(old)
    assert held(again) == HELD and not again.damaged
    await again.close()


async def test_a_ledger_of_version_2_keeps_everything_and_no_group_has_been_switched(tmp_path: Path) -> None:
    left_by(V2, tmp_path)
    assert len(read_account(tmp_path)) == 6 and version(tmp_path) == 2, "reading changes nothing"
    ledger = await Ledger.open(tmp_path, boot="boot-of-now")
    assert not ledger.damaged and ledger.rebooted and version(tmp_path) == rows.SCHEMA_VERSION
    assert held(ledger) == {
        (2, Plane.DEVICE_PLUGIN, Phase.GRANTED, "crypto-acc0", ""),
        (3, Plane.DEVICE_PLUGIN, Phase.HELD, "crypto-acc1", "uid-runs"),
        (4, Plane.DRA, Phase.PREPARED, "crypto-acc2", "uid-train"),
        (5, Plane.DRA, Phase.RELEASING, "crypto-acc3", "uid-leaves"),
        (6, Plane.DRA, Phase.RESERVED, "crypto-acc5", "uid-comes"),
        (7, Plane.DRA, Phase.PREPARED, "nx-gzip--2", "uid-zip"),
    }
    assert ledger.account.switch_of("acc") is None
    assert ledger.account.quarantine_of("acc", "crypto-acc4") is not None
    assert [record.text for record in read_records(tmp_path)] == [
        "acc/crypto-acc9 of a pod not yet identified, granted: its pod is long gone"
    ]
    way = Switch("acc", Mode.DUAL, Mode.DRA, Gate.WAITING, Gate.OPEN, 1750000010.0)
    await ledger.switch(way)
    await ledger.close()
    again = await Ledger.open(tmp_path)
    assert again.account.switch_of("acc") == way
    await again.close()


@pytest.mark.parametrize("column", ["mode", "target", "device_plugin", "dra"])
async def test_a_switch_that_makes_no_sense_is_damage(tmp_path: Path, column: str) -> None:
    ledger = await Ledger.open(tmp_path)
    await ledger.switch(Switch("acc", Mode.DUAL, Mode.DRA, Gate.WAITING, Gate.OPEN, 1.0))
    await ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        db.execute(f"UPDATE switches SET {column} = 'sideways'")
    again = await Ledger.open(tmp_path)
    assert again.damaged
    await again.close()


async def test_a_file_that_claims_a_version_and_lacks_its_tables_is_damage(old: Path) -> None:
    """Somebody set the number by hand: it is not taken for what it says."""
    with contextlib.closing(sqlite3.connect(old / "ledger.db")) as db:
        db.execute("DROP TABLE claims")
        db.execute(f"PRAGMA user_version={rows.SCHEMA_VERSION}")
    ledger = await Ledger.open(old)
    assert ledger.damaged
    with pytest.raises(Refused, match="the ledger was damaged"):
        await ledger.grant([exclusive("acc5")])
    await ledger.close()
    assert list(old.glob("ledger.db.damaged-*"))
