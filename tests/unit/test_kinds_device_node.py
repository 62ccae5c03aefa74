import os
import stat
from pathlib import Path

import pytest

from bridge.devices.kinds.device_node import NUMA_ATTRIBUTE
from bridge.devices.kinds.node_options import DeviceNodeOptions
from bridge.devices.model import Owner
from bridge.devices.schema import Invalid, decode
from tests.unit.trees import Tree, discover

KIND = "device-node"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def paths(tree: Tree, **options: object) -> list[object]:
    return [device.attributes["path"] for device in discover(KIND, options, tree.roots).devices]


def wrong(**options: object) -> str:
    with pytest.raises(Invalid) as caught:
        decode(DeviceNodeOptions, options)
    return str(caught.value)


def test_each_matching_node_is_a_device_in_natural_order(tree: Tree) -> None:
    for i in (10, 2, 0):
        tree.file(f"/dev/crypto/acc{i}")
    tree.file("/dev/crypto/other")
    found = discover(KIND, {"include": ["/dev/crypto/acc*"]}, tree.roots)
    assert [device.name for device in found.devices] == ["crypto-acc0", "crypto-acc2", "crypto-acc10"]
    assert found.parts == {f"/dev/crypto/acc{i}": 1 for i in (0, 2, 10)}
    assert found.problems == ()


def test_a_node_lies_in_the_generated_tree_and_appears_at_its_own_path(tree: Tree) -> None:
    tree.file("/dev/acc0")
    (node,) = discover(KIND, {"include": ["/dev/acc0"]}, tree.roots).devices[0].edits.nodes
    assert (node.host_path, node.container_path) == (str(tree.root / "dev/acc0"), "/dev/acc0")
    assert node.permissions == "rw"


def test_in_a_mounted_host_tree_a_node_lies_where_the_host_has_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, mounted=True)
    tree.node("/dev/acc0", 20)
    (node,) = discover(KIND, {"include": ["/dev/acc*"]}, tree.roots).devices[0].edits.nodes
    assert (node.host_path, node.type, node.major, node.minor) == ("/dev/acc0", "c", 4, 20)


def test_wildcards_stop_at_slashes_and_hidden_names(tree: Tree) -> None:
    for path in ("/dev/a/x0", "/dev/b/x1", "/dev/x2", "/dev/a/.x3", "/dev/a/deep/x4"):
        tree.file(path)
    assert paths(tree, include=["/dev/*/x*"]) == ["/dev/a/x0", "/dev/b/x1"]
    assert paths(tree, include=["/dev/[ab]/x[0-9]"]) == ["/dev/a/x0", "/dev/b/x1"]


def test_excluded_nodes_stay_out_whatever_include_says(tree: Tree) -> None:
    for i in range(4):
        tree.file(f"/dev/dm{i}")
    assert paths(tree, include=["/dev/dm*", "/dev/dm3"], exclude=["/dev/dm3"]) == [
        "/dev/dm0",
        "/dev/dm1",
        "/dev/dm2",
    ]


def test_an_excluded_node_is_not_reached_through_a_link(tree: Tree) -> None:
    tree.file("/dev/dm3")
    tree.link("/dev/mapper/root", "../dm3")
    tree.link("/dev/by-id/root", "/dev/mapper/root")
    assert paths(tree, include=["/dev/by-id/*"], exclude=["/dev/dm3"]) == []


def test_excluding_a_link_excludes_what_it_leads_to(tree: Tree) -> None:
    tree.file("/dev/dm3")
    tree.file("/dev/dm4")
    tree.link("/dev/mapper/root", "../dm3")
    assert paths(tree, include=["/dev/dm*"], exclude=["/dev/mapper/*"]) == ["/dev/dm4"]


def test_an_excluded_device_is_not_reached_through_a_second_node_with_its_numbers(tree: Tree) -> None:
    tree.node("/dev/a", 20)
    tree.node("/dev/b", 20)
    tree.node("/dev/c", 21)
    assert paths(tree, include=["/dev/?"], exclude=["/dev/a"]) == ["/dev/c"]


