"""Where a `config.json` is: alone in a file, or in the manifests that carry it to the nodes. Pure.

Manifests may come as a stream, as lists, or as the API server gives them. Objects that say nothing about the
configuration (projects, accounts, rights) are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from bridge.config import ConfigError, ConfigErrors

FILE = "config.json"

_WORKLOADS = ("DaemonSet", "Deployment", "Pod")

_PLUGIN = re.compile(r"power-dev(ice)?-plugin")
_BRIDGE = "device-bridge"
"""The name of its DaemonSet, which may have the plugin's label and is not the plugin."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What was found.

    Attributes:
        fields: the fields of the `config.json`; empty where manifests have none, as the plugin then runs without.
        before: path of the `config.json` in its manifest, for errors: `data["config.json"]`; empty for a bare file.
        environment: variables of the plugin's containers; what comes from elsewhere is a text that says so.
        scheduling: nodeSelector, affinity and tolerations of its pods, as they are written.
    """

    fields: Mapping[str, Any]
    before: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    scheduling: Mapping[str, Any] = field(default_factory=dict)


def carried(text: str, source: str) -> Carried:
    """Find the configuration in a file.

    Raises:
        ConfigErrors: there is none, more than one, or it is no JSON.
    """
    bare = text.lstrip("\ufeff \t\r\n").startswith("{")
    if bare and (fields := _json(text, source, "")) is not None and "kind" not in fields:
        return Carried(fields)
    objects = list(_objects(text, source))
    configured = [one for one in objects if one.get("kind") == "ConfigMap" and FILE in _of(one, "data")]
    workloads = [one for one in objects if one.get("kind") in _WORKLOADS]
    pods = [_pod(one) for one in workloads if _is_the_plugin(one)]
    if len(configured) > 1:
        names = " and ".join(str(_of(one, "metadata").get("name")) for one in configured)
        _refuse(source, "", f"several ConfigMaps have a {FILE}: {names}; give the one that the plugin mounts")
    if not configured and workloads and not pods:
        # Without a configuration the plugin offers every disk: nobody is to have that by a wrong file.
        _refuse(
            source,
            "",
            "no power-device-plugin in it, by image, name or label: "
            f"give its {FILE}, its ConfigMap, or its DaemonSet",
        )
    if not configured and not pods:
        _refuse(source, "", f"there is no configuration in it: give {FILE}, its ConfigMap, or its DaemonSet")
    before = f'data["{FILE}"]' if configured else ""
    said = _of(configured[0], "data")[FILE] if configured else "{}"
    if not isinstance(said, str):
        _refuse(source, before, "must be a text, as data of a ConfigMap is")
    return Carried(
        _json(said, source, before),
        before,
        {name: value for pod in pods for name, value in _environment(pod)},
        {
            name: pod[name]
            for pod in pods
            for name in ("nodeSelector", "affinity", "tolerations")
            if pod.get(name)
        },
    )


def _json(text: str, source: str, before: str) -> dict[str, Any]:
    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            _refuse(
                source,
                twice[0] if not before else f"{before}: {twice[0]}",
                "is there twice; keep one of them",
            )
        return dict(pairs)

    try:
        fields = json.loads(text.lstrip("\ufeff"), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        # The plugin goes on without a configuration then, and its first Allocate ends it.
        raise ConfigErrors(source, [ConfigError(before, f"not JSON: {error.msg}", error.lineno)]) from error
    if not isinstance(fields, dict):
        _refuse(source, before, f"must be an object with fields, not {json.dumps(fields)[:40]}")
    return fields


def _objects(text: str, source: str) -> Iterator[Mapping[str, Any]]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        line = mark.line + 1 if mark else None
        message = f"neither JSON nor YAML: {str(error).splitlines()[0]}"
        raise ConfigErrors(source, [ConfigError("", message, line)]) from error
    for one in documents:
        yield from _flat(one)


def _flat(one: object) -> Iterator[Mapping[str, Any]]:
    """An object, or those of a list."""
    if isinstance(one, Mapping):
        items = one.get("items")
        if str(one.get("kind", "")).endswith("List") and isinstance(items, list):
            for item in items:
                yield from _flat(item)
        else:
            yield one


def _pod(one: Mapping[str, Any]) -> dict[str, Any]:
    """What its pods are."""
    return _of(one, "spec") if one["kind"] == "Pod" else _of(one, "spec", "template", "spec")


def _is_the_plugin(one: Mapping[str, Any]) -> bool:
    """Whether a workload names the plugin: in its own name or labels, its pods' labels, or an image."""
    labels = {**_of(one, "spec", "template", "metadata", "labels"), **_of(one, "metadata", "labels")}
    name = _of(one, "metadata").get("name")
    if _BRIDGE in (name, labels.get("app.kubernetes.io/name")):
        return False
    images = [container.get("image") for container in _pod(one).get("containers") or ()]
    named = [name, *labels.values(), *images]
    return any(_PLUGIN.search(str(text)) for text in named)


def _environment(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for container in pod.get("containers") or ():
        for variable in container.get("env") or ():
            yield str(variable.get("name")), str(variable.get("value", "(from elsewhere)"))


def _of(one: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """A mapping below, or an empty one."""
    here: Any = one
    for name in path:
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, dict) else {}


def _refuse(source: str, path: str, message: str) -> NoReturn:
    raise ConfigErrors(source, [ConfigError(path, message)])
