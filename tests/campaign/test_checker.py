"""The judge on journals written by hand: what it must say, and what it must not."""

from __future__ import annotations

import io

from tests.campaign import journal
from tests.campaign.checker import DOUBLE_USE, LOST, STUCK, Bounds, Finding, check
from tests.campaign.journal import Busy, Claim, Close, Device, Fault, Line, Node, Open, Pod, Presence, Slice

BOUNDS = Bounds(offered=2, runs=3, ends=4)
RESOURCE, DRIVER, POOL = "x/acc", "acc.x", "n"


def device(number: int, capacity: int = 1) -> Device:
    return Device(0, f"acc{number}", RESOURCE, DRIVER, POOL, f"crypto-acc{number}", capacity)


def offered(t: float, *numbers: int, allocatable: int = 2) -> list[Line]:
    names = tuple(f"crypto-acc{n}" for n in numbers)
    return [Slice(t, "s", DRIVER, POOL, names), Node(t, "n", {RESOURCE: allocatable})]


def dp_pod(t: float, uid: str, phase: str = "Running", node: str = "n", **more: object) -> Pod:
    return Pod(t, uid, "default", uid, node, phase, wants={RESOURCE: 1}, **more)  # type: ignore[arg-type]


def dra_pod(t: float, uid: str, claim: str, phase: str = "Running", **more: object) -> Pod:
    return Pod(t, uid, "default", uid, "n", phase, claims=(claim,), **more)  # type: ignore[arg-type]


def claim(t: float, uid: str, number: int | None, *users: str, gone: bool = False) -> Claim:
    devices = ((DRIVER, POOL, f"crypto-acc{number}"),) if number is not None else ()
    return Claim(t, uid, "default", uid, devices, users, gone=gone)


BEGIN: list[Line] = [device(0), device(1), *offered(0, 0, 1)]


def end(t: float) -> Line:
    """A line that tells nothing: time goes on."""
    return Fault(t, "end", "none", False)


def found(*lines: Line, begin: list[Line] = BEGIN) -> list[str]:
    return [finding.what for finding in _check(*lines, begin=begin)]


def _check(*lines: Line, begin: list[Line] = BEGIN) -> list[Finding]:
    return check(sorted([*begin, *lines], key=lambda line: line.t), BOUNDS)


# -- double use


def test_one_after_the_other_is_no_double_use() -> None:
    assert found(Open(1, "acc0", "c1", "p1"), Close(1.5, "acc0", "c1"), Open(1.5, "acc0", "c2", "p2")) == []


def test_two_containers_with_one_device_are_a_double_use() -> None:
    findings = _check(
        dp_pod(0, "p1"), dp_pod(0, "p2"), Open(1, "acc0", "c1", "p1"), Open(1.5, "acc0", "c2", "p2")
    )
    assert [f.what for f in findings] == [DOUBLE_USE]
    assert "default/p2 opened acc0 while default/p1 (since 1.000) had it" in str(findings[0])


def test_two_claims_with_one_device_are_a_double_use() -> None:
    lines: list[Line] = [claim(0, "k1", 0, "p1"), claim(0, "k2", 0, "p2")]
    assert found(*lines, Open(1, "acc0", "c1", "p1"), Open(1, "acc0", "c2", "p2")) == [DOUBLE_USE]


def test_pods_of_one_claim_may_share_its_device() -> None:
    lines: list[Line] = [claim(0, "k", 0, "p1", "p2"), dra_pod(0, "p1", "k"), dra_pod(0, "p2", "k")]
    assert found(*lines, Open(1, "acc0", "c1", "p1"), Open(1, "acc0", "c2", "p2")) == []


def test_a_claim_that_was_taken_away_shares_with_no_new_one() -> None:
    lines: list[Line] = [claim(0, "k1", 0, "p1"), Open(1, "acc0", "c1", "p1"), claim(1.1, "k1", 0, gone=True)]
    assert found(*lines, claim(1.2, "k2", 0, "p2"), Open(1.3, "acc0", "c2", "p2")) == [DOUBLE_USE]


