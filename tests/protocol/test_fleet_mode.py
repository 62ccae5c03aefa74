"""`bridge mode`: a rolling switch against a simulated API server, through the client that operators' clusters see."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.protocol.fleet import BRIDGES, MODE, Fleet, group_state, running, status

NODES = ("node-1", "node-2", "node-10")
PREVIOUS = "device-bridge.io/previous-mode"
QUICK = ("--patience", "0.1s", "--timeout", "3s")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path) as made:
        for name in NODES:
            made.node(name)
        yield made


async def test_nodes_are_switched_one_after_the_other_in_natural_order(fleet: Fleet) -> None:
    done = await fleet.bridge("mode", "set", "dra")
    assert done.exit_code == 0, done.output
    assert fleet.order == [(name, "dra") for name in NODES]
    assert {fleet.said(name)["mode"] for name in NODES} == {"dra"}
    assert "3 node(s) in dra" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0] == "batch 1/3: node-1"
    assert any(line.startswith("batch 3/3: node-10: switched after") for line in lines)


async def test_batches_are_switched_together(fleet: Fleet) -> None:
    done = await fleet.bridge("mode", "set", "dra", "--batch", "67%", "--pause", "0.05s", "-o", "json")
    assert [row["result"] for row in json.loads(done.stdout)] == ["switched"] * 3
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.count(":") == 1] == [
        "batch 1/2: node-1, node-2",
        "batch 1/2: pause of 0.05 s",
        "batch 2/2: node-10",
    ]
    found = await fleet.bridge("mode", "set", "dual", "--batch", "67%", "--dry-run")
    assert found.exit_code == 0 and found.stdout.count("would be switched") == 3
    assert len(fleet.order) == 3, "a dry run writes nothing"


async def test_it_stops_at_the_first_node_that_refuses_and_goes_on_from_there(fleet: Fleet) -> None:
    fleet.refuse.add("node-2")
    stopped = await fleet.bridge("mode", "set", "dra", "-o", "json")
    assert stopped.exit_code == 1
    results = {row["node"]: row["result"] for row in json.loads(stopped.stdout)}
    assert results == {"node-1": "switched", "node-2": "failed", "node-10": "not begun"}
    assert (
        "group acc refuses dra: NameNotCarried: the DeviceClass has no extendedResourceName" in stopped.stderr
    )
    assert "1 of 3 nodes are there, 1 not begun" in stopped.stderr
    assert f"bridge mode set dra --kubeconfig {fleet.kubeconfig}" in stopped.stderr
    assert MODE not in fleet.labels("node-10")
    version = fleet.registry.get("nodes", "node-1")["metadata"]["resourceVersion"]

    again = await fleet.bridge("mode", "set", "dra")
    assert again.exit_code == 1, "nothing was mended, so it stops at once where it was"
    rows = await fleet.json("mode", "set", "dra", "--accept-stranded-pods", "--node", "node-2")
    assert [row["result"] for row in rows] == ["switched"]
    assert fleet.notes("node-2")["device-bridge.io/accept-stranded-pods"] == "*"
    fleet.refuse.clear()
    rows = await fleet.json("mode", "set", "dra")
    assert {row["node"]: row["result"] for row in rows} == {
        "node-1": "already there",
        "node-2": "already there",
        "node-10": "switched",
    }
    assert fleet.registry.get("nodes", "node-1")["metadata"]["resourceVersion"] == version


async def test_undo_goes_back_in_reverse_order_and_leaves_no_trace(fleet: Fleet) -> None:
    assert (await fleet.bridge("mode", "set", "device-plugin", "--node", "node-1")).exit_code == 0
    assert (await fleet.bridge("mode", "set", "dra", "--batch", "3")).exit_code == 0
    before = json.loads(fleet.notes("node-1")[PREVIOUS])
    assert (before["mode"], before["was"]) == ("device-plugin", "device-plugin")
    assert json.loads(fleet.notes("node-2")[PREVIOUS])["mode"] is None
    fleet.order.clear()
    done = await fleet.bridge("mode", "set", "--undo")
    assert done.exit_code == 0, done.output
    assert fleet.order == [("node-10", None), ("node-2", None), ("node-1", "device-plugin")]
    assert all(fleet.notes(name) == {} for name in NODES)
    assert [fleet.said(name)["mode"] for name in NODES] == ["device-plugin", "dual", "dual"]
    again = await fleet.bridge("mode", "set", "--undo")
    assert again.exit_code == 0 and "there is nothing to undo" in again.stdout


async def test_an_undo_that_stopped_goes_on_where_it_was(fleet: Fleet) -> None:
    assert (await fleet.bridge("mode", "set", "dra")).exit_code == 0
    fleet.deaf.add("node-2")
    stopped = await fleet.bridge("mode", "set", "--undo", "--timeout", "1s")
    assert stopped.exit_code == 1
    assert (
        "node-2 did not go back: it was not there within 1 s: acc: its daemon has still to take up the label"
        in stopped.stderr
    )
    assert (PREVIOUS in fleet.notes("node-10"), PREVIOUS in fleet.notes("node-2")) == (False, True)
    fleet.deaf.clear()
    fleet._follow("node-2")
    assert (await fleet.bridge("mode", "set", "--undo")).exit_code == 0
    assert all(fleet.notes(name) == {} and MODE not in fleet.labels(name) for name in NODES)


async def test_an_undo_goes_back_past_the_node_that_a_switch_stopped_at(fleet: Fleet) -> None:
    """It comes first on the way back, and its daemon may be down because of the switch."""
    assert (await fleet.bridge("mode", "set", "dra", "--batch", "3")).exit_code == 0
    working = fleet.said("node-10")
    fleet.tell("node-10", {**working, "conditions": status("dra", [], ready=False)["conditions"]})
    fleet.deaf.add("node-10")
    fleet.order.clear()
    done = await fleet.bridge("mode", "set", "--undo", *QUICK, "-o", "json")
    assert done.exit_code == 1, done.output
    results = {row["node"]: row["result"] for row in json.loads(done.stdout)}
    assert results == {"node-10": "failed", "node-2": "switched", "node-1": "switched"}
    assert "node-10 did not go back: not Ready: NotServed: group acc is not registered" in done.stderr
    assert "2 of 3 nodes are there, 0 not begun, 1 failed" in done.stderr
    assert "to go back:" not in done.stderr
    assert fleet.order == [("node-10", None), ("node-2", None), ("node-1", None)], "it is told to go back too"
    assert [PREVIOUS in fleet.notes(name) for name in NODES] == [False, False, True]

    fleet.deaf.clear()
    fleet.heard = lambda node: fleet.tell(node, working)
    fleet._follow("node-10")
    assert (await fleet.bridge("mode", "set", "--undo")).exit_code == 0
    assert fleet.notes("node-10") == {}


async def test_an_undo_goes_on_past_a_node_that_somebody_else_switches(fleet: Fleet) -> None:
    assert (await fleet.bridge("mode", "set", "dra", "--batch", "3")).exit_code == 0

    def meddle(node: str) -> None:
        if node == "node-10":
            fleet.registry.patch(
                "nodes", "node-2", {"metadata": {"labels": {MODE: "device-plugin"}}}, kind="merge"
            )

    fleet.heard = meddle
    done = await fleet.bridge("mode", "set", "--undo")
    assert done.exit_code == 1
    assert "node-2 did not go back: somebody else is switching it" in done.stderr
    assert [fleet.labels(name).get(MODE) for name in NODES] == [None, "device-plugin", None]


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_node_that_goes_back_to_modes_of_its_groups_is_there_when_its_daemon_has_said_more(
    fleet: Fleet, deaf: bool
) -> None:
    """Which modes these are only the daemon knows, and that it is settled it said of those before."""
    groups = [group_state("acc", "dual", "x/acc"), group_state("nx", "device-plugin", "x/nx")]
    fleet.node("mixed")
    fleet.tell("mixed", {**status("mixed", groups)})
    assert (await fleet.bridge("mode", "set", "dra", "--node", "mixed")).exit_code == 0
    assert json.loads(fleet.notes("mixed")[PREVIOUS])["was"] == "mixed"
    if deaf:  # or it has nothing new to say: after a while it is taken at its word
        fleet.deaf.add("mixed")
        done = await fleet.bridge("mode", "set", "--undo", "--node", "mixed", "--patience", "1s")
        assert "mixed: its daemon has still to take up the label" in done.stderr
    else:
        done = await fleet.bridge("mode", "set", "--undo", "--node", "mixed", "--patience", "1h")
        assert fleet.said("mixed")["mode"] == "dual"
    assert done.exit_code == 0, done.output
    assert fleet.notes("mixed") == {}


async def test_a_node_whose_daemon_is_not_ready_is_not_touched(fleet: Fleet) -> None:
    fleet.node("node-0", ready=False)
    done = await fleet.bridge("mode", "set", "dra", *QUICK)
    assert done.exit_code == 1
    assert "stopped at node-0: not Ready: NotServed: group acc is not registered" in done.stderr
    assert fleet.order == []


async def test_two_operators_do_not_overwrite_each_other(fleet: Fleet) -> None:
    def another(node: str) -> None:
        if node == "node-1":
            said = {"metadata": {"labels": {MODE: "device-plugin"}}}
            fleet.registry.patch("nodes", "node-2", said, kind="merge")

    fleet.heard = another
    done = await fleet.bridge("mode", "set", "dra")
    assert done.exit_code == 1
    assert (
        "stopped at node-2: somebody else is switching it: its label was no mode and is device-plugin"
        in done.stderr
    )
    assert fleet.labels("node-2")[MODE] == "device-plugin"


async def test_other_writes_to_a_node_are_no_reason_to_stop(fleet: Fleet) -> None:
    status = fleet.registry.get("nodes", "node-1")
    raced = 0

    def kubelet(verb: str) -> None:
        nonlocal raced
        raced += 1
        now = fleet.registry.get("nodes", "node-1")
        now["status"] = {**status["status"], "seen": raced}
        fleet.registry.replace("nodes", now, "status")

    patch = fleet.registry.patch

    def raced_patch(plural, name, body, **more):  # type: ignore[no-untyped-def]
        if raced < 2:
            kubelet("patch")
        return patch(plural, name, body, **more)

    fleet.registry.patch = raced_patch  # type: ignore[method-assign]
    done = await fleet.bridge("mode", "set", "dra", "--node", "node-1")
    assert done.exit_code == 0, done.output
    assert raced == 2 and fleet.labels("node-1")[MODE] == "dra"


async def test_a_group_is_switched_alone_and_a_switch_of_the_node_leaves_it(fleet: Fleet) -> None:
    fleet.node("node-20", groups={"acc": "device-bridge.io/acc", "nx": "device-bridge.io/nx"})
    done = await fleet.bridge("mode", "set", "dra", "--group", "nx")
    assert done.exit_code == 0, done.output
    assert "left out, no daemon there serves a group nx: node-1, node-2, node-10" in done.stderr
    assert fleet.labels("node-20") == {f"{MODE}.nx": "dra"}
    assert fleet.said("node-20")["mode"] == "mixed"
    done = await fleet.bridge("mode", "set", "device-plugin", "--node", "node-20")
    assert done.exit_code == 0, done.output
    assert {one["name"]: one["mode"] for one in fleet.said("node-20")["groups"]} == {
        "acc": "device-plugin",
        "nx": "dra",
    }
    (row,) = await fleet.json("mode", "get", "--node", "node-20")
    assert (row["label"], row["groups"], row["mode"]) == ("device-plugin", {"nx": "dra"}, "mixed")


async def test_a_selector_chooses_nodes(fleet: Fleet) -> None:
    fleet.node("node-30", labels={"pool": "crypto"})
    rows = await fleet.json("mode", "set", "dra", "--selector", "pool in (crypto)")
    assert [row["node"] for row in rows] == ["node-30"]
    for wrong, said in (("pool=none", "no node has the labels"), ("a b", "is no label selector")):
        done = await fleet.bridge("mode", "set", "dra", "--selector", wrong)
        assert done.exit_code == 2 and said in done.stderr


async def test_without_the_crd_it_says_that_it_cannot_wait(tmp_path: Path) -> None:
    async with running(tmp_path, crd=False) as fleet:
        fleet.registry.create("nodes", {"metadata": {"name": "node-1"}})
        done = await fleet.bridge("mode", "set", "dra", "--node", "node-1")
        assert done.exit_code == 1
        assert "the nodes cannot be waited for: the cluster does not know NodeBridge" in done.stderr
        assert "apply kustomize/base" in done.stderr and "--no-wait" in done.stderr
        rows = await fleet.json("mode", "set", "dra", "--node", "node-1", "--no-wait")
        assert [row["result"] for row in rows] == ["labelled"]
        assert fleet.labels("node-1") == {MODE: "dra"}


async def test_the_price_of_dra_is_told_where_pods_have_devices(fleet: Fleet) -> None:
    fleet.node("node-9", held=4)
    done = await fleet.bridge("mode", "set", "dra")
    assert done.exit_code == 0 and "pods have 4 devices from the device plugin on node-9" in done.stderr
    assert "--wait-for-holders avoids that" in done.stderr


async def test_a_watch_that_has_to_begin_anew_misses_nothing(fleet: Fleet) -> None:
    def forget(node: str) -> None:
        fleet.registry.store.compact()
        fleet.server.drop_watches()

    fleet.heard = forget
    done = await fleet.bridge("mode", "set", "dra")
    assert done.exit_code == 0, done.output
    assert fleet.server.requests[("list", BRIDGES)] > 3


async def test_a_switch_does_not_list_the_fleet_for_each_node(fleet: Fleet) -> None:
    for number in range(30, 40):
        fleet.node(f"node-{number}")
    fleet.server.requests.clear()
    assert (await fleet.bridge("mode", "set", "dra")).exit_code == 0
    assert fleet.server.requests[("list", BRIDGES)] == 2
    assert fleet.server.requests[("list", "nodes")] == 1
    assert fleet.server.requests[("patch", "nodes")] == 13


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mode", "set"), "say the mode to go to"),
        (("mode", "set", "dra", "--undo"), "say the mode to go to"),
        (("mode", "set", "both"), "not 'both'"),
        (("mode", "set", "dra", "nowhere"), "there is no node nowhere"),
        (("mode", "set", "dra", "--batch", "0"), "--batch is a count of nodes"),
        (("mode", "set", "dra", "--timeout", "soon"), "--timeout is a length of time"),
        (("mode", "set", "dra", "--node", "nowhere"), "there is no node nowhere"),
        (("mode", "set", "dra", "--node", "node-1", "--group", "gpu"), "no daemon there serves a group gpu"),
        (("mode", "set", "dra", "--node", "a", "--selector", "b"), "not by both"),
    ],
)
async def test_what_makes_no_sense_is_said_before_anything_is_done(
    fleet: Fleet, arguments: tuple[str, ...], said: str
) -> None:
    done = await fleet.bridge(*arguments)
    assert done.exit_code == 2 and said in done.stderr
    assert fleet.order == [] and "Traceback" not in done.output


async def test_nodes_are_named_as_they_are(fleet: Fleet) -> None:
    assert (await fleet.bridge("mode", "set", "dra", "node-2")).exit_code == 0
    assert fleet.order == [("node-2", "dra")]
    done = await fleet.bridge("mode", "get", "node-2", "node-1")
    head, *rows = (line.split() for line in done.stdout.splitlines())
    assert done.exit_code == 0 and [row[:3] for row in rows] == [["node-1", "-", "-"], ["node-2", "dra", "-"]]
    assert head[-1] == "BEFORE" and rows[0][-1] == "-"
    assert (await fleet.bridge("mode", "set", "--undo", "node-2")).exit_code == 0
    assert fleet.order[1:] == [("node-2", None)]


async def test_a_label_that_names_no_mode_is_seen(fleet: Fleet) -> None:
    labels = {MODE: "both", f"{MODE}.acc": "x"}
    fleet.registry.patch("nodes", "node-1", {"metadata": {"labels": labels}}, kind="merge")
    done = await fleet.bridge("mode", "get", "node-1")
    assert "both (no mode)" in done.stdout and "acc=x (no mode)" in done.stdout
    (row,) = await fleet.json("mode", "get", "node-1")
    assert (row["label"], row["groups"]) == ("both", {"acc": "x"})


async def test_errors_of_the_cluster_are_lines(fleet: Fleet, tmp_path: Path) -> None:
    fleet.server.forbid("patch", "nodes")
    done = await fleet.bridge("mode", "set", "dra")
    assert done.exit_code == 1 and "it could not be labelled: not allowed: nodes is forbidden" in done.stderr
    fleet.server.forbid("list", "nodes")
    done = await fleet.bridge("status")
    assert done.exit_code == 1 and "not allowed: nodes is forbidden" in done.stderr
    await fleet.server.stop()
    done = await fleet.bridge("status")
    assert done.exit_code == 1 and "cannot reach the API server http://127.0.0.1" in done.stderr
    assert "Connection refused" in done.stderr and "Traceback" not in done.output
    broken = tmp_path / "broken"
    broken.write_text("{")
    fleet.kubeconfig = broken
    done = await fleet.bridge("status")
    assert done.exit_code == 2 and f"the kubeconfig {broken} cannot be used" in done.stderr
