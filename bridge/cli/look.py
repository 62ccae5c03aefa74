"""`bridge discover` and `bridge devices`: what is there, and who has it. Read-only, beside a running daemon."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bridge.cli.common import (
    DEFAULT_CONFIG,
    OR_A_NODE,
    ConfigOption,
    DevRootOption,
    Output,
    OutputOption,
    SysRootOption,
    fail,
    load_config,
    roots,
    show,
)
from bridge.cli.fleet.options import ClusterKubeconfigOption, ContextOption, RemoteNodeOption

if TYPE_CHECKING:
    from bridge.devices.model import Inventory
    from bridge.ledger.holds import Hold, Quarantine


DEVICES = {
    "group": "GROUP",
    "device": "DEVICE",
    "share": "SHARE",
    "state": "STATE",
    "shares": "FREE",
    "plane": "PLANE",
    "holder": "HOLDER",
    "since": "SINCE",
}
NO_DEVICE = "no device found and none held"


def discover(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
) -> None:
    """Scan once and print every device that the configuration finds.

    Exit 0: printed, also that there is none; 2: the configuration is wrong, or a folder to look in is not there.

    Example: bridge discover --config config.yaml -o json
    """
    from bridge.devices.scanner import scan

    trees = roots(dev_root, sys_root)
    inventory = scan(load_config(config).groups, trees)
    rows = [
        {
            "group": device.group,
            "device": device.name,
            "health": "ok" if device.health.ok else device.health.reason,
            "numaNode": device.numa_node,
            "shares": device.shares,
            "nodes": [node.host_path for node in device.edits.nodes],
            "attributes": {name: getattr(value, "text", value) for name, value in device.attributes.items()},
            "parts": dict(device.parts),
            "edits": asdict(device.edits),
        }
        for device in inventory.devices
    ]
    columns = {
        "group": "GROUP",
        "device": "DEVICE",
        "health": "HEALTH",
        "numaNode": "NUMA",
        "shares": "SHARES",
        "nodes": "NODES",
    }
    show(output, columns, rows, "no device found; `bridge config show` shows where it looks")
    _problems(inventory)


def devices(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
    node: RemoteNodeOption = "",
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Print every device with its plane, holder and since when, from the ledger and a fresh scan.

    Here, or with --node on a node of the cluster. Exit 0: printed; 1: the ledger cannot be read, or the node not be
    asked; 2: the configuration is wrong, or there is no such node.

    Example: bridge devices --config config.yaml
    """
    if node:
        from bridge.cli.fleet.remote import ask

        show(output, DEVICES, ask(node, ["devices"], kubeconfig, context), NO_DEVICE)
        return
    from bridge.devices.scanner import scan
    from bridge.ledger.store import LedgerError, read_account

    loaded = load_config(config, OR_A_NODE)
    try:
        account = read_account(loaded.daemon.state_dir)
    except LedgerError as error:
        fail(str(error))
    inventory = scan(loaded.groups, roots(dev_root, sys_root))
    rows: list[dict[str, object]] = []
    held: set[tuple[str, str]] = set()
    for hold in account:
        held.add((hold.group, hold.device))
        rows.append(_hold_row(hold, account.quarantine_of(hold.group, hold.device)))
    for device in inventory.devices:
        quarantine = account.quarantine_of(device.group, device.name)
        state = "quarantined" if quarantine else "free" if device.health.ok else "unhealthy"
        if device.shares == 1 and (device.group, device.name) in held:
            continue
        used = sum(account.used(part) // amount for part, amount in list(device.parts.items())[:1])
        if used >= device.shares:
            state = _noted("all shares held", quarantine)
        rows.append(
            {
                "group": device.group,
                "device": device.name,
                "state": state,
                "shares": f"{device.shares - used}/{device.shares}" if device.shareable else None,
                "why": quarantine.reason if quarantine else device.health.reason or None,
            }
        )
    rows.sort(key=lambda row: (str(row["group"]), str(row["device"]), str(row.get("share", ""))))
    show(output, DEVICES, rows, NO_DEVICE)
    _problems(inventory)


def _noted(state: str, quarantine: Quarantine | None) -> str:
    """A hold goes on under quarantine, but nobody gets the device after it: both have to be seen."""
    return f"{state}, quarantined" if quarantine else state


def _hold_row(hold: Hold, quarantine: Quarantine | None) -> dict[str, object]:
    from bridge.ledger.holds import clock

    return {
        "group": hold.group,
        "device": hold.device,
        "share": None if hold.share == hold.device else hold.share,
        "state": _noted(str(hold.phase), quarantine),
        "plane": str(hold.plane),
        "holder": str(hold.holder),
        "uid": hold.holder.uid or None,
        "since": clock(hold.since),
        "why": quarantine.reason if quarantine else None,
    }


def _problems(inventory: Inventory) -> None:
    for problem in inventory.problems:
        typer.echo(f"group {problem.group}: {problem}", err=True)
