"""The command `bridge`: one module per group of commands.

A command imports what it needs when it runs, so that `bridge version` does not load what `bridge run` does. Exit
codes: 0 done, 1 it went wrong, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli import config, convert, doctor, holds, ledger, look, release, run, sandbox
from bridge.cli.fleet import mode, plan, status
from bridge.cli.problems import Commands

app = typer.Typer(
    name="bridge",
    cls=Commands,
    help="One node daemon that offers devices through the device plugin API and DRA at once, from one ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs are wrapped as wide as the terminal is
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config.app, name="config")
app.add_typer(ledger.app, name="ledger")
app.add_typer(mode.app, name="mode")
app.command("status")(status.status)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("discover")(look.discover)
app.command("devices")(look.devices)
app.command("holds")(holds.holds)
app.command("explain")(holds.explain)
app.command("release")(release.release)
app.command("convert")(convert.convert)
app.command("doctor")(doctor.doctor)
app.command("sandbox")(sandbox.sandbox)


@app.command()
def version() -> None:
    """Print the version.

    Example: bridge version
    """
    from bridge import __version__

    typer.echo(__version__)


def _version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


def main() -> None:
    """Run the command line. Whatever goes wrong is a line, not a traceback, unless `BRIDGE_DEBUG` is set."""
    plugin = Path(sys.argv[0]).name.startswith("kubectl-")
    try:
        app(prog_name="kubectl bridge" if plugin else "bridge")
    except Exception as error:
        if os.environ.get("BRIDGE_DEBUG"):
            raise
        typer.echo(
            f"bridge: unexpected {type(error).__name__}: {error} (BRIDGE_DEBUG=1 tells where)", err=True
        )
        sys.exit(1)
