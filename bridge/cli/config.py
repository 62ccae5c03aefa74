"""`bridge config`: check a file, show it with every default, print its schema, read that of another plugin."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.common import DEFAULT_CONFIG, ConfigOption, fail, load_config
from bridge.cli.problems import Problem
from bridge.config import Mode

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


class Form(enum.StrEnum):
    """How to print a configuration."""

    YAML = "yaml"
    JSON = "json"


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="config.json, its ConfigMap, or all manifests in one; - for standard input."),
    ],
    name: Annotated[str, typer.Option(help="The group that has the plugin's resource name.")] = "dev",
    mode: Annotated[Mode, typer.Option(help="What is written as mode.")] = Mode.DEVICE_PLUGIN,
    together: Annotated[
        bool, typer.Option("--together", help="One request means every device, as the plugin has it.")
    ] = False,
    output: Annotated[
        Form, typer.Option("--output", "-o", help="yaml with notes, or json and the notes on standard error.")
    ] = Form.YAML,
) -> None:
    """Make a configuration of that of power-device-plugin.

    Every field is taken up, or a note says why not; a note also says what the plugin did wrong and is not done here.
    What cannot be taken up ends it with exit code 2, every field named.

    Example: kubectl get configmap -n power-device-plugin power-device-config -o yaml | bridge config import -
    """
    from bridge.config import ConfigErrors
    from bridge.config_import import Options, power_device_plugin, written

    source = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError as error:
        fail(f"{source}: not UTF-8 text ({error.reason})", 2)
    try:
        imported = power_device_plugin(text, source, Options(name, mode, together))
        as_yaml = written(imported, source)
    except ConfigErrors as errors:
        raise Problem(str(errors), 2) from None
    if output is Form.YAML:
        typer.echo(as_yaml, nl=False)
        return
    for note in imported.notes:
        typer.echo(f"bridge: {note}", err=True)
    typer.echo(json.dumps(imported.config, indent=2))