def test_what_the_kernel_refuses_is_a_double_use() -> None:
    assert found(Open(1, "acc0", "c1", "p1"), Busy(1.5, "acc0", "c2", "p2")) == [DOUBLE_USE]


def test_what_the_kernel_refuses_for_the_sake_of_nobody_known_is_one_too() -> None:
    assert found(Busy(1.5, "acc0", "c2", "p2")) == [DOUBLE_USE]


def test_a_device_with_room_for_two_takes_two_and_no_third() -> None:
    begin = [device(0, capacity=2), *offered(0, 0)]
    opens = [Open(1, "acc0", f"c{n}", f"p{n}") for n in range(3)]
    assert found(*opens[:2], begin=begin) == []
    assert found(*opens, begin=begin) == [DOUBLE_USE]


# -- lost capacity


def test_a_free_device_that_no_slice_shows_is_lost_after_the_bound() -> None:
    assert found(*offered(1, 0), end(2.9)) == []
    assert found(*offered(1, 0), end(3.1)) == [LOST]


def test_a_device_that_the_node_does_not_count_is_lost_after_the_bound() -> None:
    assert found(*offered(1, 0, 1, allocatable=1), end(3.1)) == [LOST]


def test_a_device_in_use_is_not_lost() -> None:
    in_use: list[Line] = [dp_pod(0.5, "p1"), Open(0.5, "acc1", "c1", "p1")]
    assert found(*in_use, *offered(1, 0), end(9)) == []


def test_a_device_that_the_device_plugin_holds_is_to_be_counted() -> None:
    in_use: list[Line] = [dp_pod(0.5, "p1"), Open(0.5, "acc1", "c1", "p1")]
    assert found(*in_use, *offered(1, 0, allocatable=1), end(9)) == [LOST]


def test_a_device_that_a_claim_has_is_not_to_be_counted() -> None:
    in_use: list[Line] = [claim(0.5, "k", 1, "p1"), dra_pod(0.5, "p1", "k"), Open(0.5, "acc1", "c1", "p1")]
    assert found(*in_use, *offered(1, 0, allocatable=1), end(9)) == []


def test_an_unplugged_device_is_not_lost_until_it_is_back() -> None:
    gone: list[Line] = [Presence(0.9, "acc1", False), *offered(1, 0, allocatable=1)]
    assert found(*gone, end(9)) == []
    assert found(*gone, Presence(9, "acc1", True), end(11.5)) == [LOST, LOST]


def test_a_device_that_a_pod_may_just_have_been_given_is_not_lost() -> None:
    starting = dp_pod(0.5, "p1", phase="Pending")
    assert LOST not in found(starting, *offered(1, 0), end(9))


def test_bounds_are_counted_from_the_end_of_the_last_disturbance() -> None:
    away: list[Line] = [Fault(0.5, "f", "crash", True), *offered(1, 0), Fault(8, "f", "crash", False)]
    assert found(*away, end(9.9)) == []
    assert found(*away, end(10.1)) == [LOST]


def test_a_loss_is_told_once() -> None:
    assert found(*offered(1, 0), end(4), end(5), end(6)) == [LOST]


# -- stuck pods


def test_a_pod_that_could_run_and_does_not_is_stuck_after_the_bound() -> None:
    assert found(dp_pod(1, "p1", "Pending"), end(3.9)) == []
    assert found(dp_pod(1, "p1", "Pending"), end(4.1)) == [STUCK]


def test_an_unscheduled_pod_that_could_run_is_stuck() -> None:
    assert found(dp_pod(1, "p1", "Pending", node=""), end(4.1)) == [STUCK]


def test_a_pod_that_waits_for_what_others_use_is_not_stuck() -> None:
    used = [dp_pod(0, f"u{n}") for n in range(2)] + [Open(0.1, f"acc{n}", f"c{n}", f"u{n}") for n in range(2)]
    assert found(*used, dp_pod(1, "p1", "Pending"), end(9)) == []


