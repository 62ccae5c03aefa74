"""Options that the fleet's commands share, and what a shell completes them with."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from bridge.cli.problems import Problem

if TYPE_CHECKING:
    from bridge.cli.fleet.cluster import Cluster

T = TypeVar("T")


class Wanted(enum.StrEnum):
    """The modes, as `bridge.config.Mode` has them, which would cost every command its import."""

    DEVICE_PLUGIN = "device-plugin"
    DUAL = "dual"
    DRA = "dra"


def complete_node(incomplete: str) -> list[str]:
    """Names of the cluster's nodes; none where it cannot be asked at once."""
    from bridge.cli.fleet.nodes import name_of
    from bridge.cli.fleet.rollout import NODES

    return [name for name in _names(NODES, name_of) if name.startswith(incomplete)]


def complete_mode(incomplete: str) -> list[str]:
    """The modes."""
    return [mode for mode in Wanted if mode.startswith(incomplete)]


def complete_group(incomplete: str) -> list[str]:
    """Names of the groups that NodeBridges speak of."""
    from bridge.cli.fleet.states import PATH, state

    groups = {group.name for one in _names(PATH, state) for group in one.groups}
    return sorted(name for name in groups if name.startswith(incomplete))


def _names(path: str, read: Callable[[dict[str, Any]], T]) -> list[T]:
    from bridge.cli.fleet.cluster import Cluster

    try:
        with Cluster.connect() as cluster:
            return [read(one) for one in cluster.all(path).items]
    except (Problem, ModuleNotFoundError):
        return []  # a completion has nowhere to tell an error


def connect(kubeconfig: Path | None, context: str) -> Cluster:
    """The cluster that the options name. Raises Problem where it cannot be had."""
    try:
        from bridge.cli.fleet.cluster import Cluster

        return Cluster.connect(kubeconfig, context)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "kubernetes":
            raise
        raise Problem(
            "the commands for a whole cluster need the Python package kubernetes: "
            "pip install 'device-bridge[kubernetes]'"
        ) from error


ClusterKubeconfigOption = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig", help="As kubectl's; else $KUBECONFIG, ~/.kube/config, the pod's own account."
    ),
]
ContextOption = Annotated[
    str, typer.Option("--context", help="Context of the kubeconfig; else the current one.")
]
NodesOption = Annotated[
    list[str] | None,
    typer.Option("--node", "-n", help="A node; may be repeated.", autocompletion=complete_node),
]
NodesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="NODE", help="Nodes.", show_default=False, autocompletion=complete_node),
]
SelectorOption = Annotated[
    str, typer.Option("--selector", "-l", help="Labels of nodes, as kubectl's: pool=gpu,zone!=b.")
]
GroupOption = Annotated[
    str,
    typer.Option(
        "--group", "-g", help="One group of devices, not all of the node.", autocompletion=complete_group
    ),
]
RemoteNodeOption = Annotated[
    str,
    typer.Option(
        "--node",
        "-n",
        help="Ask the daemon of this node of the cluster, from anywhere, through its pod.",
        autocompletion=complete_node,
    ),
]
