"""Reading the configuration file: every error at once, each with its field path and line."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from bridge.config.model import (
    KIND,
    Binding,
    Config,
    Count,
    Daemon,
    Group,
    Mode,
    Names,
    Partition,
    Percent,
    Registration,
    Sharing,
)
from bridge.config.names import (
    check_driver,
    check_group,
    check_resource,
    default_driver,
    default_resource,
)
from bridge.devices.kinds import KINDS
from bridge.devices.schema import NOT_EMPTY, Check, FieldError, Invalid, decode, unknown_name

if TYPE_CHECKING:
    from bridge.config.source import Source


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong.

    Attributes:
        path: the field: `groups[1].options.include[0]`; empty for the file as a whole.
        message: what is wrong and what would be right.
        line: in the file, from 1; None where there is none.
    """

    path: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigErrors(ValueError):
    """A configuration that cannot be used.

    Attributes:
        source: the file, or what the text was called.
        errors: everything that is wrong, in the order of the file.
    """

    def __init__(self, source: str, errors: Sequence[ConfigError]) -> None:
        self.source = source
        self.errors = tuple(sorted(errors, key=lambda error: error.line or 0))
        super().__init__("\n".join(f"{source}: {error}" for error in self.errors))


def _binding(value: object) -> object:
    """YAML 1.1 reads a bare `on` or `off` as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _split(value: object) -> object:
    match value:
        case str() if not re.fullmatch(r"(\d|[1-9]\d|100)%", value, re.ASCII):
            raise ValueError(f'a percentage is written like "50%", from 0% to 100%, not {value!r}')
        case bool() | float() | dict() | None:
            raise ValueError('must be a percentage like "50%", a number of devices, or a list of names')
        case int() if value < 0:
            raise ValueError(f"a number of devices is not negative: {value}")
        case _:
            return value


@dataclass(frozen=True, slots=True)
class _Split:
    """How `partition` divides a group.

    Attributes:
        device_plugin: the device plugin's devices: a percentage like 50%, a number, or names and patterns as in a
            shell; the rest is DRA's.
    """

    device_plugin: Annotated[int | str | tuple[str, ...], Check(_split, first=True)]

    def partition(self) -> Partition:
        match self.device_plugin:
            case int(number):
                return Count(number)
            case str(text):
                return Percent(int(text.removesuffix("%")))
            case patterns:
                return Names(patterns)


@dataclass(frozen=True, slots=True)
class _Group:
    """One set of interchangeable devices: one extended resource, one DRA driver, one DeviceClass.

    Attributes:
        name: DNS label that begins with a letter; unique.
        kind: what the devices are; `options` are of this kind.
        resource_name: extended resource that pods ask for; without it `device-bridge.io/<name>`.
        driver_name: DRA driver, and name of the DeviceClass; without it `<name>.device-bridge.io`.
        mode: its mode where the Node's labels say nothing; without it the file's `mode`.
        sharing: in `dual`: `shared`, the first taker of a device wins; `partition`, each plane has devices of its own.
        partition: which devices the planes have, with `sharing: partition`, and only then.
        binding: whether a DRA pod is bound only after its device is reserved, from Kubernetes 1.36 on; `auto`: in
            `dual` with `shared`.
        registration: how the kubelet learns of the device plugin: `watcher`, it finds a socket; `legacy`, it is called.
        keep_resource_name: whether the DeviceClass carries `resourceName` as `extendedResourceName`, so that pods which
            ask for it are served in mode `dra`; from Kubernetes 1.36 on.
        options: what is said to the kind.
    """

    name: Annotated[str, Check(check_group)]
    kind: str
    resource_name: Annotated[str, Check(check_resource)] | None = None
    driver_name: Annotated[str, Check(check_driver)] | None = None
    mode: Mode | None = None
    sharing: Sharing = Sharing.SHARED
    partition: _Split | None = None
    binding: Annotated[Binding, Check(_binding, first=True)] = Binding.AUTO
    registration: Registration = Registration.WATCHER
    keep_resource_name: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sharing is Sharing.PARTITION and self.partition is None:
            raise ValueError(
                "sharing: partition needs partition.devicePlugin, the devices of the device plugin"
            )
        if self.sharing is not Sharing.PARTITION and self.partition is not None:
            raise ValueError("partition is used with sharing: partition only; write that, or leave it out")


@dataclass(frozen=True, slots=True)
class _File:
    """The configuration of one bridge.

    Attributes:
        api_version: version of this format.
        kind: what the file is.
        groups: what is offered; at least one.
        mode: the mode of groups that name none, on nodes whose labels say nothing.
        daemon: settings of the daemon itself.
    """

    api_version: Literal["device-bridge.io/v1alpha1"]
    kind: Literal["BridgeConfig"]
    groups: Annotated[tuple[_Group, ...], NOT_EMPTY]
    mode: Mode = Mode.DUAL
    daemon: Daemon = field(default_factory=Daemon)


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigErrors: it cannot be read, or not be used; every reason at once.
    """
    return parse(_text(path), source=str(path))


