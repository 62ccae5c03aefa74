"""The migration, on two real nodes: a Deployment that never changes and never stops serving goes along, and back."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from tests.cluster import Cluster, Member
from tests.e2e import journal
from tests.journey import workload
from tests.journey.client import Client, Endpoints
from tests.journey.fleet import Fleet
from tests.journey.killer import Killer
from tests.journey.workload import NAME, NAMESPACE, PORT, REPLICAS, Workload

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

DEVICE_PLUGIN, DRA = frozenset({"device-plugin"}), frozenset({"dra"})
PLANES = {"device-plugin": DEVICE_PLUGIN, "dual": DEVICE_PLUGIN | DRA, "dra": DRA}
"""Where a pod that asks by the name of the resource gets its device. In `dual` that is by DRA only while the Node
counts none: a daemon was killed there a moment ago."""

WAY = ("dual", "dra", "device-plugin")
SYNC = "10s"
"""A kubelet looks again at a pod that waits for something at its next periodic sync, after 60 to 90 s by default."""

SOON = {"syncFrequency": SYNC, "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"}}


class Journey:
    """One fleet and one workload on their way."""

    def __init__(self, fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
        self.fleet = fleet
        self.cluster = fleet.cluster
        self.load = Workload(self.cluster)
        self._capsys = capsys
        self._client = Client(self.cluster.node, Endpoints(self.cluster, NAMESPACE, NAME), PORT)
        self._begun = time.monotonic()
        self._turned_away = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A client asks for the length of a `with` block, and every request of it is answered."""
        with self._client.asking():
            yield
        self.served()
        self.tell("all in all")

    def stage(self, mode: str, killer: Killer | None = None, planes: frozenset[str] = frozenset()) -> None:
        """Switch the fleet while the workload is being restarted, restart it once more, and look at everything."""
        with self.restarting(), killer.waiting() if killer else nullcontext():
            said = self.fleet.switch(mode)
        self.tell(said)
        self.load.restart()
        self.load.rolled_out()
        self.arrived(mode, planes or PLANES[mode])

    @contextmanager
    def restarting(self) -> Iterator[None]:
        """A rolling restart beside what is done meanwhile; over when this is."""
        self.load.restart()
        problems: list[BaseException] = []

        def follow() -> None:
            try:
                self.load.rolled_out()
            except BaseException as error:  # noqa: BLE001 - raised below
                problems.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        assert not problems, problems

    def arrived(self, mode: str, planes: frozenset[str]) -> None:
        """Check everything that has to be so at the end of a stage, and tell it."""
        self.cluster.wait_for(
            lambda: self.fleet.settled(mode), 30, f"every NodeBridge to be settled in {mode}"
        )
        self.load.unchanged()
        self.served()
        had = {node.name: self._on(node) for node in self.cluster.nodes}
        assert sum(map(Counter.total, had.values())) == REPLICAS
        assert all(had.values()), f"pods on one node only: {had}"
        assert planes >= {plane for by_plane in had.values() for plane in by_plane}, had
        shown = ", ".join(f"{node} {dict(by_plane)}" for node, by_plane in had.items())
        self.tell(f"{mode}: settled; pods by the plane of their device: {shown}")
        for why in self.load.turned_away()[self._turned_away :]:
            self._turned_away += 1
            self.tell(f"a pod was not admitted: {why}")

    def _on(self, node: Member) -> Counter[str]:
        """How many pods of the workload are on a node, by plane; each alone has its device."""
        notes = self.load.notes(node)
        uses = journal.uses(notes)
        assert not journal.refused_by_kernel(notes)
        assert not journal.double_uses(uses)
        open_now = {use.holder: use.path for use in uses if use.closed == journal.FOREVER}
        pods = [pod["metadata"]["name"] for pod in self.load.pods() if pod["spec"]["nodeName"] == node.name]
        assert set(open_now) == set(pods)
        planes = self.fleet.holds(node)
        return Counter(planes[open_now[pod]] for pod in pods)

    def served(self) -> None:
        """Check that no request failed until now, and that none was left out."""
        client = self._client
        assert not client.problems, client.problems
        assert not client.failures, f"{len(client.failures)} of {client.asked}: {client.failures[:10]}"
        assert client.asked >= client.due() - 5 * client.slowest * 20 - 40

    def tell(self, what: str) -> None:
        """A line of the log, with how it goes."""
        client = self._client
        so_far = f"{client.answers.total()} answers, {len(client.failures)} failures, slowest {client.slowest:.2f} s"
        with self._capsys.disabled():
            print(f"\n[{time.monotonic() - self._begun:6.1f} s; {so_far}] {what.strip()}", flush=True)


@pytest.fixture
def journey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Journey]:
    """The fleet with the workload on it, in mode device-plugin; nobody has asked it anything yet."""
    cluster = Cluster(nodes=2, kubelet_config=SOON)
    if cluster.release.major_minor < (1, 36):
        pytest.skip(f"Kubernetes {cluster.version}: no DRA for pods that ask by the name of a resource")
    with cluster:
        folder = tmp_path / "overlay"
        folder.mkdir()
        fleet = Fleet(cluster, folder)
        fleet.install()
        made = Journey(fleet, capsys)
        made.load.apply()
        yield made


@pytest.mark.ci
def test_a_deployment_goes_to_dra_and_back_unchanged_and_never_stops_serving(journey: Journey) -> None:
    with journey.serving():
        journey.arrived("device-plugin", DEVICE_PLUGIN)
        for mode in WAY:
            journey.stage(mode)
    assert not [one for node in journey.cluster.nodes for one in journey.fleet.complaints(node)]


def test_with_kill_9_of_each_daemon_in_the_middle_of_each_switch(journey: Journey) -> None:
    with journey.serving():
        for mode in WAY:
            killer = Killer(journey.fleet)
            before = {node.name: journey.fleet.restarts(node) for node in journey.cluster.nodes}
            journey.stage(mode, killer)
            for node in journey.cluster.nodes:
                assert journey.fleet.restarts(node) == before[node.name] + 1
                stood = killer.struck[node.name]
                gates = f"device plugin {stood.device_plugin}, DRA {stood.dra}"
                journey.tell(f"{mode}: {node.name} was killed on its way from {stood.mode}: {gates}")


def test_with_claims_that_convert_makes(journey: Journey, tmp_path: Path) -> None:
    file, config = tmp_path / "web.yaml", journey.fleet.config
    file.write_text(yaml.safe_dump_all(workload.manifests(), sort_keys=False))
    convert = ("convert", "--write", "-f", str(file), "--config", str(config))
    with journey.serving():
        journey.stage("dual")
        journey.fleet.bridge(*convert)
        journey.load.apply(*yaml.safe_load_all(file.read_text()))
        journey.arrived("dual", DRA)
        journey.stage("dra")
        journey.stage("dual", planes=DRA)
        journey.fleet.bridge(*convert, "--to", "device-plugin")
        assert list(yaml.safe_load_all(file.read_text())) == workload.manifests()
        journey.load.apply(*workload.manifests())
        journey.arrived("dual", DEVICE_PLUGIN)
        journey.stage("device-plugin")
