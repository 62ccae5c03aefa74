"""A node's own commands asked through its daemon's pod, and how a switch is shown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from bridge.cli.fleet.cluster import Listing, Ran
from bridge.cli.fleet.progress import shown
from bridge.cli.fleet.remote import asked
from bridge.cli.problems import Problem


class OneNode:
    """A cluster of one node, whose daemon answers what it is told to."""

    def __init__(self, ran: Ran, **container: Any) -> None:
        self.ran, self.command = ran, [""]
        spec = {"nodeName": "a", "containers": [{"name": "sidecar"}, {"name": "daemon", **container}]}
        meta = {"name": "device-bridge-x", "namespace": "bridge"}
        self.pods = [{"metadata": meta, "spec": spec, "status": {"phase": "Running"}}]

    def all(self, path: str, *, labels: str = "", fields: str = "") -> Listing:
        assert (labels, fields) == ("app.kubernetes.io/name=device-bridge", "spec.nodeName=a")
        return Listing(tuple(self.pods), "1")

    def find(self, path: str) -> dict[str, Any] | None:
        return {"metadata": {"name": "a"}} if path.endswith("/a") else None

    def execute(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Ran:
        assert (namespace, pod, container) == ("bridge", "device-bridge-x", "daemon")
        self.command = list(command)
        return self.ran


@pytest.mark.parametrize(
    ("container", "command"),
    [
        ({"command": ["bridge", "run"]}, ["bridge", "holds", "-o", "json"]),
        ({"args": ["run"]}, ["bridge", "holds", "-o", "json"]),
        (
            {"command": ["python", "-m", "bridge", "run"], "args": ["--config", "/x.yaml"]},
            ["python", "-m", "bridge", "holds", "-o", "json", "--config", "/x.yaml"],
        ),
        ({"command": ["bridge", "run", "--config=/x"]}, ["bridge", "holds", "-o", "json", "--config=/x"]),
    ],
)
def test_the_daemons_own_program_and_configuration_are_used(
    container: dict[str, Any], command: list[str]
) -> None:
    cluster = OneNode(Ran("[]", "", 0), **container)
    assert asked(cluster, "a", ["holds"]) == []
    assert cluster.command == command


def test_notes_of_the_daemon_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    asked(OneNode(Ran("[]", "left out: group acc\n", 0)), "a", ["devices"])
    assert capsys.readouterr().err == "a: left out: group acc\n"


@pytest.mark.parametrize(
    ("ran", "said", "code"),
    [
        (Ran("", "bridge: there is no device x\n", 1), "node a: there is no device x", 1),
        (Ran("", "", 137), "node a: exit code 137", 137),
        (Ran("Usage", "", 0), "is its bridge of another version?", 1),
    ],
)
def test_what_goes_wrong_there_is_said_here(ran: Ran, said: str, code: int) -> None:
    with pytest.raises(Problem) as caught:
        asked(OneNode(ran), "a", ["holds"])
    assert said in str(caught.value) and caught.value.code == code


def test_a_daemon_that_does_not_run_is_said_to_be_that() -> None:
    cluster = OneNode(Ran("[]", "", 0))
    cluster.pods[0]["status"] = {"phase": "Pending"}
    with pytest.raises(Problem, match=r"its pod bridge/device-bridge-x is Pending"):
        asked(cluster, "a", ["holds"])
    cluster.pods = []
    with pytest.raises(Problem, match="no daemon runs on node a"):
        asked(cluster, "a", ["holds"])


def told(console: Console) -> None:
    with shown(console) as progress:
        progress.batch(1, 2, ["a", "b"])
        progress.says("a", "acc: Waiting [allocatable]")
        progress.done("a", "switched after 1.2 s: dra")
        progress.failed("b", "refuses")
        progress.pause(5)


def test_on_a_terminal_the_batch_that_is_under_way_is_shown_alone() -> None:
    written = io.StringIO()
    with shown(Console(file=written, force_terminal=True, width=120)) as progress:
        for number in range(1, 4):
            progress.batch(number, 3, [f"node-{number}"])
            progress.done(f"node-{number}", "switched")
    picture = written.getvalue().rpartition("\x1b[2K")[2]
    assert "batch 3/3" in picture and "batch 1/3" not in picture and "batch 2/3" not in picture


def test_a_switch_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    told(Console(file=io.StringIO()))
    assert capsys.readouterr().err.splitlines() == [
        "batch 1/2: a, b",
        "batch 1/2: a: acc: Waiting [allocatable]",
        "batch 1/2: a: switched after 1.2 s: dra",
        "batch 1/2: b: FAILED: refuses",
        "batch 1/2: pause of 5 s",
    ]


def test_a_switch_is_a_bar_for_each_batch_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    told(Console(file=seen, force_terminal=True, width=120))
    assert "batch 1/2" in seen.getvalue() and "1/2" in seen.getvalue() and "\x1b[31m" in seen.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = io.StringIO()
    told(Console(file=plain, force_terminal=True, width=120))
    assert "batch 1/2" in plain.getvalue() and "\x1b[31m" not in plain.getvalue()
