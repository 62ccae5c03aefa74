"""How the account stands in SQLite: schema, one statement or a few for each change, and reading it all back.

Uniqueness and capacity are constraints of the schema too, so that a bug in the account above cannot book a part
twice. Strict about what it reads: a row that this version does not understand is damage (S5).
"""

from __future__ import annotations

import sqlite3
from typing import Any, assert_never

from bridge.config import Mode
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
    Use,
)
from bridge.ledger.switches import Gate, Switch
from dra_v1 import points

SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE claims (
  grp TEXT NOT NULL, uid TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  answer TEXT NOT NULL, since REAL NOT NULL,
  PRIMARY KEY (grp, uid)
) STRICT, WITHOUT ROWID;
CREATE TABLE holds (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  plane TEXT NOT NULL CHECK (plane IN ('device-plugin', 'dra')),
  phase TEXT NOT NULL,
  grp TEXT NOT NULL, device TEXT NOT NULL, share TEXT NOT NULL,
  namespace TEXT NOT NULL, name TEXT NOT NULL, container TEXT NOT NULL, uid TEXT NOT NULL,
  since REAL NOT NULL, boot TEXT NOT NULL,
  UNIQUE (plane, grp, share)
) STRICT;
CREATE TABLE parts (
  part TEXT PRIMARY KEY, capacity INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0 CHECK (used >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE uses (
  hold INTEGER NOT NULL REFERENCES holds ON DELETE CASCADE,
  part TEXT NOT NULL REFERENCES parts,
  amount INTEGER NOT NULL CHECK (amount > 0),
  capacity INTEGER NOT NULL,
  PRIMARY KEY (hold, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX uses_of_part ON uses (part);
CREATE TRIGGER fits BEFORE INSERT ON uses
WHEN (SELECT used + NEW.amount > capacity FROM parts WHERE part = NEW.part)
  OR EXISTS (SELECT 1 FROM uses WHERE part = NEW.part AND amount >= capacity)
BEGIN SELECT RAISE(ABORT, 'a part would be booked above its capacity'); END;
CREATE TRIGGER booked AFTER INSERT ON uses
BEGIN UPDATE parts SET used = used + NEW.amount WHERE part = NEW.part; END;
CREATE TRIGGER freed AFTER DELETE ON uses
BEGIN UPDATE parts SET used = used - OLD.amount WHERE part = OLD.part; END;
CREATE TABLE quarantine (
  grp TEXT NOT NULL, device TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL,
  PRIMARY KEY (grp, device)
) STRICT, WITHOUT ROWID;
"""

_NEW = "INSERT INTO meta VALUES ('uncompared', '');"
"""What a file made new says of itself, and one of an earlier version does not."""

_MIGRATIONS = {
    # Holds have one more phase, which version 1 would take for damage; and what was done by force is kept.
    2: """
CREATE TABLE records (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
""",
    # The mode of a group can change while it is served, and the way there outlives the daemon.
    3: """
CREATE TABLE switches (
  grp TEXT PRIMARY KEY, mode TEXT NOT NULL, target TEXT NOT NULL,
  device_plugin TEXT NOT NULL, dra TEXT NOT NULL, since REAL NOT NULL
) STRICT, WITHOUT ROWID;
""",
}
"""What makes each version out of the one before."""

SCHEMA_VERSION = max(_MIGRATIONS)

_BY_NAME = "by-name"
"""In the column `container` of a claim's hold, which has none: `Hold.by_name`. A version that does not know it reads
past it."""


def create(db: sqlite3.Connection) -> None:
    """Make all tables, at the newest version, in a file that has none."""
    db.executescript(SCHEMA_1 + _NEW)
    db.execute("PRAGMA user_version=1")
    migrate(db)


def migrate(db: sqlite3.Connection) -> None:
    """Bring a file of an earlier version to the newest, all of it or nothing. Raises sqlite3.Error."""
    for newer in range(_version(db) + 1, SCHEMA_VERSION + 1):
        points.reached(points.Point.LEDGER_MIGRATING)
        db.executescript(f"BEGIN IMMEDIATE; {_MIGRATIONS[newer]} PRAGMA user_version={newer}; COMMIT;")
        points.reached(points.Point.LEDGER_MIGRATED)


def write(db: sqlite3.Connection, change: Change) -> None:
    """Carry out one change, within the transaction of the caller. Raises sqlite3.Error."""
    match change:
        case PutHold(hold):
            _put_hold(db, hold)
        case DropHold(hold_id):
            db.execute("DELETE FROM holds WHERE id = ?", (hold_id,))
        case PutClaim(claim):
            h = claim.holder
            db.execute(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
                (claim.group, h.uid, h.namespace, h.name, claim.answer, claim.since),
            )
        case DropClaim(group, uid):
            db.execute("DELETE FROM claims WHERE grp = ? AND uid = ?", (group, uid))
        case PutQuarantine(q):
            db.execute(
                "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
                (q.group, q.device, q.reason, q.since),
            )
        case LiftQuarantine(group, device):
            db.execute("DELETE FROM quarantine WHERE grp = ? AND device = ?", (group, device))
        case PutRecord(r):
            db.execute(
                "INSERT INTO records (at, what, who, text) VALUES (?, ?, ?, ?)", (r.at, r.what, r.who, r.text)
            )
        case Compared():
            db.execute("DELETE FROM meta WHERE key = 'uncompared'")
        case PutSwitch(s):
            db.execute(
                "INSERT OR REPLACE INTO switches VALUES (?, ?, ?, ?, ?, ?)",
                (s.group, s.mode, s.target, s.device_plugin, s.dra, s.since),
            )
        case _:
            assert_never(change)


def _put_hold(db: sqlite3.Connection, hold: Hold) -> None:
    holder = hold.holder
    container = holder.container if isinstance(holder, PodHolder) else _BY_NAME if hold.by_name else ""
    known = db.execute(
        "UPDATE holds SET phase = ?, namespace = ?, name = ?, container = ?, uid = ? WHERE id = ?",
        (hold.phase, holder.namespace, holder.name, container, holder.uid, hold.id),
    )
    if known.rowcount:
        return
    db.execute(
        "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            hold.id,
            hold.plane,
            hold.phase,
            hold.group,
            hold.device,
            hold.share,
            holder.namespace,
            holder.name,
            container,
            holder.uid,
            hold.since,
            hold.boot,
        ),
    )
    for use in hold.uses:
        db.execute(
            "INSERT INTO parts (part, capacity) VALUES (?, ?)"
            " ON CONFLICT (part) DO UPDATE SET capacity = excluded.capacity",
            (use.part, use.capacity),
        )
        db.execute("INSERT INTO uses VALUES (?, ?, ?, ?)", (hold.id, use.part, use.amount, use.capacity))


def load(db: sqlite3.Connection) -> tuple[Account, int]:
    """Everything, and the first hold number never used. Raises sqlite3.DatabaseError for what makes no sense."""
    uses: dict[int, list[Use]] = {}
    for hold_id, part, amount, capacity in db.execute(
        "SELECT hold, part, amount, capacity FROM uses ORDER BY hold, part"
    ):
        uses.setdefault(hold_id, []).append(Use(part, amount, capacity))
    try:
        holds = [_hold(row, uses) for row in db.execute(_SELECT_HOLDS)]
        switches = [_switch(row) for row in db.execute(_SELECT_SWITCHES)] if _version(db) >= 3 else []
    except ValueError as error:
        raise sqlite3.DatabaseError(f"a row cannot be read: {error}") from error
    claims = [
        PreparedClaim(group, ClaimHolder(namespace, name, uid), answer, since)
        for group, uid, namespace, name, answer, since in db.execute(
            "SELECT grp, uid, namespace, name, answer, since FROM claims"
        )
    ]
    quarantines = [
        Quarantine(*row) for row in db.execute("SELECT grp, device, reason, since FROM quarantine")
    ]
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'holds'").fetchone()
    return Account(holds, claims, quarantines, switches), (row[0] if row else 0) + 1


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def records(db: sqlite3.Connection) -> tuple[Record, ...]:
    """What was done by force, oldest first; version 1 kept nothing of it."""
    if _version(db) < 2:
        return ()
    return tuple(Record(*row) for row in db.execute("SELECT at, what, who, text FROM records ORDER BY id"))


def uncompared(db: sqlite3.Connection) -> bool:
    """Whether a file that was made new has never been compared with the evidence; see `Compared`."""
    return db.execute("SELECT 1 FROM meta WHERE key = 'uncompared'").fetchone() is not None


def noted_boot(db: sqlite3.Connection) -> str:
    """The machine's boot ID at the last opening; empty if there was none."""
    row = db.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone()
    return str(row[0]) if row else ""


def exchange_boot(db: sqlite3.Connection, boot: str) -> str:
    """Note the machine's boot ID; the one noted before, empty if there was none."""
    before = noted_boot(db)
    if before != boot:
        points.reached(points.Point.LEDGER_BOOT_NOTING)
        db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        points.reached(points.Point.LEDGER_BOOT_NOTED)
    return before


_SELECT_HOLDS = (
    "SELECT id, plane, phase, grp, device, share, namespace, name, container, uid, since, boot"
    " FROM holds ORDER BY id"
)


_SELECT_SWITCHES = "SELECT grp, mode, target, device_plugin, dra, since FROM switches"


def _switch(row: tuple[Any, ...]) -> Switch:
    """A row of `switches`. Raises ValueError for a mode or a gate that this version does not know."""
    group, mode, target, device_plugin, dra, since = row
    return Switch(group, Mode(mode), Mode(target), Gate(device_plugin), Gate(dra), since)


def _hold(row: tuple[Any, ...], uses: dict[int, list[Use]]) -> Hold:
    """A row of `holds` as a hold. Raises ValueError for a plane or phase that this version does not know."""
    hold_id, plane, phase, group, device, share, namespace, name, container, uid, since, boot = row
    holder = (
        ClaimHolder(namespace, name, uid)
        if plane == Plane.DRA
        else PodHolder(namespace, name, container, uid)
    )
    parts = tuple(uses.get(hold_id, ()))
    by_name = plane == Plane.DRA and container == _BY_NAME
    return Hold(
        hold_id, Plane(plane), Phase(phase), group, device, share, holder, parts, since, boot, by_name
    )
