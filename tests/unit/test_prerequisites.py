"""What `bridge doctor` makes of the runtime's CDI and of SELinux labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli.prerequisites import devices, labels, reads_cdi
from bridge.config import parse
from bridge.platform.roots import Roots

OURS = (Path("/etc/cdi"), Path("/var/run/cdi"))


def containerd(**config: object) -> dict[str, str]:
    return {"config": json.dumps({"cdiSpecDirs": ["/etc/cdi", "/run/cdi"], **config}), "golang": "go1.24"}


def test_containerd_that_reads_our_folders() -> None:
    found = reads_cdi("containerd v2.1.4", containerd(enableCDI=True), OURS)
    assert (found.verdict, found.found) == ("ok", "containerd v2.1.4 reads /etc/cdi, /run/cdi")
    assert reads_cdi("containerd", containerd(), OURS).ok, "newer ones have no switch any more"


def test_containerd_with_cdi_switched_off_or_looking_elsewhere() -> None:
    off = reads_cdi("containerd v1.7.2", containerd(enableCDI=False), OURS)
    assert not off.ok and "enable_cdi = true" in off.mend
    elsewhere = reads_cdi("containerd v2.1.4", containerd(cdiSpecDirs=["/etc/cdi", "/opt/cdi"]), OURS)
    assert not elsewhere.ok and "and not /var/run/cdi, where the daemon writes" in elsewhere.found


def test_crio_tells_nothing_and_its_files_are_read(tmp_path: Path) -> None:
    assert reads_cdi("cri-o 1.34.0", {}, OURS, tmp_path).verdict == "ok", (
        "it reads the usual ones unless told"
    )
    (tmp_path / "crio.conf.d").mkdir()
    (tmp_path / "crio.conf.d" / "10-cdi.conf").write_text('[crio.runtime]\ncdi_spec_dirs = ["/opt/cdi"]\n')
    found = reads_cdi("cri-o 1.34.0", {}, OURS, tmp_path)
    assert not found.ok and "reads /opt/cdi, and not /etc/cdi, /var/run/cdi" in found.found
    (tmp_path / "crio.conf.d" / "20.conf").write_text("[[[")
    assert reads_cdi("cri-o 1.34.0", {}, OURS, tmp_path).verdict == "note"


@pytest.mark.parametrize("told", [{}, {"config": "no json"}, {"config": "[]"}])
def test_a_runtime_that_tells_nothing_is_noted(told: dict[str, str]) -> None:
    found = reads_cdi("docker 28", told, OURS)
    assert found.verdict == "note" and "/etc/cdi, /var/run/cdi" in found.mend


def test_selinux_labels() -> None:
    node = {"/dev/crypto/acc0": "device_t"}
    noted = labels(node, enforcing=True, on={})
    assert (
        noted.verdict == "note"
        and "type device_t" in noted.found
        and "container_use_devices on" in noted.mend
    )
    assert labels(node, enforcing=None, on={}).found.startswith("may enforce")
    for fine in (
        labels(node, enforcing=False, on={}),
        labels(node, enforcing=True, on={"container_use_devices": True}),
        labels({"/dev/x": "container_file_t"}, enforcing=True, on={}),
        labels({"/dev/dri/x": "dri_device_t"}, enforcing=True, on={"container_use_dri_devices": True}),
        labels({}, enforcing=None, on={}),
    ):
        assert fine.verdict == "ok", fine


def test_each_group_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "dev" / "crypto").mkdir(parents=True)
    (tmp_path / "sys").mkdir()
    (tmp_path / "dev" / "crypto" / "acc0").touch()
    groups = [
        {"name": name, "kind": "device-node", "options": {"include": [f"/dev/crypto/{name}*"]}}
        for name in ("acc", "nx")
    ]
    config = parse(
        json.dumps({"apiVersion": "device-bridge.io/v1alpha1", "kind": "BridgeConfig", "groups": groups})
    )
    found = {one.check: one for one in devices(config, Roots.at(tmp_path), tmp_path / "selinux")}
    assert (found["group acc"].found, found["group acc"].verdict) == ("1 device(s)", "ok")
    assert (found["group nx"].found, found["group nx"].verdict) == ("no device", "note")
    assert found["SELinux"].ok
