"""Power loss: every hand-out that was answered is still there, whatever the disk kept of what was not synced (S1).

The disk is taken at each sync of SQLite's; what was written after it may be lost, cut anywhere, or garbage.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bridge.ledger import store
from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Pick, PodHolder, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.rows import load
from bridge.ledger.store import open_store
from tests.unit.disks import FULL, Disk, Moment, disk_below, put

State = frozenset[tuple[object, ...]]
"""What an account says, to be compared."""


def state(account: Account) -> State:
    holds = {
        ("hold", h.id, h.plane, h.phase, h.group, h.share, str(h.holder), h.holder.uid, h.uses)
        for h in account
    }
    claims = {("claim", c.group, c.holder.uid, c.answer) for c in account.prepared_claims()}
    return frozenset(holds | claims | {("quarantine", q.group, q.device) for q in account.quarantines()})


def exclusive(number: int) -> Pick:
    return Pick("acc", f"acc{number}", f"acc{number}", (Use(f"/dev/acc{number}", 1, 1),))


@dataclass
class Story:
    """States in the order in which they were answered, each with how many syncs there had been."""

    disk: Disk
    answered: list[tuple[int, State]] = field(default_factory=list)

    def answer(self, ledger: Ledger) -> None:
        """The caller has its answer: from here on it must survive."""
        self.answered.append((len(self.disk.moments), state(ledger.account)))


async def short_story(folder: Path, disk: Disk) -> tuple[Ledger, Story]:
    """A few transactions of every sort."""
    ledger = await Ledger.open(folder, boot="b", clock=lambda: 1.0)
    story = Story(disk)
    story.answer(ledger)
    (granted,) = await ledger.grant([exclusive(0)])
    story.answer(ledger)
    await ledger.attribute(granted.id, PodHolder("default", "p", "main", "uid-p"))
    story.answer(ledger)
    train = ClaimHolder("default", "train", "uid-train")
    await ledger.prepare("acc", train, [exclusive(1), exclusive(2)], "answer" * 50)
    story.answer(ledger)
    await ledger.unprepare("acc", "uid-train")
    story.answer(ledger)
    await ledger.deallocated("acc", "uid-train")
    story.answer(ledger)
    await ledger.quarantine("acc", "acc7", "in doubt")
    story.answer(ledger)
    await ledger.release([granted.id])
    story.answer(ledger)
    disk.mark()
    return ledger, story


@contextlib.contextmanager
def after_loss(folder: Path, moment: Moment, wal: bytes | bytearray, writes: int = 0) -> Iterator[Path]:
    """A folder as a machine finds it when the power is back."""
    folder.mkdir()
    try:
        database = bytearray(moment.synced["ledger.db"])
        for offset, content in moment.writes[:writes]:
            put(database, offset, content)
        (folder / "ledger.db").write_bytes(database)
        (folder / "ledger.db-wal").write_bytes(wal)
        (folder / "ledger.lock").write_text("1\n")
        yield folder
    finally:
        shutil.rmtree(folder)


def read(folder: Path) -> State:
    """What SQLite makes of it, and leaves as it is; every query of the ledger's own."""
    (folder / "ledger.db-shm").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(f"file:{folder}/ledger.db?mode=ro", uri=True)) as db:
        return state(load(db)[0])


def opened(folder: Path) -> State:
    """What the ledger makes of it: neither damage nor quarantine."""
    found = open_store(folder)
    try:
        assert found.damaged is None
        return state(found.account)
    finally:
        found.store.close()


def allowed(story: Story, index: int) -> set[State]:
    """What may be found if the power goes after the `index`-th sync: what was answered by then, or what was about to
    be answered next; nothing that is half of either."""
    past = [seen for syncs, seen in story.answered if syncs <= index]
    future = [seen for syncs, seen in story.answered if syncs > index]
    return {past[-1], *future[:1]}


def cuts(moment: Moment) -> range:
    """Every number of bytes of what was written to the log since its sync."""
    return range(moment.written + 1)