def test_exclude_reaches_devices_that_are_written_out_too(tree: Tree) -> None:
    tree.file("/dev/a")
    found = discover(
        KIND, {"devices": [{"name": "a", "nodes": [{"path": "/dev/a"}]}], "exclude": ["/dev/*"]}, tree.roots
    )
    assert found.devices == ()
    assert "excluded" in found.problems[0].message


def test_links_are_followed_to_one_device(tree: Tree) -> None:
    tree.file("/dev/acc0")
    tree.link("/dev/by-id/one", "../acc0")
    tree.link("/dev/by-id/two", str(tree.root / "dev/acc0"))
    found = discover(KIND, {"include": ["/dev/by-id/*", "/dev/acc0"]}, tree.roots)
    assert [device.name for device in found.devices] == ["acc0"]
    assert found.parts == {"/dev/acc0": 1}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere", "does not exist"),
        ("/proc/self/mem", "leads out of /dev"),
        ("../../etc/passwd", "leads out of /dev"),
        ("loop", "too many"),
    ],
)
def test_a_link_that_leads_nowhere_usable_is_a_problem(tree: Tree, target: str, said: str) -> None:
    tree.link("/dev/loop", target)
    found = discover(KIND, {"include": ["/dev/loop"]}, tree.roots)
    assert found.devices == ()
    assert said in found.problems[0].message


def test_directories_and_fifos_are_problems_where_they_are_named(tree: Tree) -> None:
    tree.at("/dev/adir").mkdir()
    os.mkfifo(tree.at("/dev/afifo"))
    by_wildcard = discover(KIND, {"include": ["/dev/a*"]}, tree.roots)
    assert (by_wildcard.devices, by_wildcard.problems) == ((), ()), "it asks for the nodes among them"
    found = discover(KIND, {"include": ["/dev/adir", "/dev/afifo", "/dev/a*"]}, tree.roots)
    assert found.devices == ()
    assert [problem.message for problem in found.problems] == [
        "/dev/adir is a directory, not a device node; it is left out",
        "/dev/afifo is a FIFO, not a device node; it is left out",
    ]


def test_a_regular_file_in_the_real_dev_is_no_device(tmp_path: Path) -> None:
    tree = Tree(tmp_path, mounted=True)
    tree.file("/dev/acc0")
    found = discover(KIND, {"include": ["/dev/acc0"]}, tree.roots)
    assert found.devices == ()
    assert "regular file" in found.problems[0].message
    assert discover(KIND, {"include": ["/dev/acc*"]}, tree.roots).devices == ()


def test_a_pattern_that_matches_nothing_is_no_problem(tree: Tree) -> None:
    found = discover(KIND, {"include": ["/dev/crypto/acc*", "/dev/none"]}, tree.roots)
    assert (found.devices, found.problems) == ((), ())


def test_a_real_node_tells_its_type_numbers_and_numa_node(tree: Tree) -> None:
    tree.node("/dev/acc0", 20)
    tree.node("/dev/blk0", 0, major=7, kind=stat.S_IFBLK)
    tree.file("/sys/dev/char/4:20/device/numa_node", "1\n")
    tree.file("/sys/dev/block/7:0/device/numa_node", "-1\n")
    acc, blk = discover(KIND, {"include": ["/dev/*0"]}, tree.roots).devices
    assert acc.attributes == {"path": "/dev/acc0", "type": "c", "major": 4, "minor": 20, NUMA_ATTRIBUTE: 1}
    assert acc.numa_node == 1
    assert blk.attributes == {"path": "/dev/blk0", "type": "b", "major": 7, "minor": 0}
    assert blk.numa_node is None


def test_a_path_too_long_for_an_attribute_is_not_one(tree: Tree) -> None:
    tree.file(f"/dev/{'x' * 80}")
    (device,) = discover(KIND, {"include": ["/dev/x*"]}, tree.roots).devices
    assert "path" not in device.attributes


def test_container_paths_are_filled_in(tree: Tree) -> None:
    tree.file("/dev/crypto/acc0")
    (node,) = (
        discover(KIND, {"include": ["/dev/crypto/*"], "containerPath": "/dev/{name}/{basename}"}, tree.roots)
        .devices[0]
        .edits.nodes
    )
    assert node.container_path == "/dev/crypto-acc0/acc0"


