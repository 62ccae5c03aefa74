"""Processes inside a node, started and signalled from outside it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid it names a process for good."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_alive(pid: int, started: int) -> bool:
    """Tell whether the process that had this pid at that time still runs."""
    try:
        return start_time(pid) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def owner() -> str:
    """Give a tag that names this process for good; what outlives its maker is named with it."""
    return f"{os.getpid()}-{start_time(os.getpid())}"


def owner_is_alive(tag: str) -> bool:
    """Tell whether the process that a tag names still runs."""
    pid, started = tag.split("-")
    return is_alive(int(pid), int(started))


def children(pid: int) -> list[int]:
    """List the children of a process; none if it has ended."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


class Process(subprocess.Popen[str]):
    """A program inside a node.

    `nsenter` has to fork to enter a pid namespace, and waits outside. A signal meant for the program goes
    to the program, not to `nsenter`, which then ends with the same status.
    """

    @property
    def inner_pid(self) -> int:
        """The program's pid as the machine sees it.

        Raises:
            ProcessLookupError: it has ended, or never started.
        """
        deadline = time.monotonic() + 5
        while self.poll() is None and time.monotonic() < deadline:
            if found := children(self.pid):
                return found[0]
            time.sleep(0.001)
        raise ProcessLookupError(f"{self.args!r} has ended with status {self.returncode}")

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.inner_pid, sig)

    def terminate(self) -> None:
        """Ask the program to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the program at once."""
        self.send_signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Make the program stand still, as if it got no processor."""
        self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; `nsenter`, which stands still when the program does, has to be told too."""
        self.send_signal(signal.SIGCONT)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout: float = 10) -> int:
        """Ask the program to end, insist after `timeout` seconds, and return its status."""
        self.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait()
