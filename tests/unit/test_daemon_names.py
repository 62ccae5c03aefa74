"""Names of groups may change only while nothing is held under them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.config import Group, parse
from bridge.daemon.errors import StartError
from bridge.daemon.names import FILE, settle
from bridge.ledger.account import Account
from bridge.ledger.holds import ClaimHolder, Plane, PreparedClaim
from tests.unit import rosters

EMPTY = Account()


def groups(*written: str) -> tuple[Group, ...]:
    lines = "".join(f"- {{{one}, kind: nx-gzip}}\n" for one in written)
    return parse(f"apiVersion: device-bridge.io/v1alpha1\nkind: BridgeConfig\ngroups:\n{lines}").groups


def held(plane: Plane, count: int = 1) -> Account:
    return rosters.account([rosters.hold(i, plane, rosters.device(f"acc{i}")) for i in range(count)])


def refusal(folder: Path, now: tuple[Group, ...], account: Account) -> str:
    with pytest.raises(StartError) as told:
        settle(folder, now, account)
    return str(told.value)


@pytest.mark.parametrize("plane", Plane)
def test_a_group_with_holds_cannot_go(tmp_path: Path, plane: Plane) -> None:
    settle(tmp_path, groups("name: acc"), EMPTY)
    kept = (tmp_path / FILE).read_bytes()
    said = refusal(tmp_path, groups("name: other"), held(plane, 10))
    assert "group acc is no longer in the configuration" in said
    assert (
        f"acc0 by {next(iter(held(plane))).holder}, acc1 by" in said
        and "acc7" in said
        and "and 2 more" in said
    )
    assert "put it back under that name, resourceName device-bridge.io/acc" in said and "draining" in said
    assert (tmp_path / FILE).read_bytes() == kept, "the next try has to know the old names too"
    settle(tmp_path, groups("name: acc"), held(plane))
    settle(tmp_path, groups("name: other"), EMPTY)


def test_a_group_with_holds_cannot_go_although_no_names_were_kept(tmp_path: Path) -> None:
    assert "group acc is no longer" in refusal(tmp_path, groups("name: other"), held(Plane.DRA))


@pytest.mark.parametrize(
    ("changed", "plane", "other"),
    [
        ("resourceName: example.com/gpu", Plane.DEVICE_PLUGIN, Plane.DRA),
        ("driverName: gpu.example.com", Plane.DRA, Plane.DEVICE_PLUGIN),
    ],
)
def test_a_name_stays_while_its_plane_holds(tmp_path: Path, changed: str, plane: Plane, other: Plane) -> None:
    settle(tmp_path, groups("name: acc"), EMPTY)
    now = groups(f"name: acc, {changed}")
    said = refusal(tmp_path, now, held(plane))
    field, value = changed.split(": ")
    assert f"{field} of group acc is {value} and was " in said and "put the old name back" in said
    settle(tmp_path, now, held(other))
    settle(tmp_path, now, held(plane))


def test_a_claim_with_admin_access_alone_has_to_be_unprepared_too(tmp_path: Path) -> None:
    claim = PreparedClaim("acc", ClaimHolder("default", "look", "u1"), "{}", 0.0)
    assert "admin access by claim default/look" in refusal(
        tmp_path, groups("name: other"), Account((), [claim])
    )


@pytest.mark.parametrize("content", [b"", b"[]", b'{"acc": {}}', b'{"acc": 1}', b"\xff"])
def test_damaged_names_count_only_while_something_is_held(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    said = refusal(tmp_path, groups("name: acc"), held(Plane.DRA))
    assert f"cannot read {tmp_path / FILE}" in said and "remove the file" in said
    settle(tmp_path, groups("name: acc"), EMPTY)
    settle(tmp_path, groups("name: acc"), held(Plane.DRA))


def test_names_that_cannot_be_kept_are_not_used(tmp_path: Path) -> None:
    assert "cannot write" in refusal(tmp_path / "missing", groups("name: acc"), EMPTY)
