"""What DRA can do on the newest release, and what both planes can do for one pod, with real device nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from bridge.platform.api import podresources_pb2, podresources_pb2_grpc
from tests.e2e.objects import Container, FirstAvailable, Manifest, Opaque, PodClaim, Request, pod
from tests.e2e.stage import Group, Stage
from tests.e2e.test_contention import NX_GZIP, sysfs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LIST = "ls /dev/crypto"
NX_CONFIG = {"apiVersion": "device.power.ibm.com/v1alpha1", "kind": "NxConfig"}


@pytest.fixture(autouse=True)
def newest_only(since: Callable[[tuple[int, int], str], None]) -> None:
    """These are shown on the newest release only."""
    since((1, 37), "shown on the newest release, where every feature is on")


@pytest.fixture
def group(stage: Stage) -> Group:
    """Three devices on both planes."""
    made = stage.group()
    for index in range(3):
        stage.plug(made.path(index))
    stage.start(made.config())
    stage.offered(made, 3)
    return made


def test_one_pod_gets_a_device_from_each_plane(stage: Stage, group: Group) -> None:
    one_device(stage, group)
    both = Container(LIST, resources={group.resource: 1}, claims=("device",))
    stage.apply(pod("both", both, claims=[PodClaim("device", template="one")]))
    assert len(nodes(stage.finished("both"), group)) == 2
    planes = {entry.plane for entry in stage.daemon.entries() if entry.message == "handed out"}
    assert planes == {"device-plugin", "dra"}


def test_a_claim_of_two_devices_gives_two_nodes(stage: Stage, group: Group) -> None:
    stage.apply(
        stage.dra.template("two", Request("devices", group.name, count=2)),
        pod("pair", Container(LIST, claims=("devices",)), claims=[PodClaim("devices", template="two")]),
    )
    assert len(nodes(stage.finished("pair"), group)) == 2


def test_two_pods_share_a_claim_and_the_last_one_ends_the_hold(stage: Stage, group: Group) -> None:
    hold = Container(stage.holding(group.pattern, excl=False), claims=("device",))
    stage.apply(
        stage.dra.claim("shared", Request("device", group.name)),
        *(pod(name, hold, claims=[PodClaim("device", claim="shared")]) for name in ("first", "second")),
    )
    has = stage.opened(["first", "second"])
    assert len(set(has.values())) == 1
    assert len(held(stage)) == 1
    stage.delete("first")
    assert stage.containers("second")
    assert len(held(stage)) == 1
    stage.delete("second")
    stage.wait_for(lambda: not held(stage), 30, "the hold to end with the last pod")


def test_admin_access_reaches_a_device_that_is_held_and_books_nothing(stage: Stage) -> None:
    group = stage.group()
    stage.plug(group.path(0))
    stage.start(group.config())
    stage.offered(group, 1)
    one_device(stage, group)
    stage.apply(
        pod(
            "holder",
            Container(stage.holding(group.pattern, excl=False), claims=("device",)),
            claims=[PodClaim("device", template="one")],
        )
    )
    stage.opened(["holder"])
    label = {"resource.kubernetes.io/admin-access": "true"}
    stage.cluster.api.patch(f"/api/v1/namespaces/{stage.namespace}", {"metadata": {"labels": label}})
    stage.apply(
        stage.dra.template("admin", Request("device", group.name, admin=True)),
        pod(
            "monitor",
            Container(f"/probe try {group.path(0)} r", claims=("device",)),
            claims=[PodClaim("device", template="admin")],
        ),
    )
    assert stage.finished("monitor").split() == ["ok"]
    assert held(stage) == {(group.device(0), "dra")}
    stage.delete("monitor")
    assert held(stage) == {(group.device(0), "dra")}
    assert stage.containers("holder")


def test_the_first_available_alternative_is_prepared(stage: Stage, group: Group) -> None:
    none = stage.group("none")
    stage.make_class(none)
    wanted = FirstAvailable("device", (Request("best", none.name), Request("good", group.name)))
    stage.apply(
        stage.dra.template("choice", wanted),
        pod("chooser", Container(LIST, claims=("device",)), claims=[PodClaim("device", template="choice")]),
    )
    assert len(nodes(stage.finished("chooser"), group)) == 1


def test_a_pod_that_knows_only_the_extended_resource_is_served_by_dra(stage: Stage) -> None:
    group = stage.group()
    stage.plug(group.path(0))
    daemon = stage.start(group.config(), mode="dra")
    stage.make_class(group, f"{group.name}-old-name", extended_resource=group.resource)
    stage.wait_for(lambda: stage.published(group), 15, "the device to be published")
    stage.apply(pod("unchanged", Container(LIST, resources={group.resource: 1})))
    assert len(nodes(stage.finished("unchanged"), group)) == 1
    assert [entry.plane for entry in daemon.entries() if entry.message == "handed out"] == ["dra"]


def test_init_containers_and_sidecars_hold_devices_of_both_planes(stage: Stage, group: Group) -> None:
    one_device(stage, group)
    hold = stage.holding(group.pattern, excl=False)
    stage.apply(
        pod(
            "phases",
            Container(LIST, resources={group.resource: 1}),
            init=[
                Container(f"/probe try $(echo {group.pattern}) rw", "first", resources={group.resource: 1}),
                Container(hold, "sidecar", claims=("device",), sidecar=True),
                Container(hold, "helper", resources={group.resource: 1}, sidecar=True),
            ],
            claims=[PodClaim("device", template="one")],
        )
    )
    main = nodes(stage.finished("phases"), group)
    assert stage.output("phases", "first").split() == ["ok"]
    has = [note.path for note in stage.notes() if note.event == "open"]
    assert len(has) == 2
    # The kubelet gives the main container what the init container has done with; a sidecar keeps its own.
    assert len({*has, *(f"/dev/crypto/{name}" for name in main)}) == 3


@pytest.mark.parametrize("plane", ["device-plugin", "dra"])
def test_a_container_that_is_not_root_opens_its_device(stage: Stage, plane: str) -> None:
    owned, plain = stage.group("own"), stage.group("root")
    stage.plug(owned.path(0))
    stage.plug(plain.path(0))
    owner = {"uid": 1000, "gid": 1000, "mode": "0660"}
    stage.start(owned.config(options={"owner": owner}), plain.config())
    stage.offered(owned, 1)
    stage.offered(plain, 1)
    script = "for n in /dev/crypto/*; do echo $(stat -c '%u %g %a' $n) $(/probe try $n rw); done"
    for group in (owned, plain):
        stage.apply(stage.dra.template(group.name, Request("device", group.name)))
        if plane == "dra":
            container = Container(script, claims=("device",), user=1000)
            stage.apply(pod(group.name, container, claims=[PodClaim("device", template=group.name)]))
        else:
            stage.apply(pod(group.name, Container(script, resources={group.resource: 1}, user=1000)))
    assert stage.finished(owned.name).split() == ["1000", "1000", "660", "ok"]
    # Without an owner, CDI hands the node to the user of the container by itself; a device spec does not.
    by_itself = {"device-plugin": ["0", "0", "660", "EACCES"], "dra": ["1000", "1000", "660", "ok"]}
    assert stage.finished(plain.name).split() == by_itself[plane]


def test_the_kubelet_and_the_scheduler_see_the_numa_node(stage: Stage, tmp_path: Path) -> None:
    group = stage.group()
    for index in range(2):
        minor = stage.plug(group.path(index))
        device = tmp_path / f"sys/dev/char/4:{minor}/device"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{index}\n")
    stage.start(group.config(), sys_root=tmp_path / "sys")
    stage.offered(group, 2)
    assert numa_nodes(stage, group) == {group.device(0): [0], group.device(1): [1]}
    there = "device.attributes['resource.kubernetes.io'].numaNode == 1"
    stage.apply(
        stage.dra.template("there", Request("device", group.name, selector=there)),
        pod("there", Container(LIST, claims=("device",)), claims=[PodClaim("device", template="there")]),
    )
    assert nodes(stage.finished("there"), group) == {group.path(1).rpartition("/")[2]}


@pytest.mark.parametrize(
    ("of_class", "of_claim", "expected"),
    [
        ("SpacePartitioning", None, "SpacePartitioning - 3"),
        ("SpacePartitioning", "TimeSlicing", "TimeSlicing Long -"),
    ],
)
def test_an_nx_config_reaches_the_container(
    stage: Stage, tmp_path: Path, of_class: str, of_claim: str | None, expected: str
) -> None:
    group = stage.group("nx")
    stage.plug(NX_GZIP)
    stage.start({"name": group.name, "kind": "nx-gzip"}, sys_root=sysfs(tmp_path / "sys", 4))
    stage.wait_for(lambda: stage.published(group), 15, "the accelerator to be published")
    configured = stage.make_class(
        group, f"{group.name}-configured", Opaque(group.driver, nx_config(of_class))
    )
    config = [Opaque(group.driver, nx_config(of_claim))] if of_claim else []
    config.append(Opaque("another.example.com", {"apiVersion": "x/v1", "kind": "Other", "what": "ever"}))
    script = (
        f"/probe try {NX_GZIP} rw; echo ${{NX_DEVICE_SHARING_STRATEGY}} ${{NX_DEVICE_TIMESLICE_INTERVAL:--}}"
        " ${NX_DEVICE_PARTITION_COUNT:--}"
    )
    stage.apply(
        stage.dra.template("configured", Request("device", configured), config=config),
        pod(
            "user", Container(script, claims=("device",)), claims=[PodClaim("device", template="configured")]
        ),
    )
    assert stage.finished("user").splitlines() == ["ok", expected]


def nx_config(strategy: str) -> Manifest:
    """Parameters as the existing driver for Power takes them."""
    details: Manifest = {
        "TimeSlicing": {"timeSlicingConfig": {"interval": "Long"}},
        "SpacePartitioning": {"spacePartitioningConfig": {"partitionCount": 3}},
    }
    return {**NX_CONFIG, "sharing": {"strategy": strategy, **details[strategy]}}


def one_device(stage: Stage, group: Group) -> None:
    """Make the template `one`: a claim for one device."""
    stage.apply(stage.dra.template("one", Request("device", group.name)))


def nodes(listing: str, group: Group) -> set[str]:
    """The names of the group's nodes that a container saw; it may see no others."""
    found = set(listing.split())
    assert found <= {os.path.basename(group.path(index)) for index in range(3)}, found  # noqa: PTH119
    return found


def held(stage: Stage) -> set[tuple[object, object]]:
    """Who holds which device: (device, plane)."""
    return {(row["device"], row["plane"]) for row in stage.daemon.devices() if row.get("plane")}


def numa_nodes(stage: Stage, group: Group) -> dict[str, list[int]]:
    """The NUMA nodes of each device, as the kubelet tells on its podresources socket."""
    socket = stage.cluster.node.outside("/var/lib/kubelet/pod-resources/kubelet.sock")
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix://{socket}", options) as channel:
        stub = podresources_pb2_grpc.PodResourcesListerStub(channel)
        answer = stub.GetAllocatableResources(podresources_pb2.AllocatableResourcesRequest(), timeout=10)
    return {
        device: [node.ID for node in devices.topology.nodes]
        for devices in answer.devices
        if devices.resource_name == group.resource
        for device in devices.device_ids
    }
