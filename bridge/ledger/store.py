"""The ledger's file: one SQLite database, one writer, strict about what it finds.

Keeps S1 (a transaction that returned is on disk: WAL with synchronous=FULL) and S5 (a file that cannot be
read is kept aside and reported, never taken for an empty one). Synchronous: called from a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from bridge.ledger.account import Account
from bridge.ledger.holds import Change, PutQuarantine, Quarantine, Record
from bridge.ledger.rows import (
    SCHEMA_VERSION,
    create,
    exchange_boot,
    load,
    migrate,
    noted_boot,
    records,
    uncompared,
    write,
)
from dra_v1 import points

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERYTHING = "*"
"""As group or device of a quarantine: all of them."""

LOG_ROOM = 4_500_000
"""Bytes, a little more than the write-ahead log becomes before SQLite writes it from its begin again: 1000 pages, a
transaction more, and what stays in the cache of what is written to make room."""

PLENTY = 16
"""Room is made only where there is so many times as much: the last of a disk is for those who need it."""


class LedgerError(Exception):
    """The ledger cannot be used; the message says why and what to do."""


class LedgerLocked(LedgerError):
    """Another process has the ledger."""


class LedgerFromTheFuture(LedgerError):
    """The file was written by a newer version."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening found.

    Attributes:
        store: the open store.
        account: everything that the file held.
        next_hold: the first hold number never used.
        damaged: where a damaged file was put, with the reason; None where all was well.
        fresh: whether the file is new (first start, or after damage) and no process has yet compared it with whole
            evidence.
        previous_boot: the machine's boot ID when the ledger was opened last; empty if unknown.
    """

    store: Store
    account: Account
    next_hold: int
    damaged: tuple[Path, str] | None
    fresh: bool
    previous_boot: str


class Store:
    """The open database. Not thread-safe: one caller at a time."""

    def __init__(self, connection: sqlite3.Connection, lock_fd: int) -> None:
        self._db = connection
        self._lock_fd = lock_fd

    def write(self, transactions: Iterable[Iterable[Change]]) -> None:
        """Put transactions on disk with one commit.

        Raises sqlite3.Error; then none of them is.
        """
        db = self._db
        points.reached(points.Point.LEDGER_BEGINNING)
        db.execute("BEGIN IMMEDIATE")
        try:
            for changes in transactions:
                for change in changes:
                    write(db, change)
            points.reached(points.Point.LEDGER_COMMITTING)
            db.execute("COMMIT")
            points.reached(points.Point.LEDGER_COMMITTED)
        except BaseException:
            # A failed COMMIT (disk full) may have ended the transaction already.
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def load(self) -> tuple[Account, int]:
        """Read everything: the account, and the first hold number never used. Raises sqlite3.Error."""
        with _told_as_damage():
            return load(self._db)

    def close(self) -> None:
        """Close the file and give up the lock, in this order."""
        try:
            self._db.close()
        finally:
            os.close(self._lock_fd)


def open_store(folder: Path, boot: str = "") -> Opened:
    """Open the ledger of a state folder, or begin one; `boot` is the machine's boot ID.

    A damaged file is renamed, and the one begun in its place has everything quarantined from its first moment
    (S5). Raises LedgerLocked, LedgerFromTheFuture, or LedgerError where the folder or disk does not let us.
    """
    path = folder / "ledger.db"
    lock_fd, used_before = _lock(folder)
    try:
        damage = _absence(path, used_before)
        if damage is None and path.exists():
            try:
                opened = _open(path, lock_fd, boot)
                _sign(lock_fd)
                return opened
            except sqlite3.DatabaseError as error:
                if _is_environment(error):
                    raise _unusable(path, error) from error
                damage = (_set_aside(path), str(error))
        try:
            _create(path, damage)
            opened = _open(path, lock_fd, boot)
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, error) from error
        _sign(lock_fd)
        return replace(opened, damaged=damage)
    except BaseException:
        os.close(lock_fd)
        raise


def read_account(folder: Path) -> Account:
    """What a state folder's ledger says now, beside a running daemon and without its lock.

    Raises LedgerError where there is none or it cannot be read.
    """
    return _read(folder, lambda db: load(db)[0])


def read_records(folder: Path) -> tuple[Record, ...]:
    """What was done by force to a state folder's ledger, oldest first. Raises as `read_account` does."""
    return _read(folder, records)