@pytest.fixture(autouse=True, params=[0, 1_000_000], ids=["the log grows", "the log has room"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has room, what is lost is overwritten: old pages stand there that were never committed."""
    monkeypatch.setattr(store, "LOG_ROOM", request.param)


@pytest.fixture
def spare() -> Iterator[Path]:
    """A folder of the memory: thousands of files are made there."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield Path(folder)


def begun(story: Story) -> int:
    """The first moment in which a ledger has been opened."""
    return story.answered[0][0]


STEPS = {"grant": 0, "attribute": 1, "prepare": 2, "unprepare": 3, "deallocate": 4, "quarantine": 5}
"""After which answer the transaction begins."""

FRAME = 24 + 4096
"""Of the log: a header and a page."""


@pytest.mark.parametrize("step", ["attribute", "quarantine"])
async def test_every_byte_after_a_sync_may_be_lost(tmp_path: Path, spare: Path, step: str) -> None:
    """The log as of a sync, and then every number of the bytes that were written after it."""
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        await ledger.close()
    index = story.answered[STEPS[step]][0]
    lengths = cuts(disk.moments[index])
    assert len(lengths) > FRAME, "this is the commit of a transaction, a page at the least"
    lose(story, index, reversed(lengths), spare)


@pytest.mark.parametrize("step", STEPS)
async def test_a_log_that_ends_near_the_end_of_a_page_is_as_good(
    tmp_path: Path, spare: Path, step: str
) -> None:
    """The same for transactions of many pages, where cuts fall on something else."""
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        await ledger.close()
    index = story.answered[STEPS[step]][0]
    lengths = cuts(disk.moments[index])
    near = [n for n in lengths if n % FRAME < 64 or n % 509 == 0 or n in (lengths[0], lengths[-1])]
    lose(story, index, reversed(near), spare)


def lose(story: Story, index: int, lengths: Iterable[int], spare: Path) -> None:
    """Take back all but so many of the bytes that were written to the log, from many to few; what is found is whole."""
    moment, may_be = story.disk.moments[index], allowed(story, index)
    synced = moment.synced.get("ledger.db-wal", b"")
    places = [at for offset, content in moment.log for at in range(offset, offset + len(content))]
    assert places == sorted(set(places)), "a log is written from its begin to its end"
    with after_loss(spare / "f", moment, moment.wal(moment.written)) as folder:
        log, size = folder / "ledger.db-wal", moment.written
        for size in lengths:
            with log.open("r+b") as file:
                for at in places[size:]:
                    file.seek(at)
                    file.write(synced[at : at + 1])
            del places[size:]
            os.truncate(log, max([len(synced), *(at + 1 for at in places[-1:])]))
            assert read(folder) in may_be, size
        assert log.read_bytes() == moment.wal(size), "nothing has written to it meanwhile"


async def test_what_was_answered_is_on_the_disk_at_that_moment(tmp_path: Path, spare: Path) -> None:
    """All that was not synced when an answer left is lost."""
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        await ledger.close()
    for syncs, answered in story.answered[1:]:
        before = disk.moments[syncs]
        with after_loss(spare / "f", before, before.synced.get("ledger.db-wal", b"")) as folder:
            assert opened(folder) == answered, syncs


@pytest.mark.parametrize("tail", ["zeros", "noise", "old frames", "torn"])
async def test_a_tail_that_is_not_what_was_written_changes_nothing(
    tmp_path: Path, spare: Path, tail: str
) -> None:
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        await ledger.close()
    dice = random.Random(tail)
    for index in range(begun(story), len(disk.moments)):
        moment = disk.moments[index]
        synced = moment.synced.get("ledger.db-wal", b"")
        written = b"".join(content for _, content in moment.log)
        begin = moment.log[0][0] if moment.log else len(synced)
        for _ in range(12):
            match tail:
                case "zeros":
                    rest = bytes(dice.randrange(1, 20_000))
                case "noise":
                    rest = dice.randbytes(dice.randrange(1, 20_000))
                case "old frames":
                    rest = synced[32 : 32 + dice.randrange(1, 20_000)]
                case _:
                    torn = bytearray(written)
                    for _ in range(1 + len(torn) // 4096):
                        if torn:
                            at = dice.randrange(len(torn))
                            torn[at : at + 512] = bytes(len(torn[at : at + 512]))
                    rest = bytes(torn)
            log = bytearray(synced)
            put(log, begin, rest)
            with after_loss(spare / "f", moment, log) as folder:
                assert opened(folder) in allowed(story, index), (index, len(rest))


async def test_a_checkpoint_that_was_under_way_loses_nothing(tmp_path: Path, spare: Path) -> None:
    """The log is written back into the database: some of its writes may have reached the disk."""
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        ledger._store._db.execute("PRAGMA wal_autocheckpoint=60")  # sooner than after a thousand pages
        for number in range(10, 60):
            await ledger.grant([exclusive(number)])
            story.answer(ledger)
        disk.mark()
        await ledger.close()
    under_way = [i for i, moment in enumerate(disk.moments) if moment.writes and i >= begun(story)]
    assert under_way, "so many commits fill the log"
    for index in under_way[:3]:
        moment = disk.moments[index]
        synced = moment.synced.get("ledger.db-wal", b"")
        for writes in sorted({*range(0, len(moment.writes), 7), len(moment.writes)}):
            with after_loss(spare / "f", moment, synced, writes) as folder:
                assert opened(folder) in allowed(story, index), writes


async def test_the_ledger_goes_on_after_a_loss(tmp_path: Path, spare: Path) -> None:
    with disk_below(tmp_path) as disk:
        ledger, story = await short_story(tmp_path, disk)
        await ledger.close()
    moment = disk.moments[story.answered[3][0]]
    with after_loss(spare / "f", moment, moment.wal(moment.written - 100)) as folder:
        again = await Ledger.open(folder)
        (granted,) = await again.grant([exclusive(9)])
        assert granted.id > max(int(str(fact[1])) for fact in story.answered[3][1] if fact[0] == "hold")
        await again.close()
        assert granted.share in {hold.share for hold in open_and_close(folder)}


@pytest.mark.parametrize("room", [store.LOG_ROOM], indirect=True, ids=["as shipped"])
async def test_hand_outs_do_not_make_the_log_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the first one wait for the disk to have all of it: what was written to make room is on it by then."""
    synced: list[int] = []
    sync = store._sync
    log = tmp_path / "ledger.db-wal"

    def syncs(path: Path, flags: int) -> None:
        sync(path, flags)
        if path == log:
            synced.append(log.stat().st_size)

    monkeypatch.setattr(store, "_sync", syncs)
    ledger = await Ledger.open(tmp_path)
    long = log.stat().st_size
    for number in range(20):
        await ledger.grant([exclusive(number)])
    assert [log.stat().st_size] == synced == [long] and long > 1000 * FRAME
    await ledger.close()


@pytest.mark.parametrize("room", [store.LOG_ROOM], indirect=True, ids=["as shipped"])
async def test_a_full_disk_has_no_room_for_the_log_and_the_ledger_opens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await Ledger.open(tmp_path, boot="b")).close()
    with disk_below(tmp_path) as disk:
        disk.fails = FULL
        ledger = await Ledger.open(tmp_path, boot="b")
        disk.fails = 0
        (granted,) = await ledger.grant([exclusive(1)])
        await ledger.close()
    assert "the ledger's log has no room yet" in caplog.text
    assert granted.share in {hold.share for hold in open_and_close(tmp_path)}


@pytest.mark.parametrize("room", [10**15], indirect=True, ids=["more than the disk has"])
async def test_the_last_of_a_disk_is_not_taken_for_the_log(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    assert (tmp_path / "ledger.db-wal").stat().st_size < 100_000
    await ledger.close()


def open_and_close(folder: Path) -> Account:
    found = open_store(folder)
    found.store.close()
    return found.account
