"""`bridge holds` and `bridge explain`: who has what, and why a device is not offered. Read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bridge.cli.client import NoDaemon, ask, scanned, tell_alone
from bridge.cli.common import (
    DEFAULT_CONFIG,
    OR_A_NODE,
    ConfigOption,
    DevRootOption,
    Output,
    OutputOption,
    SysRootOption,
    dump,
    fail,
    load_config,
    roots,
    show,
)
from bridge.cli.fleet.options import ClusterKubeconfigOption, ContextOption, RemoteNodeOption

HOLDS = {
    "group": "GROUP",
    "device": "DEVICE",
    "share": "SHARE",
    "plane": "PLANE",
    "state": "STATE",
    "holder": "HOLDER",
    "since": "SINCE",
    "evidence": "EVIDENCE",
}
NOTHING = "nothing is held and nothing is in quarantine"

DeviceArgument = Annotated[
    str,
    typer.Argument(
        metavar="DEVICE",
        help="A device as `bridge devices` names it, group/device, one of its shares, or the path of its node.",
    ),
]


def holds(
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    node: RemoteNodeOption = "",
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Print every hold: what, who, since when, and what the evidence says or lacks; quarantines too.

    Without a daemon the ledger alone is read, and that is said. With --node a node of the cluster is asked. Exit 0:
    printed; 1: the ledger cannot be read, or the node not be asked; 2: the configuration is wrong, or there is no such
    node.

    Example: bridge holds --config config.yaml -o json
    """
    if node:
        from bridge.cli.fleet.remote import ask as ask_node

        show(output, HOLDS, ask_node(node, ["holds"], kubeconfig, context), NOTHING)
        return
    from bridge.ledger.store import LedgerError, read_account
    from bridge.planes.explain import rows

    loaded = load_config(config, OR_A_NODE)
    try:
        found = ask(loaded.daemon.state_dir, "holds")
    except NoDaemon as error:
        try:
            found = rows(read_account(loaded.daemon.state_dir), {})
        except LedgerError as broken:
            fail(str(broken))
        tell_alone(error, "what the evidence says of each hold")
    show(output, HOLDS, found, NOTHING)


def explain(
    device: DeviceArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
    node: RemoteNodeOption = "",
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Say for each plane why a device is or is not offered there, and what to do about it.

    Here, or with --node on a node of the cluster. Exit 0: said; 1: there is no such device, or nothing can be read;
    2: the configuration is wrong, or there is no such node.

    Example: bridge explain acc/crypto-acc0
    """
    if node:
        from bridge.cli.fleet.remote import ask as ask_node

        _tell(output, ask_node(node, ["explain", device], kubeconfig, context))
        return
    from bridge.ledger.store import LedgerError

    loaded = load_config(config, OR_A_NODE)
    try:
        found = ask(loaded.daemon.state_dir, "explain", device=device)
    except NoDaemon as error:
        try:
            found = _alone(device, scanned(loaded, roots(dev_root, sys_root)), loaded.daemon.state_dir)
        except LedgerError as broken:
            fail(str(broken))
        tell_alone(error, "taints")
    _tell(output, found)


def _tell(output: Output, found: dict[str, Any]) -> None:
    if output is not Output.TABLE:
        dump(output, found)
        return
    typer.echo(found["target"])
    for view in found["views"]:
        typer.echo(f"  {view['plane']}: {'offered' if view['offered'] else 'not offered'}")
        for why in view["why"]:
            typer.echo(f"    {why}")
        if view["do"]:
            typer.echo(f"    to change it: {view['do']}")


def _alone(device: str, rosters: list[Any], state_dir: Path) -> dict[str, Any]:
    from bridge.ledger.store import read_account
    from bridge.planes.explain import NotFound, explained

    try:
        return explained(device, rosters, read_account(state_dir))
    except NotFound as error:
        fail(str(error))
