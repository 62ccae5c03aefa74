"""The operator's commands without a daemon: what they say, what they refuse, and how they exit."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.cli import doctor
from bridge.ledger.holds import ClaimHolder, Pick, PodHolder, Use
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import read_account, read_boot, read_records
from bridge.platform import openers
from dra_v1.kube import KubeApi
from dra_v1.kube_errors import Json, Unreachable
from tests.unit.test_cli import Bench

RBAC = Path(__file__).parents[2] / "kustomize" / "base" / "rbac.yaml"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.config["daemon"] |= {
        "kubeletRoot": str(tmp_path / "kubelet"),
        "criSocket": str(tmp_path / "cri.sock"),
        "cdi": {"staticDir": str(tmp_path / "cdi"), "dynamicDir": str(tmp_path / "run-cdi")},
    }
    made.tree.add_many("/dev/crypto/acc{}", 3)
    return made


def pick(number: int) -> Pick:
    name = f"crypto-acc{number}"
    return Pick("acc", name, name, (Use(f"/dev/crypto/acc{number}", 1, 1),))


def filled(bench: Bench) -> None:
    """Two holds and a quarantine."""
    asyncio.run(_fill(bench))


async def _fill(bench: Bench) -> None:
    ledger = await Ledger.open(bench.folder / "state", boot="boot-1", clock=lambda: 0.0)
    (granted,) = await ledger.grant([pick(0)])
    await ledger.attribute(granted.id, PodHolder("default", "old", "main", "uid-1"))
    await ledger.prepare("acc", ClaimHolder("default", "train", "uid-2"), [pick(1)], "{}")
    await ledger.quarantine("acc", "crypto-acc2", "in doubt")
    await ledger.close()


def test_h39_holds_without_a_daemon_says_so_and_reads_the_ledger(bench: Bench) -> None:
    filled(bench)
    shown = bench.bridge("holds", "-o", "json")
    assert shown.exit_code == 0
    assert "no daemon answers at" in shown.stderr and "read from the ledger alone" in shown.stderr
    rows = {row["device"]: row for row in json.loads(shown.stdout)}
    assert (rows["crypto-acc0"]["holder"], rows["crypto-acc0"]["state"]) == ("pod default/old", "held")
    assert "ends when the kubelet unprepares" in rows["crypto-acc1"]["evidence"]
    assert (rows["crypto-acc2"]["state"], rows["crypto-acc2"]["evidence"]) == ("quarantined", "in doubt")
    table = bench.bridge("holds")
    assert table.stdout.splitlines()[0].split()[:3] == ["GROUP", "DEVICE", "SHARE"]
    assert yaml.safe_load(bench.bridge("holds", "-o", "yaml").stdout) == json.loads(shown.stdout)


def test_holds_without_a_ledger(bench: Bench) -> None:
    shown = bench.bridge("holds")
    assert shown.exit_code == 1 and "there is no ledger" in shown.stderr and "Traceback" not in shown.output


def test_explain_without_a_daemon(bench: Bench) -> None:
    filled(bench)
    shown = bench.look("explain", "crypto-acc0")
    assert shown.exit_code == 0 and "acc/crypto-acc0" in shown.stdout
    assert "device-plugin: not offered\n    held by pod default/old, here, since" in shown.stdout
    assert "to change it: delete pod default/old, or wait until it ends" in shown.stdout
    found = json.loads(bench.look("explain", "acc/crypto-acc1", "-o", "json").stdout)
    assert [view["offered"] for view in found["views"]] == [False, False]
    missing = bench.look("explain", "crypto-acc9")
    assert missing.exit_code == 1 and "`bridge devices` lists them" in missing.stderr


def test_release_wants_to_be_sure(bench: Bench) -> None:
    filled(bench)
    shown = bench.look("release", "crypto-acc0")
    assert shown.exit_code == 2 and "--yes-i-know" in shown.stderr
    assert len(read_account(bench.folder / "state")) == 2


def test_release_is_refused_where_nobody_can_tell_and_done_by_force(bench: Bench) -> None:
    filled(bench)
    state = bench.folder / "state"
    refused = bench.look("release", "crypto-acc0", "--yes-i-know")
    assert refused.exit_code == 1 and "nobody can tell whether acc/crypto-acc0 is in use" in refused.stderr
    assert len(read_account(state)) == 2
    forced = bench.look("release", "crypto-acc0", "--yes-i-know", "--force", "--why", "node drained")
    assert forced.exit_code == 0, forced.stderr
    assert "released crypto-acc0 from pod default/old (device-plugin)" in forced.stdout
    assert "no event was posted" in forced.stderr
    assert [hold.device for hold in read_account(state)] == ["crypto-acc1"]
    (record,) = read_records(state)
    assert record.what == "release" and "@" in record.who and record.text.endswith("held: node drained")
    assert read_boot(state) == "boot-1", "the daemon has still to find out that the machine was booted"
    again = bench.look("release", "crypto-acc0", "--yes-i-know", "--force")
    assert again.exit_code == 1 and "there is nothing to release" in again.stderr


def test_h41_release_is_refused_while_a_process_has_the_device_open(bench: Bench) -> None:
    filled(bench)
    node = bench.folder / "root" / "dev" / "crypto" / "acc0"
    with node.open("rb"):
        refused = bench.look("release", "crypto-acc0", "--yes-i-know")
        assert refused.exit_code == 1 and f"has {node} open" in refused.stderr
        assert "is in use" in refused.stderr and "--force" in refused.stderr
    assert len(read_account(bench.folder / "state")) == 2


def test_release_lifts_a_quarantine_and_keeps_a_record(bench: Bench) -> None:
    filled(bench)
    lifted = bench.look("release", "crypto-acc2", "--yes-i-know", "--force", "--why", "checked by hand")
    assert lifted.exit_code == 0 and "lifted the quarantine of acc/crypto-acc2: in doubt" in lifted.stdout
    state = bench.folder / "state"
    assert read_account(state).quarantines() == ()
    assert read_records(state)[0].text == "quarantine of acc/crypto-acc2, in doubt: checked by hand"


def test_release_beside_a_daemon_that_does_not_answer(bench: Bench) -> None:
    filled(bench)
    with (bench.folder / "state" / "ledger.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shown = bench.look("release", "crypto-acc0", "--yes-i-know", "--force")
    assert shown.exit_code == 1 and "another daemon" in shown.stderr and "Traceback" not in shown.output


def test_release_never_begins_a_new_ledger_in_place_of_a_damaged_one(bench: Bench) -> None:
    filled(bench)
    file = bench.folder / "state" / "ledger.db"
    file.write_bytes(b"junk" * 4096)
    shown = bench.look("release", "crypto-acc0", "--yes-i-know", "--force")
    assert shown.exit_code == 1 and "cannot read the ledger" in shown.stderr
    assert file.read_bytes().startswith(b"junk") and not list(file.parent.glob("*.damaged-*"))


def test_a_sound_ledger_is_said_to_be_sound(bench: Bench) -> None:
    filled(bench)
    shown = bench.bridge("ledger", "check")
    assert shown.exit_code == 0
    assert "sound; schema 3, 2 holds on 2 parts, 1 prepared claims, 1 quarantines" in shown.stdout
    assert json.loads(bench.bridge("ledger", "check", "-o", "json").stdout)["holds"] == 2


def test_a_ledger_that_books_another_amount_than_its_holds_use_is_damaged(bench: Bench) -> None:
    filled(bench)
    with sqlite3.connect(bench.folder / "state" / "ledger.db") as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("UPDATE parts SET used = 0 WHERE part = '/dev/crypto/acc0'")
    shown = bench.bridge("ledger", "check")
    assert shown.exit_code == 1
    assert "is booked for another amount than its holds use" in shown.stderr
    assert "drain the node" in shown.stderr and "--accept-empty-ledger" in shown.stderr


def test_a_ledger_of_a_newer_version_is_refused(bench: Bench) -> None:
    filled(bench)
    with sqlite3.connect(bench.folder / "state" / "ledger.db") as db:
        db.execute("PRAGMA user_version = 99")
    shown = bench.bridge("ledger", "check")
    assert shown.exit_code == 1 and "newer version" in shown.stderr


def test_export_prints_everything(bench: Bench) -> None:
    filled(bench)
    bench.look("release", "crypto-acc0", "--yes-i-know", "--force")
    for form in ("json", "yaml"):
        shown = bench.bridge("ledger", "export", "-o", form)
        found = yaml.safe_load(shown.stdout)
        assert [hold["device"] for hold in found["holds"]] == ["crypto-acc1"]
        assert found["claims"][0]["holder"]["name"] == "train" and found["schema"] == 3
        assert found["quarantines"][0]["reason"] == "in doubt"
        assert found["records"][0]["what"] == "release"
        assert found["switches"] == []


def test_doctor_without_anything_says_what_to_mend(bench: Bench) -> None:
    shown = bench.bridge("doctor", "-o", "json")
    assert shown.exit_code == 1 and "Traceback" not in shown.output
    found = {row["check"]: row for row in json.loads(shown.stdout)}
    for wrong in ("ledger", "daemon", "evidence: podresources", "evidence: runtime", "API server"):
        assert not found[wrong]["ok"] and found[wrong]["mend"], wrong
    assert found["evidence: checkpoint"]["ok"] and found["CDI folder"]["ok"]


class Reviewer(KubeApi):
    """Answers access reviews."""

    def __init__(self, denied: set[tuple[str, str]]) -> None:
        super().__init__("http://nowhere")
        self.denied = denied
        self.asked: list[Mapping[str, str]] = []

    async def create(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
        assert path == doctor.REVIEWS
        wanted = body["spec"]["resourceAttributes"]
        self.asked.append(wanted)
        return {"status": {"allowed": (wanted["resource"], wanted["verb"]) not in self.denied}}


async def test_doctor_asks_for_every_right_and_names_the_missing_ones() -> None:
    api = Reviewer({("events", "create"), ("resourceslices", "update")})
    found = await doctor.rights(api)
    assert [one.check for one in found if not one.ok] == [
        "right: create events",
        "right: update resourceslices",
    ]
    assert all("rbac.yaml" in one.mend for one in found if not one.ok)
    assert {
        "group": "resource.k8s.io",
        "resource": "resourceclaims",
        "subresource": "status",
        "verb": "patch",
    } in api.asked
    assert all(one.ok for one in await doctor.rights(Reviewer(set())))


async def test_doctor_with_an_api_server_that_does_not_answer() -> None:
    class Silent(Reviewer):
        async def create(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
            raise Unreachable(0, "Timeout", "no answer", "create", path)

    (found,) = await doctor.rights(Silent(set()))
    assert not found.ok and "no answer" in found.found and found.mend


def test_the_rights_that_doctor_looks_for_are_the_shipped_ones() -> None:
    (role,) = (d for d in yaml.safe_load_all(RBAC.read_text()) if d["kind"] == "ClusterRole")
    shipped: set[tuple[Any, ...]] = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert shipped == {right[:3] for right in doctor.RIGHTS}


def test_openers_are_found_by_the_node_that_they_have_open(tmp_path: Path) -> None:
    node, other = tmp_path / "acc0", tmp_path / "acc1"
    node.touch()
    other.touch()
    proc = tmp_path / "proc"
    for pid, path in ((7, node), (8, other)):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "comm").write_text("train\n")
        (proc / str(pid) / "fd" / "3").symlink_to(path)
        (proc / str(pid) / "fd" / "4").symlink_to("/nowhere")
    seen = openers.look([node, tmp_path / "gone"], proc)
    assert [str(one) for one in seen.openers] == [f"process 7 (train) has {node} open"]
    assert (seen.processes, seen.hidden, seen.alone) == (2, 0, True)
