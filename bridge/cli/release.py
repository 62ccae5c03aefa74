"""`bridge release`: break-glass, for a hold or a quarantine that no evidence ends."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli.client import NoDaemon, ask, scanned
from bridge.cli.common import (
    DEFAULT_CONFIG,
    ConfigOption,
    DevRootOption,
    KubeconfigOption,
    NodeNameOption,
    Output,
    OutputOption,
    SysRootOption,
    dump,
    fail,
    load_config,
    roots,
)

if TYPE_CHECKING:
    from bridge.config import Config
    from bridge.planes.report import News, Report
    from bridge.planes.roster import Roster
    from bridge.platform.roots import Roots


def release(
    device: Annotated[
        str,
        typer.Argument(
            metavar="DEVICE",
            help="A device as `bridge devices` names it, group/device, a share, the path of its node; `group/*` or "
            "`*` for the quarantine of a group or of everything.",
        ),
    ],
    yes: Annotated[
        bool,
        typer.Option("--yes-i-know", help="The device may be handed out the moment that this is done."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is in use, or nobody can tell whether it is.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="Kept in the ledger's records.")] = "no reason given",
    config: ConfigOption = DEFAULT_CONFIG,
    output: OutputOption = Output.TABLE,
    node_name: NodeNameOption = "",
    kubeconfig: KubeconfigOption = None,
    dev_root: DevRootOption = Path("/dev"),
    sys_root: SysRootOption = Path("/sys"),
) -> None:
    """End the holds of a device without proof, or lift its quarantine: break-glass, recorded and told as an event.

    Refused while a container of its holder runs, the kubelet shows it with a pod, a process has it open, or nobody
    can tell, unless forced. Without a daemon the
    ledger's own lock is taken. Exit 0: released; 1: refused, nothing to release, or it went wrong; 2: --yes-i-know
    is missing, or the configuration is wrong.

    Example: bridge release acc/crypto-acc0 --yes-i-know --why "node drained, pod gone since yesterday"
    """
    loaded = load_config(config)
    if not yes:
        fail(
            f"this ends what holds {device} without proof that nobody uses it; look at `bridge holds` and `bridge "
            f"explain {device}` first, then say --yes-i-know",
            2,
        )
    who = f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"
    asked = {"device": device, "force": force, "why": why, "who": who}
    try:
        done = ask(loaded.daemon.state_dir, "release", **asked)
    except NoDaemon as error:
        typer.echo(f"bridge: {error}; the ledger itself is opened instead", err=True)
        import asyncio

        name = node_name or socket.gethostname().lower()
        trees = roots(dev_root, sys_root)
        done = asyncio.run(_alone(loaded, trees, name, kubeconfig, device, force=force, why=why, who=who))
    if output is not Output.TABLE:
        dump(output, done)
        return
    for hold in done["holds"]:
        typer.echo(f"released {hold['share'] or hold['device']} from {hold['holder']} ({hold['plane']})")
    if done["quarantine"]:
        typer.echo(f"lifted the quarantine of {done['target']}: {done['quarantine']}")
    for note in done["notes"]:
        typer.echo(f"note: {note}", err=True)


async def _alone(
    config: Config,
    trees: Roots,
    node: str,
    kubeconfig: Path | None,
    device: str,
    *,
    force: bool,
    why: str,
    who: str,
) -> dict[str, Any]:
    """Without a daemon: under the ledger's lock, with an event if the API server can be reached."""
    from bridge.daemon.rivals import Rivals
    from bridge.ledger.ledger import Ledger
    from bridge.ledger.store import LedgerError, read_boot
    from bridge.planes.explain import NotFound, find
    from bridge.planes.release import StillUsed, as_row, witnesses
    from bridge.planes.release import release as end
    from bridge.planes.report import Report

    folder, told = config.daemon.state_dir, list[Any]()
    try:
        # Reading it first: to open a damaged one would begin another.
        rosters: list[Roster] = scanned(config, trees)
        ledger = await Ledger.open(folder, boot=read_boot(folder))
        try:
            target = find(device, rosters, ledger.account)
            report: Report = Report(told.append)
            rivals = Rivals(config, lambda: None)
            await rivals.look()
            async with witnesses(config.daemon, trees, rosters, rivals=lambda: rivals.found) as seen:
                done = await end(target, ledger, seen.look, report, who=who, why=why, force=force)
        finally:
            await ledger.close()
    except (LedgerError, NotFound, StillUsed, LookupError) as error:
        fail(str(error))
    posted = await _post(told, node, kubeconfig)
    return as_row(target, replace(done, notes=(*done.notes, *posted)))


async def _post(told: list[News], node: str, kubeconfig: Path | None) -> list[str]:
    """Post what was done as events; what kept us from it, for people."""
    from bridge.daemon.telling import of_node
    from bridge.platform.events import event, events_path, node_ref
    from dra_v1.kube import KubeApi
    from dra_v1.kube_config import KubeConfigError
    from dra_v1.kube_errors import ApiError

    sayings = [saying for news in told if (saying := of_node(news)) is not None]
    if not sayings:
        return []
    try:
        api = KubeApi.from_kubeconfig(kubeconfig) if kubeconfig else KubeApi.in_cluster()
        async with api:
            for saying in sayings:
                about = node_ref(node)
                body = event(about, saying.reason, saying.text, warning=True, node=node)
                await api.create(events_path(about), body)
    except (KubeConfigError, ApiError) as error:
        return [f"no event was posted: {error}"]
    return []
