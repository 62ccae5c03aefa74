import json
import re
from pathlib import Path
from typing import Any

import pytest

from bridge.devices.model import ContainerEdits, DeviceNode, Mount, Owner
from bridge.platform.cdi import CdiError, CdiFiles, qualified, spec

UID = "7d2a0a1e-5b7e-4d0c-9a1e-2f6f3c1f0001"

NODE = ContainerEdits((DeviceNode("/dev/crypto/acc0", "/dev/acc", "rw", "c", 4, 20),))
ENV = ContainerEdits(env=(("A", "1"), ("B", "x=y")))


@pytest.fixture
def files(tmp_path: Path) -> CdiFiles:
    return CdiFiles(tmp_path / "etc", tmp_path / "run")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def only_device(document: dict[str, object]) -> dict[str, Any]:
    devices = document["devices"]
    assert isinstance(devices, list)
    (device,) = devices
    assert isinstance(device, dict)
    return device


def assert_valid(document: dict[str, object]) -> None:
    """The rules that the CDI library enforces when it reads a file."""
    assert set(document) == {"cdiVersion", "kind", "devices"}
    assert document["cdiVersion"] in {"0.3.0", "0.5.0"}
    vendor, _, cdi_class = str(document["kind"]).partition("/")
    assert re.fullmatch(r"[A-Za-z][-_.A-Za-z0-9]*[A-Za-z0-9]", vendor)
    assert re.fullmatch(r"[A-Za-z]([-_A-Za-z0-9]*[A-Za-z0-9])?", cdi_class)
    devices = document["devices"]
    assert isinstance(devices, list)
    assert devices
    assert len({device["name"] for device in devices}) == len(devices)
    for device in devices:
        assert re.fullmatch(r"[A-Za-z0-9]([-_.:A-Za-z0-9]*[A-Za-z0-9])?", device["name"])
        assert device["containerEdits"]
        for node in device["containerEdits"].get("deviceNodes", []):
            assert set(node) <= {"path", "hostPath", "permissions", "uid", "gid", "fileMode"}
            assert set(node["permissions"]) <= set("rwm")
            assert document["cdiVersion"] == "0.5.0"
        for variable in device["containerEdits"].get("env", []):
            assert "=" in variable


def test_a_node_is_written_without_numbers_that_a_reboot_would_change() -> None:
    document = spec("acc", {"acc0": NODE})
    assert_valid(document)
    assert document == {
        "cdiVersion": "0.5.0",
        "kind": "device-bridge.io/acc",
        "devices": [
            {
                "name": "acc0",
                "containerEdits": {
                    "deviceNodes": [{"path": "/dev/acc", "hostPath": "/dev/crypto/acc0", "permissions": "rw"}]
                },
            }
        ],
    }


def test_owner_environment_and_mounts_are_written() -> None:
    edits = ContainerEdits(
        (DeviceNode("/dev/a", "/dev/a", "r", owner=Owner(uid=1000, gid=0, mode=0o660)),),
        (("A", "1"),),
        (Mount("/opt/x", "/opt/x"), Mount("/var/y", "/y", read_only=False)),
    )
    document = spec("acc", {"a": edits})
    assert_valid(document)
    device = only_device(document)
    written = device["containerEdits"]
    assert written["deviceNodes"][0] | {"uid": 1000, "gid": 0, "fileMode": 0o660} == written["deviceNodes"][0]
    assert written["env"] == ["A=1"]
    assert [mount["options"][-1] for mount in written["mounts"]] == ["ro", "rw"]


def test_an_owner_that_leaves_something_open_leaves_it_to_the_runtime() -> None:
    edits = ContainerEdits((DeviceNode("/dev/a", "/dev/a", owner=Owner(gid=44)),))
    device = only_device(spec("acc", {"a": edits}))
    node = device["containerEdits"]["deviceNodes"][0]
    assert node["gid"] == 44
    assert not {"uid", "fileMode"} & set(node)


def test_the_version_is_the_lowest_that_has_the_fields() -> None:
    assert spec("acc", {"a": ENV})["cdiVersion"] == "0.3.0"
    assert spec("acc", {"0a": ENV})["cdiVersion"] == "0.5.0"
    assert spec("acc", {"a": ENV, "b": NODE})["cdiVersion"] == "0.5.0"


