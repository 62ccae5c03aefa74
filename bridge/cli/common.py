"""What several commands share: options, output, and errors that read as text instead of a traceback."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from bridge.config import Config
    from bridge.platform.roots import Roots

T = TypeVar("T")

DEFAULT_CONFIG = Path("/etc/device-bridge/config.yaml")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="BRIDGE_CONFIG", help="The configuration file.")
]
DevRootOption = Annotated[
    Path, typer.Option("--dev-root", envvar="BRIDGE_DEV_ROOT", help="Folder to take for /dev.")
]
SysRootOption = Annotated[
    Path, typer.Option("--sys-root", envvar="BRIDGE_SYS_ROOT", help="Folder to take for /sys.")
]


class Output(enum.StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="table for people, json or yaml for programs.")
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option(envvar="KUBECONFIG", help="How to reach the API server; in a pod its ServiceAccount does."),
]
NodeNameOption = Annotated[
    str, typer.Option(envvar="NODE_NAME", help="Name of this Node; the host name if not given.")
]


def fail(message: str, code: int = 1) -> NoReturn:
    """End with a message and an exit code."""
    typer.echo(f"bridge: {message}", err=True)
    raise typer.Exit(code)


def load_config(path: Path, otherwise: str = "") -> Config:
    """The configuration; every error is printed, then exit 2. `otherwise`: what else can be done without a file."""
    from bridge.config import load

    return _loaded(load, path, otherwise)


def load_config_json(path: Path) -> str:
    """The same as JSON, for the daemon."""
    from bridge.config import load_json

    return _loaded(load_json, path, "")


def _loaded(load: Callable[[Path], T], path: Path, otherwise: str) -> T:
    from bridge.config import ConfigErrors

    try:
        return load(path)
    except ConfigErrors as errors:
        hint = f", {otherwise}" if otherwise and not path.exists() else ""
        typer.echo(f"bridge: {errors}{hint}", err=True)
        raise typer.Exit(2) from None


OR_A_NODE = "or ask a node of the cluster with --node"
"""On a workstation there is no configuration, and nothing to look at."""


def roots(dev: Path, sys: Path) -> Roots:
    """The trees to look in; a `/dev` elsewhere is a generated one. One that is not there ends it with exit code 2."""
    from bridge.platform.roots import Roots

    for option, folder in (("--dev-root", dev), ("--sys-root", sys)):
        if not folder.is_dir():
            fail(f"{option} {folder}: there is no such folder", 2)
    return Roots(dev, sys, "/dev" if dev == Path("/dev") else str(dev.absolute()))


def show(
    output: Output,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, object]],
    empty: str,
    *,
    wrap: Collection[str] = (),
) -> None:
    """Print rows: all their fields for programs, or those of `columns` (field to heading) as a table.

    On a terminal the columns `wrap`, of running text, take more lines where one is too short.
    """
    if output is not Output.TABLE:
        dump(output, list(rows))
        return
    if not rows:
        typer.echo(empty)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=not wrap)
    if not console.is_terminal:
        console = Console(width=10_000)  # for a pipe or a file nothing may be cut
    table = Table(box=None, pad_edge=False, header_style="bold")
    for field, heading in columns.items():
        table.add_column(heading, no_wrap=field not in wrap, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(field)) for field in columns))
    console.print(table)


def dump(output: Output, value: object) -> None:
    """Print a value for programs."""
    text = json.dumps(value, indent=2, default=str)
    if output is Output.YAML:
        import yaml

        text = yaml.safe_dump(json.loads(text), sort_keys=False).rstrip("\n")
    typer.echo(text)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " ".join(map(str, value)) or "-"
    return str(value)
