"""`bridge run`: check the configuration, then become the daemon."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from bridge.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    DevRootOption,
    KubeconfigOption,
    NodeNameOption,
    SysRootOption,
    load_config_json,
)

LEAN_PYTHON = ("-OO", "-X", "no_debug_ranges")
"""Without docstrings and the columns of tracebacks: 2 MiB. Nothing in the daemon depends on an assert."""

LEAN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc otherwise keeps a heap for each few threads, and what a burst had used: 1 MiB with 256 devices."""

QUIET = {"GRPC_VERBOSITY": "ERROR"}
"""gRPC's core otherwise writes each connection that somebody ends between our lines, in a form of its own."""

_NOEXEC_SEAL = 0x8
"""MFD_NOEXEC_SEAL: some machines allow no other memory file (vm.memfd_noexec); before Linux 6.3 nobody knows it."""


def run(
    config: ConfigOption = DEFAULT_CONFIG,
    node_name: NodeNameOption = "",
    kubeconfig: KubeconfigOption = None,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
    log_format: Annotated[
        Literal["json", "text"], typer.Option(help="json for machines, text for people.")
    ] = "json",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(envvar="BRIDGE_LOG_LEVEL")
    ] = "info",
    pod_ip: Annotated[
        str,
        typer.Option(envvar="POD_IP", help="The pod's address: daemon.metricsAddress on loopback means it."),
    ] = "",
    accept_empty_ledger: Annotated[
        bool,
        typer.Option(
            "--accept-empty-ledger",
            help="On a drained node only: lift the quarantine left by an earlier start that found damage.",
        ),
    ] = False,
) -> None:
    """Run the node daemon until SIGTERM.

    Example: bridge run --config config.yaml --node-name worker-1
    """
    from bridge.daemon.settings import Settings

    _hand_over(load_config_json(config))
    settings = Settings(
        config=Path("/proc/self/fd/0"),
        node_name=node_name or socket.gethostname().lower(),
        kubeconfig=kubeconfig,
        dev_root=dev_root,
        sys_root=sys_root,
        log_format=log_format,
        log_level=log_level,
        pod_ip=pod_ip,
        accept_empty_ledger=accept_empty_ledger,
    )
    # The daemon is a program of its own, so that no command line library stays in the memory of every node.
    program = [sys.executable, *LEAN_PYTHON, "-m", "bridge.daemon", settings.dump()]
    os.execve(sys.executable, program, LEAN_MALLOC | QUIET | os.environ)  # noqa: S606


def _hand_over(text: str) -> None:
    """Make a text this process's standard input, and that of what it becomes."""
    file = _memory_file()
    os.write(file, text.encode())
    os.dup2(file, 0)
    os.set_inheritable(0, True)  # it may have been the memory file's own number


def _memory_file() -> int:
    try:
        return os.memfd_create("configuration", os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("configuration")
