"""Asks the daemon on this node, through its control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bridge.cli.common import fail

if TYPE_CHECKING:
    from bridge.config import Config
    from bridge.planes.roster import Roster
    from bridge.platform.roots import Roots

TIMEOUT_S = 30.0
"""A release looks at the runtime, at the kubelet and at every process first."""


class NoDaemon(Exception):
    """No daemon answers; the text says where it was looked for and why not."""


def ask(state_dir: Path, do: str, **more: object) -> Any:
    """What the daemon says. Raises NoDaemon; what the daemon refuses ends the command with exit 1."""
    from bridge.daemon.control import NAME

    path = state_dir / NAME
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(str(path))
            client.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline())
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error) or "no answer"
        raise NoDaemon(f"no daemon answers at {path} ({said})") from error
    if not answer.get("ok"):
        fail(str(answer.get("error", "the daemon refused")))
    return answer["result"]


def tell_alone(error: NoDaemon, missing: str) -> None:
    """Say that the ledger alone was read, and what only a daemon knows."""
    typer.echo(f"bridge: {error}; read from the ledger alone, without {missing}", err=True)


def scanned(config: Config, trees: Roots) -> list[Roster]:
    """The groups as a scan finds them now, and the ledger has them. Raises LedgerError."""
    from bridge.devices.scanner import scan
    from bridge.ledger.store import read_account
    from bridge.planes.roster import Roster
    from bridge.planes.rosters import begun

    account = read_account(config.daemon.state_dir)
    inventory = scan(config.groups, trees)
    return [
        Roster.build(group, inventory, account, offering=begun(group, account)) for group in config.groups
    ]
