"""Each scenario on the simulated node of each release, and (`e2e`) on the real one that `K8S` names."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from bridge.sandbox.node import Sandbox
from tests.cluster import Cluster
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.real import RealNode
from tests.protocol.suite.simulated import TIMINGS, SimulatedNode

REAL = "real"
SIMULATED = ("1.37", "1.34", "1.32")

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker of what a real kubelet takes half a minute for known."""
    config.addinivalue_line("markers", "slow: takes half a minute on a real node")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each scenario on every kind of node."""
    if "profile" in metafunc.fixturenames:
        marks = [pytest.mark.e2e, pytest.mark.timeout(1800)]
        real = pytest.param(REAL, marks=marks)
        metafunc.parametrize("profile", [*SIMULATED, real], ids=[*(f"sim{p}" for p in SIMULATED), REAL])


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The real node for all scenarios; its kubelet looks at each pod every two seconds, not each minute."""
    with Cluster(kubelet_config={"syncFrequency": "2s"}) as running:
        yield running


@pytest.fixture
async def node(profile: str, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """The node that the scenario runs on."""
    number = next(_numbers)
    if profile != REAL:
        async with Sandbox(profile=profile, timings=TIMINGS) as box:
            yield SimulatedNode(box, profile, number)
        return
    node = RealNode(request.getfixturevalue("cluster"), number)
    await node.open()
    yield node
    await node.close()


@pytest.fixture
def journal() -> Journal:
    """What the kubelet called."""
    return Journal()


@pytest.fixture
async def plugins(node: Node, journal: Journal) -> AsyncIterator[Plugins]:
    """The scenario's plugins."""
    made = Plugins(node, journal)
    yield made
    await made.close()
