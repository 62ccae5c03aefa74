"""The kubelet's device checkpoint: read in both formats, and never taken for less than it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.platform import checkpoint
from bridge.platform.checkpoint import Checkpoint, Damaged, Entry, Missing


def entry(ids: object, **other: object) -> dict[str, object]:
    return {
        "PodUID": "u1",
        "ContainerName": "main",
        "ResourceName": "example.com/acc",
        "DeviceIDs": ids,
        "AllocResp": "Cg==",
    } | other


def read(folder: Path, entries: object, registered: object, **other: object) -> object:
    path = folder / checkpoint.NAME
    data = {"PodDeviceEntries": entries, "RegisteredDevices": registered}
    path.write_text(json.dumps({"Data": data, "Checksum": 12345} | other))
    return checkpoint.read(path)


@pytest.mark.parametrize(
    "ids",
    [{"-1": ["a"], "0": ["b", "c"]}, ["a", "b", "c"]],
    ids=["by NUMA node", "flat"],
)
def test_both_formats_give_the_same_entries(tmp_path: Path, ids: object) -> None:
    found = read(tmp_path, [entry(ids)], {"example.com/acc": ["a", "b", "c", "d"]}, BootID="x")
    assert found == Checkpoint(
        (Entry("u1", "main", "example.com/acc", frozenset("abc")),),
        {"example.com/acc": frozenset("abcd")},
    )


def test_what_go_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, None, {}) == Checkpoint((), {})
    assert read(tmp_path, [], None) == Checkpoint((), {})
    assert read(tmp_path, [], {"r": None}) == Checkpoint((), {"r": frozenset()})


def test_no_file_is_missing(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path / "no") == Missing(tmp_path / "no")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"Data": {}, "Checksum": 1}', b"[" * 200_000],
)
def test_a_broken_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / checkpoint.NAME
    path.write_bytes(content)
    found = checkpoint.read(path)
    assert isinstance(found, Damaged)
    assert str(path) in found.reason


def test_a_file_that_cannot_be_read_is_damaged(tmp_path: Path) -> None:
    assert isinstance(checkpoint.read(tmp_path), Damaged)


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        (entry(["a"], PodUID=""), "PodDeviceEntries[1].PodUID"),
        (entry(["a"], ResourceName=3), "PodDeviceEntries[1].ResourceName"),
        (entry("a"), "PodDeviceEntries[1].DeviceIDs"),
        (entry({"0": "a"}), "PodDeviceEntries[1].DeviceIDs[0]"),
        (entry([1]), "PodDeviceEntries[1].DeviceIDs"),
        ("text", "PodDeviceEntries[1]"),
    ],
)
def test_one_entry_that_is_not_understood_spoils_the_file(tmp_path: Path, broken: object, where: str) -> None:
    found = read(tmp_path, [entry(["a"]), broken], {})
    assert isinstance(found, Damaged)
    assert where in found.reason


def test_a_checksum_that_is_no_number_is_damage(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path, [], {}, Checksum="1"), Damaged)
