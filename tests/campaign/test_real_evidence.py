"""The words of a real node's witnesses: what the audit log, lists and the probes' notes are taken to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.campaign.journal import Busy, Claim, Close, Line, Open, Pod, Slice
from tests.campaign.real_evidence import Objects, Snapshot, uses
from tests.e2e.journal import Note

Object = dict[str, Any]
DEVICE = "/dev/crypto/acc0"


def pod(version: int, phase: str = "Pending", node: str = "", deleting: int | None = None) -> Object:
    meta: Object = {"uid": "p", "name": "a", "namespace": "n", "resourceVersion": f"{version}"}
    if deleting is not None:
        meta |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": deleting}
    return {"metadata": meta, "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}}


def claim(version: int, **meta: Any) -> Object:
    body = {"uid": "c", "name": "claim", "namespace": "n", "resourceVersion": f"{version}", **meta}
    return {"metadata": body, "spec": {}, "status": {}}


def piece(name: str) -> Object:
    spec = {"driver": "d", "pool": {"name": "node0"}, "devices": [{"name": "acc0"}]}
    return {"metadata": {"uid": name, "name": name, "resourceVersion": "1"}, "spec": spec}


def event(second: int, verb: str, resource: str, answer: Object, **more: Any) -> Object:
    about = {"resource": resource, "name": "a", "namespace": "n"} | more.pop("about", {})
    stamp = f"1970-01-01T00:00:{second:02}.000000Z"
    status = {"code": more.pop("code", 200)}
    return {
        "verb": verb,
        "objectRef": about,
        "responseStatus": status,
        "responseObject": answer,
        "stageTimestamp": stamp,
        **more,
    }


def told(*audit: Object, snapshots: Iterable[Snapshot] = ()) -> list[Line]:
    return list(Objects(100.0).lines(audit, snapshots))


def test_a_pod_is_followed_from_its_making_to_its_removal() -> None:
    binding = {"target": {"name": "node0"}}
    lines = told(
        event(1, "create", "pods", pod(1)),
        event(
            2, "create", "pods", {"kind": "Status"}, about={"subresource": "binding"}, requestObject=binding
        ),
        event(3, "patch", "pods", pod(3, "Running", "node0"), about={"subresource": "status"}),
        event(4, "delete", "pods", pod(4, "Running", "node0", deleting=20)),
        event(5, "delete", "pods", pod(5, "Succeeded", "node0", deleting=0)),
    )
    pods = [line for line in lines if isinstance(line, Pod)]
    assert [(p.t, p.node, p.phase, p.deleting, p.gone) for p in pods] == [
        (101.0, "", "Pending", None, False),
        (102.0, "node0", "Pending", None, False),
        (103.0, "node0", "Running", None, False),
        (104.0, "node0", "Running", 20, False),
        (105.0, "node0", "Succeeded", 0, True),
    ]


def test_what_was_refused_or_is_older_than_what_is_known_says_nothing() -> None:
    lines = told(
        event(1, "create", "pods", pod(5, "Running")),
        event(2, "patch", "pods", pod(4, "Pending")),
        event(3, "patch", "pods", pod(6, "Failed"), code=409),
    )
    assert [line.phase for line in lines if isinstance(line, Pod)] == ["Running"]


def test_a_pod_that_was_deleted_by_force_is_gone_at_once() -> None:
    (_, last) = told(event(1, "create", "pods", pod(1)), event(2, "delete", "pods", pod(2, deleting=0)))
    assert isinstance(last, Pod)
    assert last.gone


def test_a_claim_is_gone_when_its_last_finalizer_is() -> None:
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    lines = told(
        event(1, "create", "resourceclaims", claim(1, finalizers=["f"])),
        event(2, "delete", "resourceclaims", claim(2, finalizers=["f"], **deleted)),
        event(3, "update", "resourceclaims", claim(3, **deleted)),
    )
    assert [line.gone for line in lines if isinstance(line, Claim)] == [False, False, True]


def test_a_kubelet_that_wipes_its_nodes_slices_removes_each_of_them() -> None:
    lines = told(
        event(1, "create", "resourceslices", piece("s1")),
        event(2, "create", "resourceslices", piece("s2")),
        event(3, "deletecollection", "resourceslices", {"items": [piece("s1"), piece("s2")]}),
    )
    slices = [line for line in lines if isinstance(line, Slice)]
    assert [(s.name, s.gone) for s in slices] == [
        ("s1", False),
        ("s2", False),
        ("s1", True),
        ("s2", True),
    ]


def test_a_list_fills_the_hole_that_a_killed_api_server_left_in_its_log() -> None:
    lines = told(
        event(1, "create", "pods", pod(1)),
        event(1, "create", "resourceclaims", claim(1)),
        snapshots=[Snapshot(109.0, "Pod", [pod(7, "Running")]), Snapshot(109.0, "ResourceClaim", [])],
    )
    assert [line.phase for line in lines if isinstance(line, Pod)] == ["Pending", "Running"]
    assert [(line.t, line.gone) for line in lines if isinstance(line, Claim)] == [
        (101.0, False),
        (109.0, True),
    ]


def note(second: float, word: str, holder: str) -> Note:
    return Note(int(second * 1e9), 0, word, holder, DEVICE, "0")


def test_each_run_of_a_container_is_one_of_its_own() -> None:
    found = uses(
        [note(1, "open", "p"), note(2, "close", "p"), note(3, "open", "p"), note(4, "close", "p")], []
    )
    first, second = (line for line in found.lines if isinstance(line, Open))
    assert first.container != second.container
    assert [(line.t, line.container) for line in found.lines if isinstance(line, Close)] == [
        (2.0, first.container),
        (4.0, second.container),
    ]
    assert found.unclosed == 0


def test_a_busy_device_is_told_with_who_was_given_it() -> None:
    found = uses([note(1, "open", "p"), note(2, "busy", "q")], [])
    assert [(line.pod, line.device) for line in found.lines if isinstance(line, Busy)] == [("q", DEVICE)]


def test_a_killed_container_had_its_device_until_its_pod_ended_or_another_opened_it() -> None:
    ended = Pod(5.0, "p", "n", "a", phase="Succeeded")
    for pods, later, until in (
        ([ended], [], 5.0),
        ([], [note(7, "open", "q"), note(8, "close", "q")], 7.0),
        ([ended], [note(7, "open", "q"), note(8, "close", "q")], 5.0),
    ):
        found = uses([note(1, "open", "p"), *later], pods)
        assert min(line.t for line in found.lines if isinstance(line, Close)) == until
        assert found.unclosed == 1


def test_a_killed_container_that_nobody_has_seen_end_has_its_device_still() -> None:
    removed = Pod(5.0, "p", "n", "a", phase="Running", gone=True)
    assert not [line for line in uses([note(1, "open", "p")], [removed]).lines if isinstance(line, Close)]