def read_boot(folder: Path) -> str:
    """The machine's boot ID when a state folder's ledger was opened last. Raises as `read_account` does."""
    return _read(folder, noted_boot)


@dataclass(frozen=True, slots=True)
class Examined:
    """A ledger that is sound.

    Attributes:
        path: the file.
        schema: its version.
        holds, parts, claims, quarantines, records: how many there are.
        set_aside: names of damaged ones that were kept beside it.
    """

    path: Path
    schema: int
    holds: int
    parts: int
    claims: int
    quarantines: int
    records: int
    set_aside: tuple[str, ...]


def examine(folder: Path) -> Examined:
    """Look whether a state folder's ledger is sound, row by row. Raises as `read_account` does."""
    account, kept = read_account(folder), read_records(folder)
    (schema,) = _read(folder, lambda db: db.execute("PRAGMA user_version").fetchone())
    damaged = sorted(
        path.name for path in folder.glob("ledger.db.damaged-*") if not path.name.endswith(("-wal", "-shm"))
    )
    return Examined(
        folder / "ledger.db",
        schema,
        len(account),
        len({use.part for hold in account for use in hold.uses}),
        len(account.prepared_claims()),
        len(account.quarantines()),
        len(kept),
        tuple(damaged),
    )


def _read(folder: Path, ask: Callable[[sqlite3.Connection], T]) -> T:
    path = folder / "ledger.db"
    if not path.exists():
        raise LedgerError(f"there is no ledger in {folder}: the daemon has not run with this configuration")
    try:
        address = f"file:{quote(str(path))}?mode=ro"
        with _told_as_damage(), contextlib.closing(sqlite3.connect(address, uri=True)) as db:
            _verify(db, path)
            return ask(db)
    except sqlite3.Error as error:
        raise LedgerError(f"cannot read the ledger {path}: {error}") from error


def _absence(path: Path, used_before: bool) -> tuple[Path, str] | None:
    """Tell a ledger that is lost from one that never was: the lock file is signed once a ledger stands."""
    if path.exists() or not used_before:
        return None
    return _set_aside(path), "the file is gone, although a ledger was kept in this folder before"


def _unusable(path: Path, error: Exception) -> LedgerError:
    return LedgerError(f"cannot use the ledger {path}: {error}; free disk space or make the folder writable")


_ENVIRONMENT = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    )
)


def _is_environment(error: sqlite3.DatabaseError) -> bool:
    """Whether the disk or the folder is at fault, not the file's content."""
    # What Python's own module says, that a text is none for example, has no code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return isinstance(error, sqlite3.OperationalError) and code & 0xFF in _ENVIRONMENT


def _lock(folder: Path) -> tuple[int, bool]:
    """Take the exclusive lock; also tells whether a ledger was ever kept here."""
    points.reached(points.Point.LEDGER_FOLDER_MAKING)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder / "ledger.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(
            f"cannot use the state folder {folder}: {error.strerror}; make it writable"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LedgerLocked(
            f"another daemon (process {owner}) has the ledger in {folder}; only one may run on a node"
        ) from None
    return fd, os.fstat(fd).st_size > 0


def _sign(lock_fd: int) -> None:
    """Leave our process number in the lock file: for another daemon's error message, and as the mark that a
    ledger stands in this folder. Never empty in between: on a full disk it would stay so. Raises LedgerError."""
    points.reached(points.Point.LEDGER_SIGNING)
    name = f"{os.getpid()}\n".encode()
    try:
        os.pwrite(lock_fd, name, 0)
        os.ftruncate(lock_fd, len(name))
        os.fsync(lock_fd)
    except OSError as error:
        raise LedgerError(
            f"cannot write the ledger's lock file: {error.strerror}; free disk space or make the folder writable"
        ) from error
    points.reached(points.Point.LEDGER_SIGNED)


