"""A container engine for a test: Debian's Docker, unpacked and not installed, in namespaces of its own.

`dockerd` runs inside a `tests.cluster.node.Node`, which gives it a `/run`, `/etc` and `/var/lib` that vanish, a network
of its own without a way out, and an end: with the node's process 1 everything goes, containers, mounts and all.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import docker  # type: ignore[import-untyped]

from tests.cluster import cgroups, packages, workdirs
from tests.cluster.cache import cached
from tests.cluster.node import Node
from tests.cluster.waiting import retry, wait_for
from tests.image.debian import unpack

_PACKAGES = ("docker.io", "containerd", "tini", "libdevmapper1.02.1")


class NoEngine(Exception):
    """No engine can be had here; says why."""


def programs() -> Path:
    """The folder that holds the engine as on a machine where it is installed, fetched on the first call."""

    def make(directory: Path) -> None:
        unpack(_PACKAGES, directory / "root", whole=False)

    return cached("engine", [repr(_PACKAGES).encode()], make) / "root"


class Engine:
    """One `dockerd`, for as long as a `with` block lasts.

    Attributes:
        directory: its folder, gone in the end.
        node: the namespaces that it runs in.
    """

    def __init__(self) -> None:
        self.directory = workdirs.choose()
        self._cleanup = ExitStack()

    @property
    def address(self) -> str:
        """Where it listens, as `DOCKER_HOST` takes it."""
        return f"unix://{self.directory}/docker.sock"

    @property
    def command(self) -> Path:
        """Its command line."""
        return programs() / "usr/bin/docker"

    @property
    def environment(self) -> dict[str, str]:
        """For programs that shall use it; nothing of the user's own settings for Docker."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return {**kept, "DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self.directory / "config")}

    def client(self) -> docker.DockerClient:
        """A new client of it."""
        return docker.DockerClient(base_url=self.address, timeout=300)

    def run(self, *arguments: str | Path) -> str:
        """Run its command line to the end and return what it printed.

        Raises:
            AssertionError: it failed; shows what it said.
        """
        done = subprocess.run(
            [self.command, *arguments], check=False, capture_output=True, text=True, env=self.environment
        )
        assert done.returncode == 0, f"docker {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoEngine("a container engine needs root")
        if missing := packages.missing():
            raise NoEngine(f"{', '.join(missing)} missing: run `python -m tests.cluster install-packages`")
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _start(self) -> None:
        root = programs()
        workdirs.sweep()
        cgroups.sweep()
        self.directory.mkdir(parents=True)
        self._cleanup.callback(retry, partial(workdirs.remove, self.directory))
        cgroup = cgroups.create()
        self._cleanup.callback(retry, partial(cgroups.remove, cgroup))
        self.node = Node("engine", self.directory, [root / "usr/bin", root / "usr/sbin"])
        self._cleanup.callback(self.node.stop)
        self.node.start()
        libraries = [str(path) for path in (root / "lib").glob("*-linux-gnu*")]
        process = self.node.popen(self._dockerd(cgroup), env={"LD_LIBRARY_PATH": os.pathsep.join(libraries)})

        def answers() -> bool:
            if (status := process.poll()) is not None:
                raise RuntimeError(f"dockerd ended with status {status}:\n{self.node.logs('dockerd')}")
            with suppress(docker.errors.DockerException):
                client = self.client()
                try:
                    return bool(client.ping())
                finally:
                    client.close()
            return False

        wait_for(answers, 60, "the engine to answer", 0.1, lambda: self.node.logs("dockerd")[-4000:])

    def _dockerd(self, cgroup: str) -> list[str | Path]:
        settings = self.directory / "daemon.json"
        settings.write_text("{}")
        return [
            "dockerd",
            f"--config-file={settings}",
            f"--host={self.address}",
            f"--data-root={self.directory}/data",
            f"--exec-root={self.directory}/run",
            f"--pidfile={self.directory}/docker.pid",
            f"--cgroup-parent={cgroup}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--bridge=none",
            "--iptables=false",
        ]
