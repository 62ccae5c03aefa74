"""Each mode on a real node: pods get the right device nodes with the right permissions, and only they do."""

from __future__ import annotations

import pytest

from tests.cluster.consoles import MAJOR
from tests.e2e.objects import Container, Manifest, PodClaim, Request, pod
from tests.e2e.stage import Group, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(300)]

LIST_AND_TRY = """
for node in /dev/crypto/*; do echo "$node $(/probe try "$node" r) $(/probe try "$node" w)"; done
"""
PLANES = {"device-plugin": ("device-plugin",), "dra": ("dra",), "dual": ("device-plugin", "dra")}


@pytest.mark.oldest
@pytest.mark.parametrize("mode", PLANES)
def test_pods_get_the_right_nodes_and_permissions(stage: Stage, mode: str) -> None:
    write, read = stage.group("rw"), stage.group("ro")
    minors = {path: stage.plug(path) for path in (write.path(0), write.path(1), read.path(0), read.path(1))}
    stage.start(write.config(), read.config(options={"permissions": "r"}), mode=mode)
    planes = PLANES[mode]
    if "device-plugin" in planes:
        stage.wait_for(lambda: stage.allocatable(read) == 2, 15, "the node to offer the devices")
    if "dra" in planes:
        stage.wait_for(lambda: len(stage.published(read)) == 2, 15, "slices to offer the devices")
    stage.apply(
        stage.dra.template("write", Request("device", write.name)),
        stage.dra.template("read", Request("device", read.name)),
        *(consumer(plane, write, read) for plane in planes),
        pod("nothing", Container(make_and_try(minors[write.path(0)]))),
    )
    tried = {plane: opened(stage, plane) for plane in planes}
    for of_plane in tried.values():
        assert of_plane["write"].keys() < {write.path(0), write.path(1)}
        assert list(of_plane["write"].values()) == [("ok", "ok")]
        assert of_plane["read"].keys() < {read.path(0), read.path(1)}
        assert list(of_plane["read"].values()) == [("ok", "EPERM")]
    assert len({path for of_plane in tried.values() for path in of_plane["write"]}) == len(planes)
    assert stage.finished("nothing").split() == ["ok", "EPERM"]
    assert bool(stage.slices(write)) == ("dra" in planes)
    assert (stage.capacity(write) > 0) == ("device-plugin" in planes)


def test_a_partition_gives_each_plane_devices_of_its_own(stage: Stage) -> None:
    group = stage.group()
    for index in range(4):
        stage.plug(group.path(index))
    stage.start(group.config(sharing="partition", partition={"devicePlugin": 1}))
    stage.wait_for(lambda: stage.allocatable(group) == 1, 15, "the device plugin's device")
    stage.wait_for(lambda: len(stage.published(group)) == 3, 15, "DRA's devices")
    stage.apply(
        stage.dra.template("all", Request("devices", group.name, count=3)),
        pod("dra", Container("ls /dev/crypto", claims=("all",)), claims=[PodClaim("all", template="all")]),
        pod("dp", Container("ls /dev/crypto", resources={group.resource: 1})),
    )
    names = {group.path(index).rpartition("/")[2] for index in range(4)}
    had = {plane: set(stage.finished(plane).split()) for plane in ("dp", "dra")}
    assert had["dp"] | had["dra"] == names
    assert not had["dp"] & had["dra"]


def consumer(plane: str, write: Group, read: Group) -> Manifest:
    """A pod with a device of each group: one container each."""
    if plane == "dra":
        return pod(
            plane,
            Container(LIST_AND_TRY, "write", claims=("write",)),
            Container(LIST_AND_TRY, "read", claims=("read",)),
            claims=[PodClaim("write", template="write"), PodClaim("read", template="read")],
        )
    return pod(
        plane,
        Container(LIST_AND_TRY, "write", resources={write.resource: 1}),
        Container(LIST_AND_TRY, "read", resources={read.resource: 1}),
    )


def make_and_try(minor: int) -> str:
    """A container that was given nothing makes the node of a device for itself."""
    return f"/probe mknod /tmp/own c {MAJOR} {minor}; /probe try /tmp/own rw || true"


def opened(stage: Stage, name: str) -> dict[str, dict[str, tuple[str, str]]]:
    """By container and device node: how opening it went, for reading and for writing."""
    found = {}
    for container in ("write", "read"):
        lines = [line.split() for line in stage.finished(name, container).splitlines()]
        found[container] = {node: (read, write) for node, read, write in lines}
    return found
