"""The daemon under test: `bridge run` inside the node, with the rights that it ships with and no others."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.cluster.processes import Process
from tests.e2e import journal
from tests.e2e.objects import Manifest

REPOSITORY = Path(__file__).parents[2]
METRICS = ("127.0.0.1", 9464)
START_LIMIT_S = 30.0


class Daemon:
    """One `bridge run`, which may be stopped, killed and started again on the same configuration.

    Attributes:
        config: the path of its configuration file.
        name: of its log.
    """

    def __init__(
        self, cluster: Cluster, kubeconfig: Path, config: Path, name: str, arguments: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.name = name
        self._cluster = cluster
        self._kubeconfig = kubeconfig
        self._arguments = tuple(arguments)
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        self.launch()
        self._cluster.wait_for(self.ready, START_LIMIT_S, f"the daemon to be ready:\n{self.tail()}")

    def launch(self, *more: str) -> None:
        """Start it, with more arguments for this once, and do not wait for anything."""
        command = [*self.command(), *self._arguments, *more]
        self._process = self._cluster.popen(command, name=self.name, cwd=REPOSITORY)

    def command(self) -> list[str | Path]:
        """The command line that starts it."""
        identity: list[str | Path] = [
            "--kubeconfig",
            self._kubeconfig,
            "--node-name",
            self._cluster.node_name,
        ]
        program: list[str | Path] = [sys.executable, "-m", "bridge", "run"]
        return [*program, "--config", self.config, *identity, "--log-format", "json"]

    def ready(self) -> bool:
        """Whether `/readyz` says so. Fails the test at once if the daemon has ended."""
        if self._process is None or self._process.poll() is not None:
            status = self._process.returncode if self._process else "no start"
            raise AssertionError(f"the daemon ended with {status}:\n{self.tail()}")
        return self._http("/readyz")[0] == http.client.OK

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> Process:
        """Its process."""
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        """End it in order, and check that it had nothing to complain of on the way."""
        if self.running:
            status = self.process.stop(30)
            assert status == 0, f"the daemon ended with {status}:\n{self.tail()}"

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        """All it has logged, over every start."""
        return self._cluster.logs(self.name)

    def tail(self, lines: int = 30) -> str:
        """The end of its log, for error messages."""
        return "\n".join(self.log().splitlines()[-lines:])

    def entries(self) -> list[journal.Entry]:
        """Its hand-outs, refusals and releases so far."""
        return journal.entries(self.log())

    def complaints(self) -> list[dict[str, Any]]:
        """Everything it logged as an error."""
        return [r for r in journal.records(self.log()) if r["level"] in ("error", "critical")]

    def devices(self) -> list[dict[str, Any]]:
        """What `bridge devices -o json` says."""
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "bridge",
            "devices",
            "-o",
            "json",
            "--config",
            self.config,
        ]
        rows: list[dict[str, Any]] = json.loads(self._cluster.exec(command, cwd=REPOSITORY).stdout)
        return rows

    def metrics(self) -> str:
        """What it tells Prometheus."""
        return self._http("/metrics")[1]

    def _http(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*METRICS)
        connection.sock = self._cluster.node.connect(METRICS, 5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def configuration(groups: Sequence[Manifest], **daemon: object) -> str:
    """A configuration file; JSON is YAML too."""
    return json.dumps(
        {
            "apiVersion": "device-bridge.io/v1alpha1",
            "kind": "BridgeConfig",
            "groups": list(groups),
            "daemon": {"metricsAddress": ":".join(map(str, METRICS)), **daemon},
        },
        indent=1,
    )
