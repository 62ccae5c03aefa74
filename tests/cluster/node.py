"""One node: a process tree in its own mount, network and pid namespaces.

Ending the tree ends everything in it. It ends by itself when the process that made it dies, however that
happens, because process 1 watches a pipe that only that process holds.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import IO, Any

from tests.cluster import network
from tests.cluster.addresses import API_PORT, NODE_ADDRESS, POD_RANGE, SERVICE_ADDRESS, Place
from tests.cluster.processes import Process, children

_INIT = Path(__file__).with_name("init.sh")
_CNI_PLUGINS = Path("/usr/lib/cni")
_NAMESPACES = ("--mount", "--net", "--pid")


class CommandError(subprocess.CalledProcessError):
    """A program inside the node failed; the message shows what it said."""

    def __str__(self) -> str:
        return f"{super().__str__()}\nstdout: {self.stdout}\nstderr: {self.stderr}"


class Node:
    """A node's namespaces and the programs in them.

    Attributes:
        name: the node's name in the cluster.
        directory: its folder on the machine. `directory/root` holds what the node sees at the same paths
            below `/`, for the folders that are its own; `directory/logs` a file per program.
        path: the folders of programs, before those of the machine.
        place: where it is in the cluster's network.
    """

    def __init__(self, name: str, directory: Path, path: Sequence[Path], place: Place | None = None) -> None:
        self.name = name
        self.place = place or Place()
        self.directory = directory
        self.path = path
        self._processes: list[Process] = []
        self._tree: subprocess.Popen[str] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The pid of the node's process 1, as the machine sees it."""
        if self._pid is None:
            raise RuntimeError(f"node {self.name} is not running")
        return self._pid

    @property
    def root(self) -> Path:
        """The node's own `/`, as a path that works from outside, devices and sockets included."""
        return Path(f"/proc/{self.pid}/root")

    def outside(self, path: str | Path) -> Path:
        """Turn a path as the node sees it into one that works from outside."""
        return self.root / str(path).lstrip("/")

    def start(self) -> None:
        """Make the namespaces and wait until process 1 has set them up."""
        (self.directory / "logs").mkdir(exist_ok=True)
        command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "bash", str(_INIT)]
        command += [str(self.directory / "root"), self.place.address, NODE_ADDRESS, str(API_PORT)]
        command += [SERVICE_ADDRESS, POD_RANGE, str(_CNI_PLUGINS)]
        with self._log("init") as log:
            self._tree = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment({}),
                start_new_session=True,
                text=True,
            )
        assert self._tree.stdout is not None
        if self._tree.stdout.readline() != "ready\n":
            raise RuntimeError(f"the node's namespaces could not be set up:\n{self.logs('init')}")
        self._pid = children(self._tree.pid)[0]

    def stop(self) -> None:
        """End every process of the node and wait until the last one is gone."""
        if self._tree is None:
            return
        assert self._tree.stdin is not None
        assert self._tree.stdout is not None
        self._tree.stdin.close()
        self._tree.stdout.close()
        self._tree.wait()
        for process in self._processes:
            process.wait()
            _close_pipes(process)
        self._processes.clear()
        self._tree = self._pid = None

    def enter(self, argv: Sequence[str | Path], cwd: str | Path = "/") -> list[str]:
        """Give the command line that runs a program inside the node."""
        entry = ["nsenter", f"--target={self.pid}", *_NAMESPACES, f"--wdns={cwd}"]
        return [*entry, "--", *map(str, argv)]

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/",
        **options: Any,
    ) -> Process:
        """Start a program inside the node; it ends with the node at the latest.

        Args:
            argv: the program and its arguments.
            name: output goes to the log of this name, unless `options` redirects it.
            env: added to the environment, which has neither a KUBECONFIG nor proxies.
            cwd: the working directory, as the node sees it.
            options: handed to `subprocess.Popen`.
        """
        options = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True, **options}
        with self._log(name or Path(argv[0]).name) as log:
            options = {"stdout": log, "stderr": log, **options}
            process = Process(self.enter(argv, cwd), env=self._environment(env or {}), **options)
        self._processes = [p for p in self._processes if p.poll() is None]
        self._processes.append(process)
        return process

    def exec(
        self,
        argv: Sequence[str | Path],
        *,
        check: bool = True,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        cwd: str | Path = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside the node to its end.

        Raises:
            CommandError: it failed, and `check` is set.
            subprocess.TimeoutExpired: it was killed after `timeout` seconds.
        """
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.popen(argv, env=env, cwd=cwd, **pipes)
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        if check and process.returncode:
            raise CommandError(process.returncode, list(map(str, argv)), out, err)
        return subprocess.CompletedProcess(list(map(str, argv)), process.returncode, out, err)

    def logs(self, name: str) -> str:
        """Return what a program has written so far; empty if it never ran."""
        try:
            return self._log_path(name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def connect(self, address: tuple[str, int], timeout: float | None = 10) -> socket:
        """Open a TCP connection inside the node's network."""
        return network.connect(self.pid, address, timeout)

    def mknod(self, path: str, kind: str, major: int, minor: int, mode: int = 0o660) -> None:
        """Make a device node, `c` for character or `b` for block, and the folders above it."""
        target = self.outside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        types = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
        os.mknod(target, types[kind] | mode, os.makedev(major, minor))
        target.chmod(mode)  # the umask must not have its say

    def rm(self, path: str) -> None:
        """Remove a device node or a file; one that is gone already is fine."""
        with suppress(FileNotFoundError):
            self.outside(path).unlink()

    def _log(self, name: str) -> IO[str]:
        return self._log_path(name).open("a")

    def _log_path(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.log"

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        dropped = ("KUBECONFIG", "NOTIFY_SOCKET")
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k not in dropped}
        path = os.pathsep.join([*map(str, self.path), kept.get("PATH", os.defpath)])
        return {**kept, "PATH": path, **more}


def _close_pipes(process: Process) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