@pytest.mark.parametrize(
    ("group", "device", "edits"),
    [("0acc", "a", ENV), ("acc", "a/b", ENV), ("acc", "-a", ENV), ("acc", "a", ContainerEdits())],
)
def test_what_a_runtime_would_refuse_is_refused(group: str, device: str, edits: ContainerEdits) -> None:
    with pytest.raises(ValueError, match="CDI"):
        spec(group, {device: edits})


def test_a_group_file_is_written_once_and_only_again_when_it_differs(files: CdiFiles, tmp_path: Path) -> None:
    path = tmp_path / "etc" / "device-bridge.io-acc.json"
    assert files.write_group("acc", {"acc0": NODE})
    before = path.stat()
    assert not files.write_group("acc", {"acc0": NODE})
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mode & 0o777 == 0o644
    assert files.write_group("acc", {"acc0": NODE, "acc1": NODE})
    assert_valid(json.loads(path.read_text()))
    assert names(tmp_path / "etc") == {"device-bridge.io-acc.json"}
    assert qualified("acc", "acc1") == "device-bridge.io/acc=acc1"


def test_a_group_without_devices_has_no_file(files: CdiFiles, tmp_path: Path) -> None:
    assert not files.write_group("acc", {})
    files.write_group("acc", {"acc0": NODE})
    assert files.write_group("acc", {})
    assert names(tmp_path / "etc") == set()


def test_a_claim_file_holds_an_entry_for_each_device_and_goes_with_the_claim(
    files: CdiFiles, tmp_path: Path
) -> None:
    ids = files.write_claim("nx", UID, {"nx-gzip": ENV})
    assert ids == {"nx-gzip": f"device-bridge.io/nx=claim-{UID}-nx-gzip"}
    path = tmp_path / "run" / f"device-bridge.io-nx-claim-{UID}.json"
    document = json.loads(path.read_text())
    assert_valid(document)
    assert document["devices"][0]["containerEdits"]["env"] == ["A=1", "B=x=y"]
    assert files.claims() == [("nx", UID)]
    assert files.remove_claim("nx", UID)
    assert not files.remove_claim("nx", UID)
    assert files.claims() == []


def test_a_uid_cannot_lead_out_of_the_directory(files: CdiFiles) -> None:
    with pytest.raises(ValueError, match="not the UID"):
        files.write_claim("nx", "../../etc/x", {"nx-gzip": ENV})


def test_the_sweep_keeps_live_claims_and_foreign_files(files: CdiFiles, tmp_path: Path) -> None:
    files.write_claim("nx", "live", {"nx-gzip": ENV})
    files.write_claim("nx", "dead", {"nx-gzip": ENV})
    run = tmp_path / "run"
    (run / "vendor.com-gpu-claim-dead.json").write_text("{}")
    (run / ".writing-77-device-bridge.io-nx-claim-x.json.tmp").write_text("{")
    assert files.sweep_claims({"live"}) == [("nx", "dead")]
    assert names(run) == {"device-bridge.io-nx-claim-live.json", "vendor.com-gpu-claim-dead.json"}


def test_the_sweep_of_groups_keeps_configured_ones_and_claims_in_the_same_directory(tmp_path: Path) -> None:
    files = CdiFiles(tmp_path, tmp_path)
    files.write_group("acc", {"acc0": NODE})
    files.write_group("old", {"acc0": NODE})
    files.write_group("acc-claim-old", {"acc0": NODE})
    files.write_claim("acc", UID, {"acc0": ENV})
    assert files.claims() == [("acc", UID)]
    assert sorted(files.sweep_groups({"acc"})) == ["acc-claim-old", "old"]
    assert files.claims() == [("acc", UID)]


def test_sweeps_of_directories_that_do_not_exist_find_nothing(files: CdiFiles) -> None:
    assert files.sweep_claims(set()) == []
    assert files.sweep_groups(set()) == []


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(CdiError, match=r"device-bridge\.io-acc\.json could not be written"):
        CdiFiles(tmp_path / "etc", tmp_path).write_group("acc", {"acc0": NODE})
