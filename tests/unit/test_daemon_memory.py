"""What the daemon keeps in memory on every node: modules that it needs, and one of what many could share."""

import asyncio
import subprocess
import sys

import pytest

from bridge.daemon.http import HttpEndpoint
from bridge.daemon.metrics import Metrics
from bridge.devices.model import ContainerEdits, Device
from dra_v1.wire import Wire

LOADED = """
import runpy, sys
sys.argv = ["daemon", "not settings"]
try:
    runpy.run_module("bridge.daemon", run_name="__main__")
except ValueError:
    pass
print(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_daemon_loads_nothing_that_only_the_command_line_needs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"aiohttp", "kubernetes", "pydantic", "typer", "rich", "click", "difflib"} & set(
        done.stdout.split()
    )


def test_connections_of_one_loop_receive_into_one_buffer_and_those_of_another_into_another() -> None:
    async def buffers() -> list[memoryview]:
        return [Wire(None, "host").get_buffer(-1) for _ in range(2)]

    (first, second), (other, _) = asyncio.run(buffers()), asyncio.run(buffers())
    assert first is second and other is not first


def test_a_share_has_the_same_string_in_every_view() -> None:
    device = Device("acc", "acc0", "device-node", ContainerEdits(), shares=2)
    assert all(one is again for one, again in zip(device.share_names(), device.share_names(), strict=True))


def test_the_endpoint_asks_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(name: str = "") -> str:
        raise AssertionError("a look-up may take long, and brings tables of all of Unicode")

    monkeypatch.setattr("socket.getfqdn", lookup)
    HttpEndpoint("127.0.0.1:0", Metrics().registry, list, list).stop()
