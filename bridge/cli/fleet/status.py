"""`bridge status`: the fleet at a glance, or one node closely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli.common import Output, OutputOption, dump, show
from bridge.cli.fleet.options import (
    ClusterKubeconfigOption,
    ContextOption,
    SelectorOption,
    complete_node,
    connect,
)
from bridge.cli.problems import Problem

if TYPE_CHECKING:
    from bridge.cli.fleet.cluster import Cluster, Object
    from bridge.cli.fleet.states import State

FLEET = {
    "node": "NODE",
    "wanted": "WANTED",
    "mode": "MODE",
    "phase": "PHASE",
    "freeDevicePlugin": "FREE-DP",
    "freeDra": "FREE-DRA",
    "heldDevicePlugin": "HELD-DP",
    "heldDra": "HELD-DRA",
    "ready": "READY",
    "lastRefusal": "LAST REFUSAL",
}
GROUPS = {
    "name": "GROUP",
    "resource": "RESOURCE",
    "device_class": "DEVICECLASS",
    "wanted": "WANTED",
    "mode": "MODE",
    "phase": "PHASE",
    "message": "WHY",
}
CONDITIONS = {"type": "CONDITION", "status": "STATUS", "reason": "REASON", "message": "MESSAGE"}
HOLDS = {
    "group": "GROUP",
    "device": "DEVICE",
    "plane": "PLANE",
    "state": "STATE",
    "holder": "HOLDER",
    "since": "SINCE",
}


def status(
    node: Annotated[
        str, typer.Argument(help="One node, closely.", show_default=False, autocompletion=complete_node)
    ] = "",
    selector: SelectorOption = "",
    output: OutputOption = Output.TABLE,
    kubeconfig: ClusterKubeconfigOption = None,
    context: ContextOption = "",
) -> None:
    """Print each node's wanted mode, mode, phase, what is free and held on each plane, and its last refusal.

    With NODE: its groups, conditions, and holds. READY `no daemon`: what is shown is the last word of a daemon that no
    longer runs. Exit 0: printed; 1: the cluster cannot be asked, or no daemon has reported; 2: there is no such
    node, or no usable kubeconfig.

    Example: bridge status --selector pool=crypto
    """
    if node and selector:
        raise Problem("name a node, or choose some by --selector, not both", 2)
    with connect(kubeconfig, context) as cluster:
        if node:
            _one(cluster, node, output)
        else:
            _fleet(cluster, selector, output)


def _fleet(cluster: Cluster, selector: str, output: Output) -> None:
    from bridge.cli.fleet.nodes import chosen, daemons, name_of
    from bridge.cli.fleet.watching import Bridges

    nodes = [name_of(one) for one in chosen(cluster, (), selector)]
    states, pods = Bridges(cluster).read(), daemons(cluster)
    known = states.keys() | pods.keys()
    rows = [row(name, states.get(name), pods) for name in nodes if name in known]
    rows += [row(name, states[name], pods) for name in sorted(states.keys() - set(nodes)) if not selector]
    show(output, FLEET, rows, "no daemon has reported, and none runs; apply kustomize/base")
    if output is Output.TABLE and rows:
        modes = Counter(str(one["mode"] or "unknown") for one in rows)
        unready = sum(one["ready"] != "yes" for one in rows)
        said = ", ".join(f"{count} in {mode}" for mode, count in modes.most_common())
        typer.echo(f"\n{len(rows)} node(s): {said}" + (f"; {unready} not ready" if unready else ""))
    if not rows:
        raise typer.Exit(1)


def row(name: str, state: State | None, pods: Mapping[str, Object]) -> dict[str, object]:
    """A node as the table of the fleet shows it."""
    if state is None:
        return {"node": name, "ready": readiness(name, state, pods)}
    return {
        "node": name,
        "wanted": state.wanted,
        "mode": state.mode,
        "phase": state.phase,
        "freeDevicePlugin": state.free.get("devicePlugin"),
        "freeDra": state.free.get("dra"),
        "heldDevicePlugin": state.held.get("devicePlugin"),
        "heldDra": state.held.get("dra"),
        "ready": readiness(name, state, pods),
        "lastRefusal": state.refusal,
        "groups": [asdict(one) for one in state.groups],
    }


def readiness(name: str, state: State | None, pods: Mapping[str, Object]) -> str:
    """Whether a node's daemon serves. A NodeBridge is its last word, so its pod counts too, where pods are to be
    seen: a daemon may run otherwise than in one."""
    from bridge.cli.fleet.nodes import serves

    if pods and name not in pods:
        return "no daemon"
    if state is None:
        return "nothing told yet"
    if name in pods and not serves(pods[name]):
        return "no: its pod is not Ready"
    return "yes" if state.ready else f"no: {state.not_ready}"


def _one(cluster: Cluster, name: str, output: Output) -> None:
    from bridge.cli.fleet.nodes import chosen, daemons
    from bridge.cli.fleet.watching import Bridges

    chosen(cluster, [name], "")
    state, pods = Bridges(cluster).read().get(name), daemons(cluster, name)
    if state is None:
        raise Problem(f"node {name} has no NodeBridge: no daemon has reported there")
    holds, why_not = _holds(cluster, name)
    if output is not Output.TABLE:
        whole = {**row(name, state, pods), "conditions": list(state.conditions), "holds": holds}
        dump(output, whole)
    else:
        show(output, FLEET, [row(name, state, pods)], "")
        for columns, rows, empty in (
            (GROUPS, [asdict(one) for one in state.groups], "no groups"),
            (CONDITIONS, list(state.conditions), "no conditions"),
            (HOLDS, holds or [], "nothing is held" if holds is not None else "holds: not asked"),
        ):
            typer.echo("")
            show(output, columns, rows, empty)
    if why_not:
        typer.echo(f"bridge: the daemon was not asked for its holds: {why_not}", err=True)


def _holds(cluster: Cluster, node: str) -> tuple[list[dict[str, Any]] | None, str]:
    """The holds that the daemon itself tells; else why it could not be asked, which is no reason to show nothing."""
    from bridge.cli.fleet.remote import asked

    try:
        return asked(cluster, node, ["holds"]), ""
    except Problem as problem:
        return None, str(problem)