def test_one_plain_container_path_for_several_devices_is_told(tree: Tree) -> None:
    tree.file("/dev/acc0")
    options: dict[str, object] = {"include": ["/dev/acc*"], "containerPath": "/dev/acc"}
    assert discover(KIND, options, tree.roots).problems == ()
    tree.file("/dev/acc1")
    found = discover(KIND, options, tree.roots)
    assert len(found.devices) == 2
    assert "{name}" in found.problems[0].message


def test_several_nodes_make_one_device_and_are_not_offered_alone(tree: Tree) -> None:
    for name in ("a0", "a1", "a2"):
        tree.file(f"/dev/{name}")
    found = discover(
        KIND,
        {
            "include": ["/dev/a*"],
            "permissions": "r",
            "devices": [
                {
                    "name": "pair",
                    "nodes": [
                        {"path": "/dev/a0", "containerPath": "/dev/{name}-x", "permissions": "wr"},
                        {"path": "/dev/a1"},
                    ],
                }
            ],
        },
        tree.roots,
    )
    assert [device.name for device in found.devices] == ["a2", "pair"]
    pair = found.devices[1]
    assert [(n.container_path, n.permissions) for n in pair.edits.nodes] == [
        ("/dev/pair-x", "rw"),
        ("/dev/a1", "r"),
    ]
    assert pair.parts == {"/dev/a0": 1, "/dev/a1": 1}


def test_an_optional_node_may_be_missing_and_a_required_one_makes_the_device_unhealthy(tree: Tree) -> None:
    tree.file("/dev/a0")
    options: dict[str, object] = {
        "devices": [
            {"name": "one", "nodes": [{"path": "/dev/a0"}, {"path": "/dev/a1", "optional": True}]},
            {"name": "two", "nodes": [{"path": "/dev/a0"}, {"path": "/dev/a2"}]},
            {"name": "none", "nodes": [{"path": "/dev/a3"}]},
        ]
    }
    found = discover(KIND, options, tree.roots)
    one, two = found.devices
    assert (one.name, one.health.ok) == ("one", True)
    assert len(one.edits.nodes) == 1
    assert (two.name, two.health.ok, two.health.reason) == ("two", False, "/dev/a2 does not exist")
    assert set(two.parts) == {"/dev/a0", "/dev/a2"}
    assert {problem.subject for problem in found.problems} == {"two", "none"}
    tree.file("/dev/a2")
    assert discover(KIND, options, tree.roots).devices[1].health.ok


def test_h38_a_node_that_is_gone_is_in_the_inventory_no_longer(tree: Tree) -> None:
    place = tree.file("/dev/acc0")
    assert paths(tree, include=["/dev/acc*"]) == ["/dev/acc0"]
    place.unlink()
    assert paths(tree, include=["/dev/acc*"]) == []


def test_replicas_are_shares_of_one_part(tree: Tree) -> None:
    tree.file("/dev/acc0")
    found = discover(KIND, {"include": ["/dev/acc*"], "replicas": 3}, tree.roots)
    (device,) = found.devices
    assert (device.shares, device.share_unit, device.parts, found.parts) == (
        3,
        "replicas",
        {"/dev/acc0": 1},
        {"/dev/acc0": 3},
    )


def test_owner_and_permissions_reach_the_node(tree: Tree) -> None:
    tree.file("/dev/acc0")
    (node,) = (
        discover(
            KIND,
            {"include": ["/dev/acc0"], "permissions": "MWR", "owner": {"uid": 1000, "mode": "660"}},
            tree.roots,
        )
        .devices[0]
        .edits.nodes
    )
    assert node.permissions == "rwm"
    assert node.owner == Owner(uid=1000, mode=0o660)


