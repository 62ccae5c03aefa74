"""`bridge convert`: manifests from extended resources to claims, and back."""

from __future__ import annotations

import difflib
import enum
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli.common import DEFAULT_CONFIG, ConfigOption, fail, load_config
from bridge.convert.versions import ApiVersion

if TYPE_CHECKING:
    from bridge.config import Group
    from bridge.convert.model import File, Result, Target

STDIN = Path("-")
_SUFFIXES = (".yaml", ".yml", ".json")


class Plane(enum.StrEnum):
    """Where the workloads are to get their devices from."""

    DRA = "dra"
    DEVICE_PLUGIN = "device-plugin"


def convert(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="More files.", show_default=False)
    ] = None,
    filename: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="File, folder, or - for standard input; may be repeated."),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="Take the folders in folders too.")
    ] = False,
    to: Annotated[Plane, typer.Option(help="The plane to convert to.")] = Plane.DRA,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME=CLASS",
            help="DeviceClass of an extended resource that is in no group, or not named as the group's driver.",
        ),
    ] = None,
    api_version: Annotated[
        ApiVersion, typer.Option(help="Of resource.k8s.io: v1 from Kubernetes 1.34, v1beta1 for 1.32.")
    ] = ApiVersion.V1,
    shares_as_devices: Annotated[
        bool,
        typer.Option(
            help="Ask for shares as devices: for clusters without consumable capacity, before 1.36."
        ),
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print what would change, and change nothing.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Change the files instead of printing them.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Convert workloads from extended resources to ResourceClaimTemplates, or back where nothing is lost.

    Pods, Deployments, StatefulSets, DaemonSets, Jobs and CronJobs, in lists too. Comments and order stay; what is
    converted already stays as it is. A group's extended resource becomes the DeviceClass named as its driver.

    Exit code: 0 everything is converted; 1 something was left as it is, said with its field, and the rest is
    converted; 2 the command line, the configuration or a file cannot be used.

    Example: bridge convert -f deployment.yaml --config config.yaml --diff
    """
    from bridge.convert.model import Options
    from bridge.convert.run import to_claims, to_resources

    named = [*(filename or ()), *(files or ())]
    _check(named, diff, write)
    groups = load_config(config).groups if config != DEFAULT_CONFIG or config.exists() else ()
    options = Options(_targets(groups, classes or ()), api_version, not shares_as_devices)
    read, unreadable = _read(named, recursive)
    run = to_claims if to is Plane.DRA else to_resources
    results = run(read, options)
    if diff:
        _show_diff(results)
    elif write:
        unreadable += _write(results)
    else:
        _print(results)
    if (diff or write) and all(result.text == result.file.text for result in results):
        typer.echo(f"bridge: nothing to convert in {len(results)} file(s)", err=True)
    if to is Plane.DRA:
        _warn(groups, options.targets, results)
    for message in [*unreadable, *(f"{r.file.name}: {problem}" for r in results for problem in r.problems)]:
        typer.echo(f"bridge: {message}", err=True)
    if unreadable or not all(result.usable for result in results):
        raise typer.Exit(2)
    if any(result.problems for result in results):
        raise typer.Exit(1)


def _check(named: Sequence[Path], diff: bool, write: bool) -> None:
    if not named:
        fail("nothing to convert: give files with -f, or -f - for standard input", 2)
    if diff and write:
        fail("--diff changes nothing and --write does: give one of them", 2)
    if write and STDIN in named:
        fail("standard input cannot be written to: leave --write out, the result is printed", 2)


def _warn(groups: Sequence[Group], targets: Mapping[str, Target], results: Sequence[Result]) -> None:
    """Of claims for what the nodes do not offer through DRA, as far as their configuration says."""
    for group in groups:
        device_class = targets[group.resource_name].device_class
        asks = re.compile(rf'deviceClassName"?: *"?{re.escape(device_class)}(?![\w.-])')  # YAML or JSON
        more = any(len(asks.findall(one.text)) > len(asks.findall(one.file.text)) for one in results)
        if more and group.mode.value == "device-plugin":
            typer.echo(
                f"bridge: group {group.name} is in mode device-plugin, which offers nothing through DRA: pods with "
                f"claims of {device_class} stay pending until it is in dual or dra "
                "(`bridge mode set`)",
                err=True,
            )


def _targets(groups: Sequence[Group], classes: Sequence[str]) -> dict[str, Target]:
    """What each extended resource becomes: as the configuration has it, then as the command line says."""
    from bridge.convert.model import Target
    from bridge.devices.kinds import KINDS

    targets: dict[str, Target] = {}
    for group in groups:
        targets[group.resource_name] = Target(group.driver_name, KINDS[group.kind].claim_unit, group.name)
    for written in classes:
        name, equals, device_class = written.partition("=")
        if not (equals and device_class and "/" in name):
            fail(f"--class is NAME=CLASS, like vendor.com/thing=thing, not {written!r}", 2)
        known = targets.get(name, Target(device_class, word=name.rpartition("/")[2]))
        targets[name] = replace(known, device_class=device_class)
    if not targets:
        fail(
            "no extended resource is known: give the bridge's configuration with --config, or --class NAME=CLASS",
            2,
        )
    return targets


def _read(named: Sequence[Path], recursive: bool) -> tuple[list[File], list[str]]:
    """The files, and why others could not be read."""
    from bridge.convert.model import File

    files: dict[Path, File] = {}
    problems = []
    for path in named:
        found = list(_expand(path, recursive))
        if not found:
            problems.append(f"{path}: no file in this folder ends with {', '.join(_SUFFIXES)}")
        for file in found:
            try:
                content = sys.stdin.buffer.read() if file == STDIN else file.read_bytes()
                files.setdefault(
                    file, File("standard input" if file == STDIN else str(file), content.decode())
                )
            except OSError as error:
                problems.append(f"{file}: cannot be read: {error.strerror}")
            except UnicodeDecodeError as error:
                line = content[: error.start].count(b"\n") + 1
                problems.append(f"{file}: line {line}: not UTF-8 text")
    return list(files.values()), problems


def _expand(path: Path, recursive: bool) -> Iterator[Path]:
    if path == STDIN or not path.is_dir():
        yield path
        return
    inside = sorted(path.rglob("*") if recursive else path.iterdir())
    yield from (file for file in inside if file.suffix in _SUFFIXES and file.is_file())


def _print(results: Sequence[Result]) -> None:
    """The files as one stream."""
    before = ""
    for result in results:
        if not result.usable or not result.text:
            continue
        if before:
            typer.echo("" if before.endswith("\n") else "\n", nl=False)
            typer.echo("" if result.text.startswith("---") else "---\n", nl=False)
        typer.echo(result.text, nl=False)
        before = result.text


def _show_diff(results: Sequence[Result]) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"} if "NO_COLOR" not in os.environ else {}
    for result in results:
        name = result.file.name
        old, new = (text.splitlines(keepends=True) for text in (result.file.text, result.text))
        for line in difflib.unified_diff(old, new, name, f"{name} (converted)"):
            whole = line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            typer.echo(typer.style(whole, fg=colours.get(line[0])), nl=False)


def _write(results: Sequence[Result]) -> list[str]:
    """Replace the files that changed; return why some could not be."""
    problems = []
    for result in results:
        if result.text == result.file.text:
            continue
        try:
            _replace(Path(result.file.name).resolve(), result.text)
            typer.echo(f"{result.file.name}: converted")
        except OSError as error:
            problems.append(f"{result.file.name}: cannot be written: {error.strerror}; it is as it was")
    return problems


def _replace(path: Path, text: str) -> None:
    """Whole or not at all, with the rights that it had."""
    mode = path.stat().st_mode
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
        made.chmod(mode & 0o7777)
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise
