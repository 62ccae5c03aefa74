"""The samples that are manifests: which files there are, and what they need to be tried on a real node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

SAMPLES = Path(__file__).parents[2] / "samples"

NX_GZIP = "/dev/crypto/nx-gzip"


@dataclass(frozen=True, slots=True)
class Scene:
    """One folder of samples that belong together.

    Attributes:
        folder: below `samples/`.
        devices: nodes to be made, so many that all of its files have theirs at once.
        config: its configuration, below `samples/`; empty where `groups` says it.
        groups: the groups of files that are about no configuration.
    """

    folder: str
    devices: tuple[str, ...]
    config: str = ""
    groups: tuple[Mapping[str, object], ...] = field(default=())

    def __str__(self) -> str:
        return self.folder

    @property
    def workloads(self) -> list[Path]:
        """Its files that users apply."""
        mine = sorted((SAMPLES / self.folder).rglob("*.yaml"))
        return [path for path in mine if not is_configuration(path) and path.name != "classes.yaml"]

    @property
    def classes(self) -> list[Path]:
        """Its files that administrators apply first."""
        return sorted((SAMPLES / self.folder).glob("classes.yaml"))


def _nodes(pattern: str, *numbers: int) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in numbers)


def _plain(name: str, pattern: str) -> Mapping[str, object]:
    return {"name": name, "kind": "device-node", "options": {"include": [pattern]}}


SCENES = (
    Scene(
        "power-device-plugin",
        (*_nodes("/dev/dm-{}", 0, 1, 2, 3, 4, 5), NX_GZIP),
        "power-device-plugin/config.yaml",
    ),
    Scene("device-node", _nodes("/dev/crypto/acc{}", *range(6)), "device-node/config.yaml"),
    Scene("nx-gzip", (NX_GZIP,), "nx-gzip/config.yaml"),
    Scene(
        "generic-device-plugin",
        ("/dev/video0", "/dev/snd-controlC0", "/dev/snd-pcmC0D0c"),
        "generic-device-plugin/config.yaml",
    ),
    # `bridge convert` before and after. Four replicas of two accelerators, on both planes at once.
    Scene(
        "workloads",
        (
            *_nodes("/dev/crypto/acc{}", *range(16)),
            *_nodes("/dev/crypto/serial{}", *range(4)),
            *_nodes("/dev/crypto/render{}", 0, 1),
            NX_GZIP,
        ),
        groups=(
            *(_plain(name, f"/dev/crypto/{name}[0-9]*") for name in ("acc", "serial", "render")),
            {"name": "nx", "kind": "nx-gzip"},
        ),
    ),
)


def is_configuration(path: Path) -> bool:
    """Whether a file is read by the bridge or by a plugin, and not applied by users."""
    return {"BridgeConfig", "ConfigMap"} >= {one["kind"] for one in objects(path)}


def objects(path: Path) -> list[Object]:
    """The objects of a file, those of lists for themselves."""
    found = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]
    return [each for one in found for each in (one["items"] if one["kind"] == "List" else [one])]


def pod_spec(one: Object) -> Object | None:
    """The pods that an object is or makes; None where it makes none."""
    paths = {"Pod": ("spec",), "CronJob": ("spec", "jobTemplate", "spec", "template", "spec")}
    paths |= dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "Job"), ("spec", "template", "spec"))
    path = paths.get(one["kind"])
    if path is None:
        return None
    for name in path:
        one = one[name]
    return one


def containers(one: Object) -> Iterator[Object]:
    """The containers of an object's pods."""
    spec = pod_spec(one) or {}
    yield from (*spec.get("initContainers", ()), *spec.get("containers", ()))