def test_the_directories_that_decide_are_watched_existing_or_not(tree: Tree) -> None:
    tree.at("/dev/a1").mkdir()
    options = decode(
        DeviceNodeOptions, {"include": ["/dev/a*/x", "/dev/crypto/acc*"], "exclude": ["/dev/by-id/y"]}
    )
    from bridge.devices.kinds import KINDS

    assert KINDS[KIND].watches(options, tree.roots).directories == {
        "/dev",
        "/dev/a1",
        "/dev/crypto",
        "/dev/by-id",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "names no device"),
        ({"include": ["dev/a"]}, "below /dev"),
        ({"include": ["/dev/../etc/x"]}, "below /dev"),
        ({"include": ["/dev/"]}, "below /dev"),
        ({"include": ["/dev/**/x"]}, "name each level"),
        ({"include": ["/dev/{a,b}"]}, "one pattern for each"),
        ({"include": ["/dev/a"], "permissions": "rx"}, "r (read), w (write) and m (mknod)"),
        ({"include": ["/dev/a"], "permissions": ""}, "r (read), w (write) and m (mknod)"),
        ({"include": ["/dev/a"], "replicas": 0}, "greater than or equal to 1"),
        ({"include": ["/dev/a"], "containerPath": "dev/a"}, "absolute"),
        ({"include": ["/dev/a"], "containerPath": "/dev/../a"}, "absolute"),
        ({"include": ["/dev/a"], "containerPath": "/dev/{index}"}, "{name}"),
        ({"include": ["/dev/a"], "owner": {"mode": "999"}}, "octal"),
        ({"include": ["/dev/a"], "owner": {"mode": 432}}, "octal"),
        ({"devices": [{"name": "A", "nodes": [{"path": "/dev/a"}]}]}, "pattern"),
        ({"devices": [{"name": "a--b", "nodes": [{"path": "/dev/a"}]}]}, "bridge's own"),
        ({"devices": [{"name": "claim-a", "nodes": [{"path": "/dev/a"}]}]}, "bridge's own"),
        ({"devices": [{"name": "a", "nodes": [{"path": "/dev/a*"}]}]}, "patterns belong in include"),
        ({"devices": [{"name": "a", "nodes": []}]}, "must not be empty"),
        ({"devices": [{"name": "a", "nodes": [{"path": "/dev/a"}]}] * 2}, "several devices are called a"),
        (
            {
                "devices": [
                    {
                        "name": "a",
                        "nodes": [{"path": "/dev/a"}, {"path": "/dev/b", "containerPath": "/dev/a"}],
                    }
                ]
            },
            "several nodes would be /dev/a",
        ),
    ],
)
def test_wrong_options_are_refused_with_the_reason(options: dict[str, object], said: str) -> None:
    assert said in wrong(**options)


def disk(tree: Tree, name: str, **files: str) -> None:
    """A disk as sysfs has it; `dm__uuid` is the file `dm/uuid`, an empty text a folder."""
    tree.file(f"/dev/{name}")
    folder = f"/sys/class/block/{name.replace('/', '!')}"
    for file, content in {"size": "2048", "dev": f"8:{len(name)}", **files}.items():
        path = f"{folder}/{file.replace('__', '/')}"
        if content:
            tree.file(path, f"{content}\n")
        else:
            tree.at(path).mkdir(parents=True)


def test_a_pattern_can_be_of_disks_or_of_what_is_none(tree: Tree) -> None:
    disk(tree, "sda", device="")
    tree.file("/dev/tty0")
    assert paths(tree, include=["/dev/*"], type="block") == ["/dev/sda"]
    assert paths(tree, include=["/dev/*"], type="char") == ["/dev/tty0"]
    assert paths(tree, include=["/dev/*"]) == ["/dev/sda", "/dev/tty0"]


def test_real_nodes_are_of_the_type_that_they_are(tmp_path: Path) -> None:
    tree = Tree(tmp_path, mounted=True)
    tree.node("/dev/c", 20)
    tree.node("/dev/b", 20, major=7, kind=stat.S_IFBLK)
    assert paths(tree, include=["/dev/*"], type="block") == ["/dev/b"]
    assert paths(tree, include=["/dev/*"], type="char") == ["/dev/c"]
    assert paths(tree, include=["/dev/*"], spare=True) == []
    for file, content in {"size": "8", "dm/uuid": "mpath-1"}.items():
        tree.file(f"/sys/dev/block/7:20/{file}", content)
    assert paths(tree, include=["/dev/*"], spare=True) == ["/dev/b"]