def load_json(path: Path) -> str:
    """A configuration file as JSON, for a reader without YAML. Raises as `load` does."""
    return as_json(_text(path), source=str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "the configuration file does not exist; make it, or name another"
        raise ConfigErrors(str(path), [ConfigError("", message)]) from None
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else f"not UTF-8 text ({error.reason})"
        raise ConfigErrors(str(path), [ConfigError("", f"the file cannot be read: {said}")]) from error


def parse(text: str, *, source: str = "configuration") -> Config:
    """Read a configuration from text.

    Raises:
        ConfigErrors: as `load`.
    """
    return _read(text, source)[1]


def as_json(text: str, *, source: str = "configuration") -> str:
    """A configuration as JSON that means the same. Raises as `load` does."""
    return json.dumps(_read(text, source)[0])


def _read(text: str, source: str) -> tuple[object, Config]:
    """What is written, and what it comes to. Raises ConfigErrors."""
    data = _json(text)
    with contextlib.suppress(Invalid):  # then it is told below, with lines
        return data, _config(data)
    # The daemon is handed JSON by the command, and spared the library.
    from bridge.config.source import SyntaxFault, read

    try:
        document = read(text)
    except SyntaxFault as fault:
        error = ConfigError("", f"not valid YAML: {fault}", fault.line)
        raise ConfigErrors(source, [error]) from fault
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else f"a {type(document.data).__name__}"
        message = f"must be a mapping with apiVersion, kind and groups; it is {found}"
        raise ConfigErrors(source, [ConfigError("", message)])
    errors = [*document.duplicates]
    try:
        config = _config(document.data)
    except Invalid as invalid:
        errors += invalid.errors
    if errors:
        raise ConfigErrors(source, [_placed(error, document) for error in errors])
    return document.data, config


def _json(text: str) -> object:
    """Its data where it is JSON, which is YAML too, and names nothing twice; otherwise None."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key is written twice")
        return found

    def refused(constant: str) -> object:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refused)
    except ValueError:
        return None


def _config(data: object) -> Config:
    """What the file says. Raises Invalid."""
    if not isinstance(data, dict):
        raise Invalid([])
    errors: list[FieldError] = []
    file: _File | None = None
    try:
        file = decode(_File, data)
    except Invalid as error:
        errors += error.errors
    options = _options(data, errors)
    _clashes(data, errors)
    if errors or file is None:
        raise Invalid(errors)
    return Config(
        file.mode,
        tuple(_group(group, file.mode, options[i]) for i, group in enumerate(file.groups)),
        file.daemon,
    )


def schema() -> dict[str, object]:
    """The JSON Schema of the file, the options of every kind included."""
    from bridge.devices.json_schema import json_schema  # the daemon never asks for it

    base, definitions = json_schema(_File)
    branches: list[object] = []
    for kind in KINDS.values():
        options, below = json_schema(kind.options)
        name = kind.options.__name__
        definitions |= below | {name: options}
        branches.append(
            {
                "if": {"properties": {"kind": {"const": kind.name}}},
                "then": {"properties": {"options": {"$ref": f"#/$defs/{name}"}}},
            }
        )
    group = definitions[_Group.__name__]
    group["properties"]["kind"] |= {"enum": list(KINDS)}
    del group["properties"]["kind"]["type"]
    group["allOf"] = branches
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": KIND}
    return {**head, **base, "$defs": definitions}


def _group(written: _Group, mode: Mode, options: object) -> Group:
    return Group(
        name=written.name,
        kind=written.kind,
        resource_name=written.resource_name or default_resource(written.name),
        driver_name=written.driver_name or default_driver(written.name),
        mode=written.mode or mode,
        sharing=written.sharing,
        partition=written.partition.partition() if written.partition else None,
        binding=written.binding,
        registration=written.registration,
        options=options,
        keep_resource_name=written.keep_resource_name,
    )


def _raw_groups(data: Mapping[str, object]) -> list[tuple[int, Mapping[str, object]]]:
    """The groups that are mappings, with their positions: checked even where others are broken."""
    groups = data.get("groups")
    if not isinstance(groups, list):
        return []
    return [(i, group) for i, group in enumerate(groups) if isinstance(group, dict)]


def _options(data: Mapping[str, object], errors: list[FieldError]) -> dict[int, object]:
    """Each group's options by its kind's own schema."""
    valid: dict[int, object] = {}
    for i, group in _raw_groups(data):
        name = group.get("kind")
        if not isinstance(name, str):
            continue
        kind = KINDS.get(name)
        if kind is None:
            message = f"there is no kind {name!r}; kinds: {', '.join(KINDS)}"
            close = unknown_name(name, list(KINDS))
            errors.append(
                FieldError(f"groups[{i}].kind", f"{message}; {close}" if close.startswith("did") else message)
            )
            continue
        raw = group.get("options", {})
        if not isinstance(raw, dict):
            continue  # told by the group's own schema
        try:
            valid[i] = decode(kind.options, raw, ("groups", i, "options"))
        except Invalid as error:
            errors += error.errors
    return valid


def _clashes(data: Mapping[str, object], errors: list[FieldError]) -> None:
    """Names that two groups have in common: each must lead to one group."""
    names: list[tuple[str, str, Callable[[str], str] | None]] = [
        ("name", "group", None),
        ("resourceName", "extended resource", default_resource),
        ("driverName", "driver", default_driver),
    ]
    for name, what, default in names:
        users: dict[str, list[int]] = defaultdict(list)
        defaulted: set[str] = set()
        for i, group in _raw_groups(data):
            value = group.get(name)
            own = group.get("name")
            if value is None and default is not None and isinstance(own, str) and own not in defaulted:
                defaulted.add(own)  # of two groups with one name, that is told, not what follows from it
                value = default(own)
            if isinstance(value, str):
                users[value].append(i)
        for value, positions in users.items():
            for i in positions[1:]:
                owner = f"groups[{positions[0]}]"
                errors.append(
                    FieldError(
                        f"groups[{i}].{name}", f"{owner} has the {what} {value!r} already; take another"
                    )
                )


def _placed(error: FieldError, document: Source) -> ConfigError:
    """With the line of the field, or of the nearest field around it that is written."""
    path = error.path
    while path and path not in document.lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return ConfigError(error.path, error.message, document.lines.get(path))
