"""`bridge config`: check a file, show it with every default, print its schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bridge.cli.common import DEFAULT_CONFIG, ConfigOption, load_config

app = typer.Typer(help="Check, show and describe the configuration.", no_args_is_help=True)


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say whether a configuration is valid; every error with its field, and exit 2, if it is not.

    Example: bridge config check --config config.yaml
    """
    loaded = load_config(config)
    names = ", ".join(group.name for group in loaded.groups)
    typer.echo(f"{config}: valid, {len(loaded.groups)} group(s): {names}")


@app.command()
def show(
    config: ConfigOption = DEFAULT_CONFIG,
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
) -> None:
    """Print the effective configuration, every default filled in.

    Example: bridge config show --config config.yaml
    """
    effective = load_config(config).dump()
    if output == "json":
        typer.echo(json.dumps(effective, indent=2))
        return
    import yaml

    typer.echo(yaml.safe_dump(effective, sort_keys=False), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors and checks.

    Example: bridge config schema > bridge-config.schema.json
    """
    from bridge.config import schema as of_config

    typer.echo(json.dumps(of_config(), indent=2))
