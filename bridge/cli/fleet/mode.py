"""`bridge mode`: which mode each node is asked to have, and the rolling switch to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli.common import Output, OutputOption, dump, show
from bridge.cli.fleet.options import (
    ClusterKubeconfigOption,
    ContextOption,
    GroupOption,
    NodesArgument,
    NodesOption,
    SelectorOption,
    Wanted,
    complete_mode,
    connect,
)
from bridge.cli.problems import Commands, Problem

if TYPE_CHECKING:
    from bridge.cli.fleet.cluster import Cluster
    from bridge.cli.fleet.journey import Report
    from bridge.cli.fleet.states import State
    from bridge.cli.fleet.switching import Order

app = typer.Typer(
    cls=Commands, help="See and switch the modes of nodes: device-plugin, dual, dra.", no_args_is_help=True
)

_ROW = {
    "node": "NODE",
    "was": "WAS",
    "mode": "MODE",
    "result": "RESULT",
    "seconds": "SECONDS",
    "says": "SAYS",
}


@app.command("get")
def get(
    nodes: NodesArgument = None,
    node: NodesOption = None,
    selector: SelectorOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Print which mode each node is asked to have, by its labels, and which one it has.

    Exit 0: printed; 1: the cluster cannot be asked; 2: there is no such node, or no usable kubeconfig.

    Example: bridge mode get worker-1
    """
    from bridge.cli.fleet import marks
    from bridge.cli.fleet.nodes import chosen, name_of

    named = [*(nodes or ()), *(node or ())]
    with connect(kubeconfig, context) as cluster:
        found, states = chosen(cluster, named, selector), _states_if_any(cluster)
    rows: list[dict[str, Any]] = []
    for one in found:
        name, said = name_of(one), marks.marks(one, "")
        now = (states or {}).get(name)
        if now is None and said.mode is None and not marks.of_groups(one) and not named:
            continue  # no node of the bridge
        rows.append(
            {
                "node": name,
                "label": said.mode,
                "groups": marks.of_groups(one),
                "wanted": now.wanted if now else None,
                "mode": now.mode if now else None,
                "phase": now.phase if now else None,
                "before": said.previous.mode or "as configured" if said.previous else None,
            }
        )
    columns = {
        "node": "NODE",
        "label": "LABEL",
        "groups": "LABELS OF GROUPS",
        "wanted": "WANTED",
        "mode": "MODE",
        "phase": "PHASE",
        "before": "BEFORE",
    }
    if output is Output.TABLE:
        rows = [{**row, "label": _marked(row["label"]), "groups": _of_groups(row["groups"])} for row in rows]
    show(output, columns, rows, "no node has a daemon that has told its mode, or a label for one")


def _marked(label: str | None) -> str | None:
    """A label's value as people read it: one that names no mode changes nothing, and has to be seen."""
    return label if label is None or label in set(Wanted) else f"{label} (no mode)"


def _of_groups(labels: Mapping[str, str]) -> dict[str, str | None]:
    return {group: _marked(label) for group, label in labels.items()}


@app.command("set")
def set_(
    mode: Annotated[
        str,
        typer.Argument(
            help="The mode to go to: device-plugin, dual or dra; none with --undo.",
            show_default=False,
            autocompletion=complete_mode,
        ),
    ] = "",
    nodes: NodesArgument = None,
    node: NodesOption = None,
    selector: SelectorOption = "",
    group: GroupOption = "",
    batch: Annotated[str, typer.Option(help="Nodes at a time: a count, or a share like 10%.")] = "1",
    pause: Annotated[str, typer.Option(help="Time between batches, like 30s.")] = "0s",
    wait: Annotated[
        bool, typer.Option(help="Wait until each node is there, and stop at the first that fails.")
    ] = True,
    timeout: Annotated[str, typer.Option(help="Time that one node may take, like 5m.")] = "5m",
    patience: Annotated[
        str, typer.Option(help="Time that a daemon may be not Ready before that counts as failed.")
    ] = "30s",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    wait_for_holders: Annotated[
        bool,
        typer.Option(
            "--wait-for-holders",
            help="To dra under the same resource name: close the device plugin only when no pod has a device from it "
            "any more, instead of showing devices in use as unhealthy.",
        ),
    ] = False,
    accept_stranded_pods: Annotated[
        bool,
        typer.Option(
            "--accept-stranded-pods",
            help="To dra even where pods that ask by the resource name will stay pending.",
        ),
    ] = False,
    undo: Annotated[
        bool,
        typer.Option(
            "--undo", help="Put back what the nodes had before the last switch, the last one first."
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Switch nodes to a mode, batch by batch: all that a daemon has told of, unless some are chosen.

    A node is done when its NodeBridge is Ready, Settled and in the mode; pods keep the devices that they have. It stops
    at the first node that fails; an undo goes on with the others, and says at its end which did not go back. The same
    command again goes on where it stopped: nodes that are there are left alone. Progress goes to standard error, the
    report to standard output.

    Exit 0: all nodes are there; 1: a node failed, or the cluster cannot be asked; 2: the command line makes no sense,
    or there is no usable kubeconfig; 130: interrupted.

    Example: bridge mode set dra --selector pool=crypto --batch 10% --pause 30s
    """
    from bridge.cli.fleet.batches import seconds, size
    from bridge.cli.fleet.marks import Ask
    from bridge.cli.fleet.switching import Order, switch

    named = [*(nodes or ()), *(node or ())]
    if undo and mode not in {"", *Wanted}:
        named, mode = [mode, *named], ""  # what comes first is a node where no mode is said
    if bool(mode) == undo or mode not in {"", *Wanted}:
        said = f", not {mode!r}" if mode not in set(Wanted) | {""} else ""
        raise Problem(f"say the mode to go to (device-plugin, dual or dra){said}, or --undo; one of them", 2)
    times = {"--pause": pause, "--timeout": timeout, "--patience": patience}
    order = Order(
        mode,
        tuple(named),
        selector,
        group,
        batch,
        {option: seconds(text, option) for option, text in times.items()},
        wait,
        Ask(wait_for_holders, accept_stranded_pods),
        str(kubeconfig or ""),
        context,
    )
    size(batch, 1)  # before anything is asked
    with connect(kubeconfig, context) as cluster:
        report = switch(cluster, order, dry_run=dry_run)
    _show(output, report, order, dry_run=dry_run)


def _states_if_any(cluster: Cluster) -> Mapping[str, State] | None:
    """What the daemons tell; None, said on standard error, where the cluster has no NodeBridge."""
    from bridge.cli.fleet.watching import Bridges, NoBridges

    try:
        return Bridges(cluster).read()
    except NoBridges as error:
        typer.echo(f"bridge: {error}", err=True)
        return None


def _show(output: Output, report: Report, order: Order, *, dry_run: bool) -> None:
    from bridge.cli.fleet.journey import Result
    from bridge.cli.fleet.rollout import stands

    rows = [row.dump() for row in report.rows.values()]
    if output is not Output.TABLE:
        dump(output, rows)
    elif dry_run:
        show(output, _ROW, rows, "there is nothing to undo")
    elif not rows:
        typer.echo("there is nothing to undo")
    elif not report.failed:
        moved = report.count(Result.SWITCHED, Result.LABELLED)
        already = report.count(Result.ALREADY)
        what = f"in {order.mode}" if order.mode else "back"
        typer.echo(f"{moved} node(s) {what}" + (f", {already} already there" if already else ""))
    if report.failed:
        raise Problem(stands(report, order.again, order.undo))
