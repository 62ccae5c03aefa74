"""`bridge config`: check a file, show it, print its schema and what it needs in the cluster, read another plugin's."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.common import DEFAULT_CONFIG, ConfigOption, fail, load_config
from bridge.cli.fleet.options import Wanted
from bridge.cli.problems import Commands, Problem
from bridge.convert.versions import ApiVersion

app = typer.Typer(cls=Commands, help="Check, show and describe the configuration.", no_args_is_help=True)


class Form(enum.StrEnum):
    """How to print what is no table."""

    YAML = "yaml"
    JSON = "json"


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="The file; else that of --config.", show_default=False)
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Say whether a configuration is valid; every error with its field, and exit 2, if it is not.

    Example: bridge config check config.yaml
    """
    path = file or config
    loaded = load_config(path)
    names = ", ".join(group.name for group in loaded.groups)
    typer.echo(f"{path}: valid, {len(loaded.groups)} group(s): {names}")


@app.command()
def show(
    config: ConfigOption = DEFAULT_CONFIG,
    output: Annotated[Form, typer.Option("--output", "-o", help="yaml or json.")] = Form.YAML,
) -> None:
    """Print the effective configuration, every default filled in.

    Example: bridge config show --config config.yaml
    """
    effective = load_config(config).dump()
    if output is Form.JSON:
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


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="config.json, its ConfigMap, or all manifests in one; - for standard input."),
    ],
    name: Annotated[str, typer.Option(help="The group that has the plugin's resource name.")] = "dev",
    mode: Annotated[Wanted, typer.Option(help="What is written as mode.")] = Wanted.DEVICE_PLUGIN,
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

    Example: bridge config import config.json > config.yaml

    From the cluster: kubectl get configmap power-device-config -n power-device-plugin -o yaml | bridge config import -
    """
    from bridge.config import ConfigErrors, Mode
    from bridge.config_import import Options, power_device_plugin, written

    source = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{file}: cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError as error:
        fail(f"{source}: not UTF-8 text ({error.reason})", 2)
    try:
        imported = power_device_plugin(text, source, Options(name, Mode(mode.value), together))
        as_yaml = written(imported, source)
    except ConfigErrors as errors:
        raise Problem(str(errors), 2) from None
    if output is Form.YAML:
        typer.echo(as_yaml, nl=False)
        return
    for note in imported.notes:
        typer.echo(f"bridge: {note}", err=True)
    typer.echo(json.dumps(imported.config, indent=2))


@app.command()
def manifests(
    config: Annotated[
        Path,
        typer.Option(
            "--filename", "-f", "--config", "-c", envvar="BRIDGE_CONFIG", help="The configuration file."
        ),
    ] = DEFAULT_CONFIG,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Where the daemon's ServiceAccount is.")
    ] = "device-bridge",
    api_version: Annotated[
        ApiVersion, typer.Option(help="Of resource.k8s.io: v1 from Kubernetes 1.34, v1beta1 for 1.32.")
    ] = ApiVersion.V1,
    output: Annotated[Form, typer.Option("--output", "-o", help="yaml, or json as one List.")] = Form.YAML,
) -> None:
    """Print what the groups of a configuration need in the cluster.

    A DeviceClass for each, named as its driver, with the resource name where keepResourceName says so; and the right
    to set binding conditions on their devices. The rest, the admission policy too, names no group: it is in
    kustomize/base as it is.

    Example: bridge config manifests -f config.yaml | kubectl apply -f -
    """
    from bridge.cli.group_manifests import manifests as of_groups
    from bridge.cli.group_manifests import without_name

    loaded = load_config(config)
    objects = list(of_groups(loaded, namespace, api_version))
    for group in without_name(loaded, api_version):
        typer.echo(
            f"bridge: group {group.name}: a DeviceClass of {api_version} cannot carry {group.resource_name}, so pods "
            "that ask for that name are served through the device plugin alone (keepResourceName needs v1)",
            err=True,
        )
    if output is Form.JSON:
        typer.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
        return
    import yaml

    typer.echo(yaml.safe_dump_all(objects, sort_keys=False, explicit_start=True), nl=False)
