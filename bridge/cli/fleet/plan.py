"""`bridge plan`: what stands in the way of a mode, before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli.common import Output, OutputOption, dump, show
from bridge.cli.fleet.options import (
    ClusterKubeconfigOption,
    ContextOption,
    GroupOption,
    NodesOption,
    SelectorOption,
    Wanted,
    connect,
)
from bridge.cli.problems import Problem

if TYPE_CHECKING:
    from bridge.cli.fleet.finding import Finding

COULD_NOT = 2


def plan(
    to: Annotated[Wanted, typer.Option("--to", help="The mode that the nodes are to have.")] = Wanted.DRA,
    node: NodesOption = None,
    selector: SelectorOption = "",
    group: GroupOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Look for what stands in the way of a mode: versions, gates, rights, workloads, names, quotas, daemons.

    Nothing is touched; creations are dry runs. Each finding is ok, a warning, or blocks, and says how to mend it.

    Exit 0: nothing blocks, perhaps with warnings; 1: something blocks; 2: it could not be told: the cluster cannot be
    asked, there is no such node, or the command line makes no sense.

    Example: bridge plan --to dra --selector pool=crypto
    """
    from bridge.cli.doctor import RIGHTS
    from bridge.cli.fleet.findings import code, findings
    from bridge.cli.fleet.surveying import look

    try:
        with connect(kubeconfig, context) as cluster:
            survey = look(cluster, node or (), selector, RIGHTS)
    except Problem as problem:
        raise Problem(str(problem), COULD_NOT) from problem
    if not survey.nodes:
        raise Problem(
            "there is no node with a daemon to plan for; apply kustomize/base, or name nodes", COULD_NOT
        )
    found = findings(survey, to.value, group)
    if output is not Output.TABLE:
        dump(output, [one.dump() for one in found])
    else:
        _print(found, to, len(survey.nodes))
    raise typer.Exit(code(found))


def _print(found: Sequence[Finding], to: Wanted, nodes: int) -> None:
    from bridge.cli.fleet.switching import some

    rows = [{**one.dump(), "nodes": some(one.nodes, 3) if len(one.nodes) < nodes else "all"} for one in found]
    for row, one in zip(rows, found, strict=True):
        row["nodes"] = row["nodes"] if one.nodes else "-"
    columns = {"verdict": "VERDICT", "check": "CHECK", "nodes": "NODES", "found": "FOUND", "mend": "MEND"}
    show(Output.TABLE, columns, rows, "nothing was looked at", wrap=("check", "nodes", "found", "mend"))
    counts = Counter(one.weight.value for one in found)
    said = ", ".join(f"{counts[weight]} {word}" for weight, word in _WORDS.items() if counts[weight])
    go = "not yet" if counts["blocks"] else f"`bridge mode set {to.value}` can go on"
    typer.echo(f"\n{nodes} node(s) to {to.value}: {said}: {go}")


_WORDS = {"blocks": "in the way", "warning": "to think of", "ok": "ok"}
