"""The commands of a node, run by its daemon's pod: as on the node, with the rights of whoever may exec there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from bridge.cli.fleet.options import connect
from bridge.cli.problems import Problem

CONTAINER = "daemon"
_RUN = "run"


def ask(node: str, command: Sequence[str], kubeconfig: Path | None, context: str) -> Any:
    """What `bridge COMMAND -o json` prints on a node, read; its notes go to standard error.

    Raises:
        Problem: there is no daemon there, it cannot be asked, or the command went wrong, with what it said.
    """
    with connect(kubeconfig, context) as cluster:
        return asked(cluster, node, command)


def asked(cluster: Any, node: str, command: Sequence[str]) -> Any:
    """The same, of a cluster that is open already."""
    pod = _pod(cluster, node)
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    container = _container(pod)
    ran = cluster.execute(
        namespace,
        name,
        container["name"],
        [*_program(container), *command, "-o", "json", *_config(container)],
    )
    said = ran.stderr.strip()
    if ran.code:
        raise Problem(f"node {node}: {said.removeprefix('bridge: ') or f'exit code {ran.code}'}", ran.code)
    for line in said.splitlines():
        typer.echo(f"{node}: {line}", err=True)
    try:
        return json.loads(ran.stdout)
    except ValueError as error:
        raise Problem(
            f"node {node}: pod {namespace}/{name} answered, but not with JSON; is its bridge of another version?"
        ) from error


def _pod(cluster: Any, node: str) -> dict[str, Any]:
    from bridge.cli.fleet.nodes import chosen, daemons, runs

    found: dict[str, Any] | None = daemons(cluster, node).get(node)
    if found is None:
        chosen(cluster, [node], "")
        raise Problem(
            f"no daemon runs on node {node}: no pod there has the label app.kubernetes.io/name=device-bridge"
        )
    if not runs(found):
        phase = (found.get("status") or {}).get("phase", "unknown")
        raise Problem(
            f"the daemon on node {node} cannot be asked: its pod {found['metadata']['namespace']}/"
            f"{found['metadata']['name']} is {phase}; `kubectl describe` it"
        )
    return found


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = pod["spec"]["containers"]
    return next((one for one in containers if one["name"] == CONTAINER), containers[0])


def _program(container: dict[str, Any]) -> list[str]:
    """What comes before `run` in the pod's own command line."""
    command = [*(container.get("command") or ()), *(container.get("args") or ())]
    at = command.index(_RUN) if _RUN in command else 0
    return command[:at] or ["bridge"]


def _config(container: dict[str, Any]) -> list[str]:
    """The configuration that the daemon was given, where its command line says one."""
    command = [*(container.get("command") or ()), *(container.get("args") or ())]
    for at, word in enumerate(command):
        if word in ("--config", "-c") and at + 1 < len(command):
            return ["--config", command[at + 1]]
        if word.startswith("--config="):
            return [word]
    return []
