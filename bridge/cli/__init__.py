"""The command `bridge`: one module per group of commands.

A command imports what it needs when it runs, so that `bridge version` does not load what `bridge run` does. Exit
codes: 0 done, 1 it went wrong, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import typer

from bridge.cli import config, look, run, sandbox

app = typer.Typer(
    name="bridge",
    help="One node daemon that offers devices through the device plugin API and DRA at once, from one ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config.app, name="config")
app.command("run")(run.run)
app.command("discover")(look.discover)
app.command("devices")(look.devices)
app.command("sandbox")(sandbox.sandbox)


@app.command()
def version() -> None:
    """Print the version.

    Example: bridge version
    """
    from bridge import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    app()
