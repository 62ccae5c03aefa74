from pathlib import Path

import pytest

from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import ParameterErrors
from bridge.devices.kinds.nx_gzip import (
    CAPABILITIES,
    CREDITS,
    DEFAULT_CREDITS,
    NODE,
    NxConfig,
    used_credits,
)
from bridge.devices.model import ContainerEdits, Device
from tests.unit.trees import Tree, discover

KIND = "nx-gzip"
NX = KINDS[KIND]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def power(tree: Tree) -> Tree:
    """A partition with the accelerator."""
    tree.file(NODE)
    for name, value in (
        ("min_compress_len", 4096),
        ("min_decompress_len", 512),
        ("req_max_processed_len", 1048576),
    ):
        tree.file(f"{CAPABILITIES}/{name}", f"{value}\n")
    tree.file(f"{CREDITS}/nr_total_credits", "40\n")
    tree.file(f"{CREDITS}/nr_used_credits", "3\n")
    return tree


def device(tree: Tree, **options: object) -> Device:
    (found,) = discover(KIND, options, tree.roots).devices
    return found


def config(**sharing: object) -> dict[str, object]:
    return {"apiVersion": "device.power.ibm.com/v1alpha1", "kind": "NxConfig", "sharing": sharing}


def env(*raw: dict[str, object]) -> dict[str, str]:
    nx = Device("nx", "nx-gzip", KIND, ContainerEdits())
    return dict(NX.claim_edits(nx, [NX.parameters(one) for one in raw]).env)


def refused(raw: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ParameterErrors) as caught:
        NX.parameters(raw)
    return {error.path: error.message for error in caught.value.errors}


def test_a_machine_without_the_accelerator_has_no_device_and_no_problem(tree: Tree) -> None:
    found = discover(KIND, {}, tree.roots)
    assert (found.devices, found.problems) == ((), ())


def test_the_accelerator_is_shared_by_its_credits(power: Tree) -> None:
    nx = device(power)
    assert (nx.name, nx.shares, nx.share_unit, nx.parts) == ("nx-gzip", 40, "credits", {NODE: 1})
    assert nx.health.ok
    assert nx.attributes == {
        "path": NODE,
        "minCompressLen": 4096,
        "minDecompressLen": 512,
        "reqMaxProcessedLen": 1048576,
    }
    assert discover(KIND, {}, power.roots).parts == {NODE: 40}


def test_credits_in_use_are_told_and_are_no_part_of_the_inventory(power: Tree) -> None:
    before = device(power)
    assert used_credits(power.roots) == 3
    power.file(f"{CREDITS}/nr_used_credits", "17\n")
    assert used_credits(power.roots) == 17
    assert device(power) == before


def test_credits_follow_the_hypervisor(power: Tree) -> None:
    power.file(f"{CREDITS}/nr_total_credits", "60\n")
    assert device(power).shares == 60


def test_without_credits_in_sysfs_auto_is_the_documented_default(power: Tree) -> None:
    power.at(f"{CREDITS}/nr_total_credits").unlink()
    assert device(power).shares == DEFAULT_CREDITS


def test_a_number_of_credits_is_taken_but_never_more_than_there_are(power: Tree) -> None:
    assert device(power, credits=8).shares == 8
    found = discover(KIND, {"credits": 100}, power.roots)
    assert found.devices[0].shares == 40
    assert "more than the 40" in found.problems[0].message


def test_no_credits_at_all_is_unhealthy(power: Tree) -> None:
    power.file(f"{CREDITS}/nr_total_credits", "0\n")
    assert not device(power).health.ok
    assert "credits" in device(power).health.reason


def test_without_the_node_it_is_unhealthy_with_the_reason(power: Tree) -> None:
    power.at(NODE).unlink()
    found = discover(KIND, {}, power.roots)
    assert not found.devices[0].health.ok
    assert NODE in found.devices[0].health.reason
    assert found.problems[0].message == found.devices[0].health.reason


