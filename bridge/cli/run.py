"""`bridge run`: check the configuration, then become the daemon."""

from __future__ import annotations

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
    load_config,
)

LEAN_PYTHON = ("-OO", "-X", "no_debug_ranges")
"""Without docstrings and the columns of tracebacks: 2 MiB. Nothing in the daemon depends on an assert."""

LEAN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc otherwise keeps a heap for each few threads, and what a burst had used: 1 MiB with 256 devices."""

QUIET = {"GRPC_VERBOSITY": "ERROR"}
"""gRPC's core otherwise writes each connection that somebody ends between our lines, in a form of its own."""


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

    load_config(config)
    _hand_over(config)
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


def _hand_over(config: Path) -> None:
    """Make the configuration this process's standard input, as JSON: the daemon needs no library to read that."""
    from bridge.config import as_json

    file = os.memfd_create("configuration")
    os.write(file, as_json(config.read_text(encoding="utf-8")).encode())
    os.dup2(file, 0)