def test_a_claim_that_lost_its_device_to_another_waits_until_that_is_free_and_no_longer() -> None:
    lost: list[Line] = [dp_pod(0, "u"), Open(0.1, "acc1", "c", "u"), claim(1, "k", 1, "p1")]
    waits: list[Line] = [*lost, dra_pod(1, "p1", "k", "Pending"), *offered(1, 0)]
    assert found(*waits, end(9)) == []
    free: list[Line] = [Close(9, "acc1", "c"), dp_pod(9, "u", "Succeeded")]
    assert found(*waits, *free, end(11.9)) == []
    assert found(*waits, *free, end(12.1)) == [STUCK]


def test_a_pod_whose_claim_could_be_allocated_is_stuck() -> None:
    assert found(claim(1, "k", None), dra_pod(1, "p1", "k", "Pending"), end(4.1)) == [STUCK]


def test_a_pod_without_its_claim_is_not_stuck() -> None:
    assert found(dra_pod(1, "p1", "k", "Pending"), end(9)) == []


def test_a_deleted_pod_has_its_grace_and_the_bound() -> None:
    deleted = dp_pod(1, "p1", deleting=2)
    assert found(deleted, end(6.9)) == []
    assert found(deleted, end(7.1)) == [STUCK]


def test_a_pod_whose_containers_have_ended_is_to_end() -> None:
    ended: list[Line] = [dp_pod(0, "p1"), Open(0.1, "acc0", "c", "p1"), Close(1, "acc0", "c")]
    assert STUCK not in found(*ended, end(4.9))
    assert STUCK in found(*ended, end(5.1))
    assert STUCK not in found(*ended, dp_pod(2, "p1", "Succeeded"), end(9))


# -- the journal


def test_a_journal_is_read_as_it_was_written() -> None:
    lines: list[Line] = [
        *BEGIN,
        Presence(1, "acc0", False),
        Open(1, "acc0", "c", "p"),
        Busy(2, "acc0", "d", "q"),
        Close(3, "acc0", "c"),
        dp_pod(4, "p", deleting=1),
        claim(5, "k", 0, "p"),
        Fault(6, "f", "crash", True),
    ]
    assert list(journal.read(io.StringIO("\n".join(map(journal.dump, lines))))) == lines


def test_a_pod_is_noted_from_its_object() -> None:
    limits = {"limits": {RESOURCE: "1", "cpu": "2"}}
    pod = {
        "metadata": {"uid": "u", "namespace": "d", "name": "p", "deletionTimestamp": "x"},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "a", "resources": limits}, {"name": "b", "resources": limits}],
            "initContainers": [{"name": "i", "resources": {"limits": {RESOURCE: "3"}}}],
            "resourceClaims": [
                {"name": "c", "resourceClaimName": "k"},
                {"name": "t", "resourceClaimTemplateName": "tt"},
            ],
        },
        "status": {"phase": "Running"},
    }
    expected = Pod(1, "u", "d", "p", "n", "Running", deleting=0, wants={RESOURCE: 3}, claims=("k",), unmade=1)
    assert journal.pod_line(1, pod) == expected


def test_a_tainted_device_is_not_offered() -> None:
    devices = [{"name": "a"}, {"name": "b", "taints": [{"key": "k", "effect": "NoExecute"}]}]
    piece = {
        "metadata": {"name": "s"},
        "spec": {"driver": DRIVER, "pool": {"name": POOL}, "devices": devices},
    }
    assert journal.slice_line(1, piece) == Slice(1, "s", DRIVER, POOL, ("a",))


def test_admin_access_takes_nothing() -> None:
    results = [{"driver": DRIVER, "pool": POOL, "device": n, "adminAccess": n == "b"} for n in "ab"]
    body = {
        "metadata": {"uid": "u", "namespace": "d", "name": "k"},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"count": 2}}]}},
        "status": {"allocation": {"devices": {"results": results}}, "reservedFor": [{"uid": "p"}]},
    }
    assert journal.claim_line(1, body) == Claim(1, "u", "d", "k", ((DRIVER, POOL, "a"),), ("p",), asks=2)