def test_a_disk_that_the_node_uses_itself_is_not_spare(tree: Tree) -> None:
    disk(tree, "sda", device="", sda1__partition="1")
    disk(tree, "sda1", partition="1")
    disk(tree, "sdb", device="", holders__dm_0="x")
    disk(tree, "dm-0", dm__uuid="mpath-1", holders="")
    disk(tree, "dm-1", dm__uuid="part1-mpath-2")
    disk(tree, "loop0")
    disk(tree, "sr0", device="", removable="1")
    disk(tree, "sdc", device="", size="0")
    disk(tree, "sdd", device="", dev="8:48")
    disk(tree, "dm-2", dm__uuid="LVM-1", dev="253:2")
    disk(tree, "cciss/c0d0", device="")
    tree.file("/dev/tty0")
    wide: dict[str, object] = {"include": ["/dev/*", "/dev/*/*"], "spare": True}
    assert paths(tree, **wide) == ["/dev/cciss/c0d0", "/dev/dm-0", "/dev/dm-2", "/dev/sdd"]
    tree.file("/proc/self/mountinfo", "22 1 8:48 / /etc rw,relatime - ext4 /dev/root rw\n")
    tree.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/dm-2 partition 8 0 -2\n")
    assert paths(tree, **wide) == ["/dev/cciss/c0d0", "/dev/dm-0"]


def test_together_all_that_matches_is_one_device_with_its_holders(tree: Tree) -> None:
    for name in ("dm-0", "dm-3", "dm-10", "crypto/nx-gzip"):
        tree.file(f"/dev/{name}")
    options = {
        "include": ["/dev/dm-*", "/dev/crypto/nx-gzip"],
        "exclude": ["/dev/dm-3"],
        "together": True,
        "replicas": 2,
    }
    found = discover(KIND, options, tree.roots)
    (device,) = found.devices
    assert (device.name, device.shares, device.attributes["nodes"]) == ("all", 2, 3)
    wanted = ["/dev/crypto/nx-gzip", "/dev/dm-0", "/dev/dm-10"]
    assert [node.container_path for node in device.edits.nodes] == wanted
    assert found.parts == dict.fromkeys(wanted, 2) and device.parts == dict.fromkeys(wanted, 1)


def test_together_nothing_is_no_device(tree: Tree) -> None:
    found = discover(KIND, {"include": ["/dev/dm-*"], "together": True}, tree.roots)
    assert found.devices == () and found.problems == ()


def test_together_two_nodes_are_not_one_path_inside(tree: Tree) -> None:
    for path in ("/dev/a/x", "/dev/b/x"):
        tree.file(path)
    options = {"include": ["/dev/*/x"], "together": True, "containerPath": "/dev/in/{basename}"}
    found = discover(KIND, options, tree.roots)
    assert [node.container_path for node in found.devices[0].edits.nodes] == ["/dev/in/x"]
    assert [(problem.subject, "as /dev/a/x is" in problem.message) for problem in found.problems] == [
        ("/dev/b/x", True)
    ]


def test_options_that_contradict_each_other() -> None:
    assert "spare is of disks" in wrong(include=["/dev/*"], spare=True, type="char")
    assert "give include" in wrong(together=True, devices=[{"name": "a", "nodes": [{"path": "/dev/a"}]}])
    assert "'all'" in wrong(
        include=["/dev/b"], together=True, devices=[{"name": "all", "nodes": [{"path": "/dev/a"}]}]
    )
    assert "{basename}" in wrong(include=["/dev/*"], together=True, containerPath="/dev/{name}")


def test_a_container_can_have_the_paths_that_matched(tree: Tree) -> None:
    tree.file("/dev/dm-0")
    for name in ("mpatha", "mpathb"):
        tree.link(f"/dev/mapper/{name}", "../dm-0")
    inside = {}
    for as_matched in (False, True):
        found = discover(KIND, {"include": ["/dev/mapper/*"], "asMatched": as_matched}, tree.roots)
        (device,) = found.devices
        assert device.attributes["path"] == "/dev/dm-0" and device.parts == {"/dev/dm-0": 1}
        inside[as_matched] = [node.container_path for node in device.edits.nodes]
    assert inside == {False: ["/dev/dm-0"], True: ["/dev/mapper/mpatha", "/dev/mapper/mpathb"]}
    assert "leave one out" in wrong(include=["/dev/a"], asMatched=True, containerPath="/dev/b")