def test_without_capabilities_it_is_unhealthy_unless_none_are_required(tree: Tree) -> None:
    tree.file(NODE)
    assert "requireCapabilities" in device(tree).health.reason
    assert device(tree, requireCapabilities=False).health.ok


def test_the_container_gets_the_node_and_the_sign_that_the_existing_driver_gives(power: Tree) -> None:
    edits = device(power, permissions="r", owner={"gid": 7}).edits
    (node,) = edits.nodes
    assert (node.container_path, node.permissions) == (NODE, "r")
    assert node.owner is not None
    assert node.owner.gid == 7
    assert edits.env == (("NX_DEVICE_CLAIM", "added"),)


def test_without_a_configuration_the_static_edits_are_enough() -> None:
    assert env() == {}


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        ({}, {"NX_DEVICE_SHARING_STRATEGY": "TimeSlicing", "NX_DEVICE_TIMESLICE_INTERVAL": "Default"}),
        (
            {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}},
            {"NX_DEVICE_SHARING_STRATEGY": "TimeSlicing", "NX_DEVICE_TIMESLICE_INTERVAL": "Long"},
        ),
        (
            {"strategy": "SpacePartitioning", "spacePartitioningConfig": {"partitionCount": 4}},
            {"NX_DEVICE_SHARING_STRATEGY": "SpacePartitioning", "NX_DEVICE_PARTITION_COUNT": "4"},
        ),
        (
            {"strategy": "SpacePartitioning"},
            {"NX_DEVICE_SHARING_STRATEGY": "SpacePartitioning", "NX_DEVICE_PARTITION_COUNT": "1"},
        ),
    ],
)
def test_a_configuration_reaches_the_container(sharing: dict[str, object], expected: dict[str, str]) -> None:
    assert env(config(**sharing)) == {"NX_DEVICE": "nx-gzip", **expected}


def test_the_claim_overrides_the_class() -> None:
    of_class = config(strategy="SpacePartitioning")
    of_claim = config(strategy="TimeSlicing", timeSlicingConfig={"interval": "Short"})
    assert env(of_class, of_claim)["NX_DEVICE_TIMESLICE_INTERVAL"] == "Short"
    assert "NX_DEVICE_PARTITION_COUNT" not in env(of_class, of_claim)


def test_a_configuration_without_sharing_has_the_defaults() -> None:
    raw: dict[str, object] = {"apiVersion": "device.power.ibm.com/v1alpha1", "kind": "NxConfig"}
    parameters = NX.parameters(raw)
    assert isinstance(parameters, NxConfig)
    assert parameters.sharing.strategy == "TimeSlicing"


@pytest.mark.parametrize(
    ("raw", "path", "said"),
    [
        ({"apiVersion": "v1", "kind": "NxConfig"}, "apiVersion", "device.power.ibm.com/v1alpha1"),
        ({"apiVersion": "device.power.ibm.com/v1alpha1"}, "kind", "required"),
        (config(strategy="Magic"), "sharing.strategy", "SpacePartitioning"),
        (config(stratgy="TimeSlicing"), "sharing.stratgy", "did you mean strategy?"),
        (config(timeSlicingConfig={"interval": "long"}), "sharing.timeSlicingConfig.interval", "'Long'"),
        (
            config(strategy="SpacePartitioning", spacePartitioningConfig={"partitionCount": -1}),
            "sharing.spacePartitioningConfig.partitionCount",
            "greater",
        ),
        (
            config(strategy="SpacePartitioning", spacePartitioningConfig={"partitionCount": "2"}),
            "sharing.spacePartitioningConfig.partitionCount",
            "integer",
        ),
        (config(spacePartitioningConfig={}), "sharing", "belongs to strategy SpacePartitioning"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_field(
    raw: dict[str, object], path: str, said: str
) -> None:
    found = refused(raw)
    assert list(found) == [path]
    assert said in found[path]


def test_devices_without_parameters_refuse_them() -> None:
    with pytest.raises(ParameterErrors, match="take no parameters"):
        KINDS["device-node"].parameters({"a": 1})
