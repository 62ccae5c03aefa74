"""The configuration of power-device-plugin as one of the bridge. Pure.

The plugin gives every container that asks every device it has, whatever and however many are asked for. That is not
kept unless it is asked for (`together`): disks and accelerator are then two groups, and a container gets as many
devices as it asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.config import ConfigError, ConfigErrors, Mode
from bridge.config.model import API_VERSION, KIND
from bridge.config_import import fields as of
from bridge.config_import.carrier import Carried, carried
from bridge.config_import.durations import seconds
from bridge.config_import.fields import Fields
from bridge.config_import.manifests import around
from bridge.config_import.notes import Note
from bridge.config_import.paths import Paths, all_of_a_node, chosen
from bridge.devices.kinds.nx_gzip import NODE as NX_GZIP
from bridge.devices.kinds.options import MOST_SHARES

RESOURCE = "power-dev-plugin/dev"
"""What the plugin offers, everything under one name; it cannot be configured there."""

NX_RESOURCE = "power-dev-plugin/nx-gzip"

UNLIMITED = 100_000
"""From this `upper-limit` on, and without one, the plugin does not count."""

MANY = 250
"""Holders of all devices together where there is no limit: as many as OpenShift runs pods on a node."""

_PERMISSIONS = frozenset({"r", "w", "m", "rw", "rm", "wm", "rwm"})


@dataclass(frozen=True, slots=True)
class Options:
    """What the import is told.

    Attributes:
        name: of the group that has the plugin's resource name.
        mode: that is written into the configuration; the plugin knows `device-plugin` alone.
        together: whether one request is to mean every device, as the plugin has it.
    """

    name: str = "dev"
    mode: Mode = Mode.DEVICE_PLUGIN
    together: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """The result.

    Attributes:
        config: a BridgeConfig, as it is written, without defaults.
        notes: what has no counterpart, and what is otherwise here, in the order of the fields.
    """

    config: Mapping[str, Any]
    notes: tuple[Note, ...]


@dataclass(slots=True)
class _Import:
    """One import: what it has found so far."""

    options: Options
    fields: Fields
    notes: list[Note] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)

    def note(self, name: str, text: str) -> None:
        self.notes.append(Note(name, text))


def power_device_plugin(text: str, source: str, options: Options) -> Imported:
    """Read its `config.json`, or the manifests that carry it.

    Args:
        text: the file.
        source: what it is called, for errors.
        options: what is wanted.

    Raises:
        ConfigErrors: with every field that cannot be taken up.
    """
    found = carried(text, source)
    fields = of.decode(found.fields)
    if fields.errors:
        raise ConfigErrors(source, fields.errors)
    one = _Import(options, fields)
    paths = chosen(fields.values[of.INCLUDE], fields.values[of.EXCLUDE], fields.values[of.NX_GZIP])
    one.errors += paths.errors
    groups = _together(one, paths) if options.together else _apart(one, paths)
    daemon = _daemon(one)
    _notes(one, paths, found)
    if one.errors:
        raise ConfigErrors(source, one.errors)
    config = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "mode": options.mode.value,
        "groups": groups,
        "daemon": daemon,
    }
    return Imported(config, tuple(one.notes))


# Groups


def _together(one: _Import, paths: Paths) -> list[dict[str, Any]]:
    if paths.nothing_left:
        one.errors.append(_nothing())
        return []
    nx = [NX_GZIP] if paths.nx_gzip and not paths.matches_nx_gzip else []
    include = [*(paths.include or all_of_a_node()), *nx]
    if not paths.include and not paths.only_nx_gzip and nx:
        # `spare` is of disks: the accelerator is none.
        one.errors.append(
            ConfigError(
                of.INCLUDE,
                f"with --together it has to say which disks are meant besides {NX_GZIP}: all of a node would have its "
                "own among them",
            )
        )
    if paths.only_nx_gzip:
        include = nx
    options = {**_disks(paths, include), "together": True, **_permissions(one)}
    return [
        _group(one, one.options.name, RESOURCE, "device-node", {**options, "replicas": _limit(one) or MANY})
    ]


def _apart(one: _Import, paths: Paths) -> list[dict[str, Any]]:
    """Disks under the plugin's name; the accelerator under its own, or where it is alone under the plugin's."""
    groups = []
    limit, permissions = _limit(one), _permissions(one)
    name, resource = one.options.name, RESOURCE
    if paths.nothing_left:
        one.errors.append(_nothing())
    if not paths.only_nx_gzip:
        replicas = {"replicas": limit} if limit > 1 else {}
        disks = _disks(paths, paths.include or all_of_a_node())
        if paths.matches_nx_gzip and paths.nx_gzip:
            disks["exclude"] = [*disks.get("exclude", ()), NX_GZIP]
        options = {**disks, **permissions, **replicas}
        groups.append(_group(one, name, resource, "device-node", options))
        name, resource = ("nx-gzip" if name != "nx-gzip" else "nx"), NX_RESOURCE
    if paths.nx_gzip:
        credits = {"credits": limit} if limit else {}
        groups.append(_group(one, name, resource, "nx-gzip", {**credits, **permissions}))
    return groups


def _group(one: _Import, name: str, resource: str, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "resourceName": resource,
        "keepResourceName": True,
        "options": dict(options),
    }


def _disks(paths: Paths, include: Sequence[str]) -> dict[str, Any]:
    """Which nodes, as options of the kind."""
    exclude = list(paths.exclude)
    options: dict[str, Any] = {"include": list(include)}
    if exclude:
        options["exclude"] = exclude
    if not paths.include and not paths.only_nx_gzip:
        options["spare"] = True
    if paths.may_be_links:
        options["asMatched"] = True
    return options


def _nothing() -> ConfigError:
    return ConfigError(of.EXCLUDE, f"takes away all that {of.INCLUDE} names, so nothing would be offered")


# Fields


def _limit(one: _Import) -> int:
    """How many may have one device; 0: not counted."""
    limit: int = one.fields.values[of.LIMIT]
    return 0 if limit <= 0 or limit >= UNLIMITED else min(limit, MOST_SHARES)


def _permissions(one: _Import) -> dict[str, str]:
    said = str(one.fields.values[of.PERMISSIONS]).lower()
    return {"permissions": said if said in _PERMISSIONS else "rw"}


def _daemon(one: _Import) -> dict[str, Any]:
    """What the manifests of the bridge need, and how often it looks again."""
    daemon: dict[str, Any] = {"metricsAddress": "0.0.0.0:9464"}
    if one.fields.values[of.STRATEGY] == "time" and one.fields.values[of.INTERVAL]:
        try:
            wanted = seconds(one.fields.values[of.INTERVAL])
        except ValueError as error:
            one.errors.append(ConfigError(of.INTERVAL, f"{error}; the plugin took 60m instead"))
        else:
            daemon["rescanSeconds"] = min(max(1, round(wanted)), 86_400)
    return daemon


# Notes


def _notes(one: _Import, paths: Paths, found: Carried) -> None:
    for note in (*_of_devices(one, paths), *_of_paths(one, paths), *_of_fields(one)):
        one.notes.append(note)
    one.notes += around(found.environment, found.scheduling)


def _of_devices(one: _Import, paths: Paths) -> Iterator[Note]:
    if one.options.together:
        yield Note(
            RESOURCE,
            "one request means every device below, as there. It gives containers more than they need: leave --together "
            "out where that is not wanted. A node shows the number of holders, not of paths.",
        )
        return
    if not paths.only_nx_gzip:
        yield Note(
            RESOURCE,
            "a container gets as many devices as it asks for. There each got all of them, whatever it asked for: "
            "containers that need every disk ask for so many, or import with --together.",
        )
        if paths.nx_gzip:
            yield Note(
                of.NX_GZIP,
                f"the accelerator is a resource of its own, {NX_RESOURCE}: there whoever wanted it got every disk "
                "with it. Pods that use it ask for that name; exchange the two names where most want the accelerator.",
            )


def _of_paths(one: _Import, paths: Paths) -> Iterator[Note]:
    if paths.nx_gzip and not one.options.together:
        yield Note(of.NX_GZIP, "offered on nodes that have it; there it was offered on every node.")
    if paths.nx_was_lost:
        yield Note(of.NX_GZIP, f"takes effect: there {of.INCLUDE}, which does not name {NX_GZIP}, undid it.")
    if one.fields.values[of.NX_GZIP] and not paths.nx_gzip and not paths.matches_nx_gzip:
        yield Note(of.NX_GZIP, f"without effect: {of.EXCLUDE} takes {NX_GZIP} away.")
    if not paths.include and not paths.only_nx_gzip:
        yield Note(
            of.INCLUDE,
            "names nothing, so it is all disks of a node, except those that the node uses itself: partitions, what has "
            "partitions, what something is built on, swap and mounted file systems, loop devices. There those, the "
            "root disk too, were given to containers. Better name the disks: not every mount can be seen from a pod.",
        )
    if paths.exclude and paths.include:
        yield Note(of.EXCLUDE, f"always counts, under every name of a disk; there {of.INCLUDE} won over it.")


def _of_fields(one: _Import) -> Iterator[Note]:
    values, written = one.fields.values, one.fields.written
    said = str(values[of.PERMISSIONS])
    if said and said.lower() not in _PERMISSIONS:
        yield Note(of.PERMISSIONS, f"{said!r} is none that the plugin knows, and it took rw: so does this.")
    yield from _of_limit(one)
    if of.STRATEGY in written or of.INTERVAL in written:
        yield Note(
            f"{of.STRATEGY}, {of.INTERVAL}",
            "the bridge hears of each change at once and tells the kubelet, which the plugin never did. Only how often "
            "it looks for what it might have missed can be said, in rescanSeconds.",
        )
    if values[of.STRATEGY] != "time" and not _understood(str(values[of.INTERVAL])):
        yield Note(
            of.INTERVAL,
            f"{values[of.INTERVAL]!r} was not understood: a length of time is written like 30s or 60m. The plugin took "
            "60m; nothing here depends on it.",
        )
    for name, near in one.fields.unknown.items():
        hint = f"; was {near} meant?" if near else ""
        yield Note(name, f"the plugin knows no such field and passed over it: it is not taken up{hint}")


def _understood(interval: str) -> bool:
    try:
        seconds(interval or "0")
    except ValueError:
        return False
    return True


def _of_limit(one: _Import) -> Iterator[Note]:
    limit, written = _limit(one), int(one.fields.values[of.LIMIT])
    if limit:
        less = f" {written} is more than the {MOST_SHARES} that a node can show." if limit < written else ""
        yield Note(
            of.LIMIT,
            f"so many holders at a time of each device, and one that ends makes room; there whoever had ended was "
            f"counted for ever.{less} A node shows devices times holders.",
        )
    elif one.options.together:
        yield Note(of.LIMIT, f"not counted there; here {MANY} containers of a node at a time, see replicas.")
    else:
        yield Note(of.LIMIT, "not counted there; here a disk has one holder. For more say replicas.")
