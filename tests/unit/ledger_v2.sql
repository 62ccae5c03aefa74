-- A ledger of schema 2, as the last version that wrote it left it.
PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE claims (
  grp TEXT NOT NULL, uid TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
  answer TEXT NOT NULL, since REAL NOT NULL,
  PRIMARY KEY (grp, uid)
) STRICT, WITHOUT ROWID;
INSERT INTO "claims" VALUES('acc','uid-train','default','train','{"answer": "of train"}',1750000005.0);
INSERT INTO "claims" VALUES('nx','uid-zip','default','zip','{"answer": "of zip"}',1750000008.0);
CREATE TABLE holds (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  plane TEXT NOT NULL CHECK (plane IN ('device-plugin', 'dra')),
  phase TEXT NOT NULL,
  grp TEXT NOT NULL, device TEXT NOT NULL, share TEXT NOT NULL,
  namespace TEXT NOT NULL, name TEXT NOT NULL, container TEXT NOT NULL, uid TEXT NOT NULL,
  since REAL NOT NULL, boot TEXT NOT NULL,
  UNIQUE (plane, grp, share)
) STRICT;
INSERT INTO "holds" VALUES(2,'device-plugin','granted','acc','crypto-acc0','crypto-acc0','','','','',1750000003.0,'boot-of-v2');
INSERT INTO "holds" VALUES(3,'device-plugin','held','acc','crypto-acc1','crypto-acc1','default','runs','main','uid-runs',1750000004.0,'boot-of-v2');
INSERT INTO "holds" VALUES(4,'dra','prepared','acc','crypto-acc2','crypto-acc2','default','train','','uid-train',1750000005.0,'boot-of-v2');
INSERT INTO "holds" VALUES(5,'dra','releasing','acc','crypto-acc3','crypto-acc3','default','leaves','','uid-leaves',1750000006.0,'boot-of-v2');
INSERT INTO "holds" VALUES(6,'dra','reserved','acc','crypto-acc5','crypto-acc5','default','comes','','uid-comes',1750000007.0,'boot-of-v2');
INSERT INTO "holds" VALUES(7,'dra','prepared','nx','nx-gzip','nx-gzip--2','default','zip','','uid-zip',1750000008.0,'boot-of-v2');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO "meta" VALUES('boot','boot-of-v2');
CREATE TABLE parts (
  part TEXT PRIMARY KEY, capacity INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0 CHECK (used >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO "parts" VALUES('/dev/crypto/acc0',1,1);
INSERT INTO "parts" VALUES('/dev/crypto/acc1',1,1);
INSERT INTO "parts" VALUES('/dev/crypto/acc2',1,1);
INSERT INTO "parts" VALUES('/dev/crypto/acc3',1,1);
INSERT INTO "parts" VALUES('/dev/crypto/acc5',1,1);
INSERT INTO "parts" VALUES('/dev/crypto/acc9',1,0);
INSERT INTO "parts" VALUES('/dev/crypto/nx-gzip',4,1);
CREATE TABLE quarantine (
  grp TEXT NOT NULL, device TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL,
  PRIMARY KEY (grp, device)
) STRICT, WITHOUT ROWID;
INSERT INTO "quarantine" VALUES('acc','crypto-acc4','by hand: smells of smoke',1750000009.0);
CREATE TABLE records (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
INSERT INTO "records" VALUES(1,1750000002.0,'release','root','acc/crypto-acc9 of a pod not yet identified, granted: its pod is long gone');
CREATE TABLE uses (
  hold INTEGER NOT NULL REFERENCES holds ON DELETE CASCADE,
  part TEXT NOT NULL REFERENCES parts,
  amount INTEGER NOT NULL CHECK (amount > 0),
  capacity INTEGER NOT NULL,
  PRIMARY KEY (hold, part)
) STRICT, WITHOUT ROWID;
INSERT INTO "uses" VALUES(2,'/dev/crypto/acc0',1,1);
INSERT INTO "uses" VALUES(3,'/dev/crypto/acc1',1,1);
INSERT INTO "uses" VALUES(4,'/dev/crypto/acc2',1,1);
INSERT INTO "uses" VALUES(5,'/dev/crypto/acc3',1,1);
INSERT INTO "uses" VALUES(6,'/dev/crypto/acc5',1,1);
INSERT INTO "uses" VALUES(7,'/dev/crypto/nx-gzip',1,4);
CREATE INDEX uses_of_part ON uses (part);
CREATE TRIGGER fits BEFORE INSERT ON uses
WHEN (SELECT used + NEW.amount > capacity FROM parts WHERE part = NEW.part)
  OR EXISTS (SELECT 1 FROM uses WHERE part = NEW.part AND amount >= capacity)
BEGIN SELECT RAISE(ABORT, 'a part would be booked above its capacity'); END;
CREATE TRIGGER booked AFTER INSERT ON uses
BEGIN UPDATE parts SET used = used + NEW.amount WHERE part = NEW.part; END;
CREATE TRIGGER freed AFTER DELETE ON uses
BEGIN UPDATE parts SET used = used - OLD.amount WHERE part = OLD.part; END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('holds',7);
COMMIT;