def _create(path: Path, damage: tuple[Path, str] | None) -> None:
    """Make an empty ledger under another name and rename it, so that a file that is there is always whole: one
    that takes the place of a damaged file is never there without its quarantine."""
    new = path.with_name(path.name + ".new")
    points.reached(points.Point.LEDGER_MAKING)
    new.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
        create(db)
        if damage is not None:
            write(db, PutQuarantine(Quarantine(EVERYTHING, EVERYTHING, _why(*damage), time.time())))
    new.chmod(0o600)
    _sync(new, os.O_RDONLY)
    points.reached(points.Point.LEDGER_MADE_ASIDE)
    new.rename(path)
    points.reached(points.Point.LEDGER_IN_PLACE)
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _why(aside: Path, error: str) -> str:
    return (
        f"the ledger was damaged ({error}) and is kept as {aside.name}; drain the node, then start the daemon "
        f"once with --accept-empty-ledger; nothing lifts it before, for it may have named claims that are still "
        f"allocated here and that no pod names now"
    )


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _set_aside(path: Path) -> Path:
    """Rename a damaged file and its journal; never delete evidence."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            points.reached(points.Point.LEDGER_SETTING_ASIDE)
            source.rename(aside.with_name(aside.name + suffix))
            points.reached(points.Point.LEDGER_SET_ASIDE)
    return aside


def _open(path: Path, lock_fd: int, boot: str) -> Opened:
    # The calls come from one worker thread at a time, but not from the thread that opened the file.
    db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        with _told_as_damage():
            return _opened(db, path, lock_fd, boot)
    except BaseException:
        db.close()
        raise


@contextlib.contextmanager
def _told_as_damage() -> Iterator[None]:
    """A damaged file can make SQLite quote from it what is no text, which Python then cannot say. Raises
    sqlite3.DatabaseError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"what it holds is no text: {error}") from error


def _opened(db: sqlite3.Connection, path: Path, lock_fd: int, boot: str) -> Opened:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-256"):
        db.execute(f"PRAGMA {pragma}")
    _verify(db, path)
    migrate(db)
    _make_room(db, path.parent)
    account, next_hold = load(db)
    fresh = uncompared(db)
    previous = exchange_boot(db, boot)
    return Opened(Store(db, lock_fd), account, next_hold, None, fresh, previous)


def _make_room(db: sqlite3.Connection, folder: Path) -> None:
    """Let the log have its length before the first hand-out: a commit that makes a file longer waits three times as
    long for the disk as one that does not. What is written here is never committed, and so never read.
    """
    points.reached(points.Point.LEDGER_ROOM_MAKING)
    try:
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < PLENTY * LOG_ROOM:
            return
        db.execute("BEGIN IMMEDIATE")
        db.execute("CREATE TABLE room (bytes)")
        db.execute("INSERT INTO room VALUES (zeroblob(?))", (LOG_ROOM,))
        db.execute("ROLLBACK")
        _sync(folder / "ledger.db-wal", os.O_RDONLY)  # or the first hand-out would wait for all of it
        points.reached(points.Point.LEDGER_ROOM_MADE)
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, sqlite3.OperationalError) and not _is_environment(error):
            raise
        log.warning("the ledger's log has no room yet, and grows by and by", extra={"error": str(error)})
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _verify(db: sqlite3.Connection, path: Path) -> None:
    """Check version and integrity. Raises sqlite3.DatabaseError for damage."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise LedgerFromTheFuture(
            f"the ledger {path} has schema {version}, this version knows up to {SCHEMA_VERSION}: it was "
            f"written by a newer version; run that one, or drain the node before going back"
        )
    if version < 1:
        raise sqlite3.DatabaseError("the file has no schema version: it was never completely made")
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"integrity check: {verdict}")
    bad = db.execute(
        "SELECT p.part FROM parts p LEFT JOIN uses u USING (part) GROUP BY p.part"
        " HAVING p.used <> COALESCE(SUM(u.amount), 0) LIMIT 1"
    ).fetchone()
    if bad is not None:
        raise sqlite3.DatabaseError(f"the part {bad[0]} is booked for another amount than its holds use")
