"""What the daemon shows of itself: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bridge.daemon import checks as checks_module
from bridge.daemon.checks import Checks
from bridge.daemon.http import HttpEndpoint, heard_at
from bridge.daemon.metrics import Metrics, states
from bridge.ledger.holds import Plane
from bridge.ledger.store import LedgerError
from bridge.planes.counts import count
from bridge.planes.report import Report
from tests.protocol.stage import ACC, RESOURCE, stage
from tests.unit.rosters import account, device, group, hold, inventory, roster


@dataclass
class Served:
    metrics: Metrics
    checks: Checks
    http: HttpEndpoint

    def get(self, path: str) -> tuple[int, str]:
        return get(self.http.port, path)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    metrics, checks = Metrics(), Checks()
    http = HttpEndpoint("127.0.0.1:0", metrics.registry, checks.health, checks.ready)
    yield Served(metrics, checks, http)
    http.stop()


@pytest.mark.parametrize(
    ("address", "pod_ip", "wanted"),
    [
        ("127.0.0.1:9464", "", "127.0.0.1:9464"),
        ("127.0.0.1:9464", "10.1.2.3", "10.1.2.3:9464"),
        ("localhost:1", "10.1.2.3", "10.1.2.3:1"),
        ("127.0.0.1:9464", "fd00::5", "[fd00::5]:9464"),
        ("[::1]:9464", "10.1.2.3", "10.1.2.3:9464"),
        ("0.0.0.0:9464", "10.1.2.3", "0.0.0.0:9464"),
        ("[::]:9464", "10.1.2.3", "[::]:9464"),
        ("", "10.1.2.3", ""),
    ],
)
def test_in_a_pod_probes_are_heard_whatever_the_configuration_says(
    address: str, pod_ip: str, wanted: str
) -> None:
    assert heard_at(address, pod_ip) == wanted


def test_it_listens_where_there_is_ipv6_only() -> None:
    http = HttpEndpoint("[::1]:0", Metrics().registry, list, list)
    try:
        with urllib.request.urlopen(f"http://[::1]:{http.port}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
    finally:
        http.stop()


def test_it_is_healthy_before_it_is_ready(served: Served) -> None:
    assert served.get("/healthz") == (200, "ok\n")
    assert served.get("/readyz") == (503, "start: the daemon is starting\n")
    served.checks.started()
    assert served.get("/readyz") == (200, "ok\n")


def test_readiness_names_what_is_wrong(served: Served) -> None:
    served.checks.started()
    trouble = ["not registered yet"]
    served.checks.add("group acc, DRA", lambda: trouble[0])
    assert served.get("/readyz") == (503, "group acc, DRA: not registered yet\n")
    trouble[0] = ""
    assert served.get("/readyz") == (200, "ok\n")


def test_a_loop_that_no_longer_turns_is_not_healthy(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_module, "STALLED_S", -1.0)
    status, text = served.get("/healthz")
    assert status == 503 and text.startswith("the event loop has not turned for")


def test_other_paths_say_where_to_look(served: Served) -> None:
    assert served.get("/") == (404, "try /metrics, /healthz or /readyz\n")


def test_hand_outs_refusals_and_releases_are_counted_by_plane(served: Served) -> None:
    report = Report(served.metrics.count)
    report.handed_out(Plane.DRA, "acc", ["acc0", "acc1"], "claim default/c", 0.004)
    report.refused(Plane.DEVICE_PLUGIN, "acc", ["acc0"], "a pod", "full", LedgerError("full"))
    report.ended(Plane.DRA, "acc", ["acc0"], "claim default/c", "deallocated")
    served.metrics.request("get", "resourceclaims", 200, 0.01)
    _, text = served.get("/metrics")
    for line in (
        'device_bridge_hand_outs_total{group="acc",plane="dra"} 2.0',
        'device_bridge_refusals_total{group="acc",plane="device-plugin",reason="ledger"} 1.0',
        'device_bridge_releases_total{group="acc",plane="dra",why="deallocated"} 1.0',
        'device_bridge_hand_out_seconds_count{plane="dra"} 1.0',
        'device_bridge_hand_out_seconds_bucket{le="0.005",plane="dra"} 1.0',
        'device_bridge_api_requests_total{code="200",resource="resourceclaims",verb="get"} 1.0',
    ):
        assert line in text.splitlines(), line


def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        HttpEndpoint(f"127.0.0.1:{taken.getsockname()[1]}", Metrics().registry, list, list)


def test_devices_are_counted_by_state() -> None:
    devices = [
        device("acc0"),
        device("acc1"),
        device("acc2", ok=False),
        device("acc3"),
        device("nx", shares=4),
    ]
    kept = account(
        [
            hold(1, Plane.DEVICE_PLUGIN, devices[0]),
            hold(2, Plane.DRA, devices[1]),
            hold(3, Plane.DRA, devices[4], "share-id", units=2),
            hold(4, Plane.DEVICE_PLUGIN, devices[4], "nx--3"),
        ],
        {"acc3": "in doubt"},
    )
    counts = states(count(roster(group(), inventory(*devices), kept), kept))
    assert {where: count for where, count in counts.items() if count} == {
        ("", "free"): 1,
        ("device-plugin", "held"): 2,
        ("dra", "prepared"): 3,
        ("", "unhealthy"): 1,
        ("", "quarantined"): 1,
    }
    assert sum(counts.values()) == sum(one.shares for one in devices)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def test_the_whole_daemon_counts_hand_outs_and_says_when_it_is_ready() -> None:
    port = free_port()
    async with stage(ACC, devices=3, metricsAddress=f"127.0.0.1:{port}") as node:
        await node.run_pod("p", limits={RESOURCE: 1})
        held = node.claim_on("c", "crypto-acc0")
        await node.prepare(held)
        await node.offers("crypto-acc0", "crypto-acc1")
        await node.log.wait("registered with the kubelet")
        status, text = await asyncio.to_thread(get, port, "/metrics")
        assert status == 200
        for plane in ("device-plugin", "dra"):
            assert f'device_bridge_hand_outs_total{{group="acc",plane="{plane}"}} 1.0' in text
        for plane, states in {
            "": ("free", "unhealthy", "quarantined"),
            "device-plugin": ("granted", "held"),
            "dra": ("reserved", "prepared", "releasing", "tainted"),
        }.items():
            for state in states:
                assert f'device_bridge_devices{{group="acc",plane="{plane}",state="{state}"}} ' in text
        assert 'device_bridge_registered{group="acc",plane="dra"} 1.0' in text
        assert await asyncio.to_thread(get, port, "/healthz") == (200, "ok\n")
        assert await asyncio.to_thread(get, port, "/readyz") == (200, "ok\n")
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(get, port, "/healthz")
