"""Every way in which the manifests are put together, and kustomize to do it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import build

Object = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
KUSTOMIZE = REPOSITORY / "kustomize"

NEWER_API = "extended-resource-names"
"""Needs `resource.k8s.io/v1`."""

OLDER_API = "deviceclasses-v1beta1"

DROP_IN = "power-device-plugin"
"""Comes before what names its class."""

OWN_GROUPS = "own-groups"
"""Takes groups away, and is whole with a component of the user's behind it."""

CONFIGURED = "overlays/power-device-plugin"
"""That component with a configuration."""

ADDS_ALONE = "operators"
"""Has objects of its own and touches no other: one build of each root shows it."""

OTHER_ROOT = "overlays/microk8s"
"""Needs `daemon` in a configuration."""

MERGED = """
configMapGenerator:
- {name: device-bridge, namespace: device-bridge, behavior: merge, files: [config.yaml]}
"""
"""A configuration of one's own in an overlay, as the base describes it."""


@dataclass(frozen=True, slots=True)
class Build:
    """One overlay, or the base, with some components.

    Attributes:
        root: folder below `kustomize/`.
        components: names of folders of `kustomize/components`, in this order.
        more: further fields of the kustomization that puts them together.
    """

    root: str
    components: tuple[str, ...] = ()
    more: str = ""

    def __str__(self) -> str:
        return "+".join((self.root.removeprefix("overlays/"), *self.components))

    @property
    def resource_api(self) -> str:
        """The version of `resource.k8s.io` that it is written for."""
        old = OLDER_API in self.components or self.root == "overlays/openshift-4.19"
        return "v1beta1" if old else "v1"

    def text(self, folder: Path) -> str:
        """What kustomize makes of it; `folder` is for the kustomization and has to be empty.

        Raises:
            AssertionError: kustomize refuses it, or has something to warn of.
        """
        below = [_relative(KUSTOMIZE / "components" / name, folder) for name in self.components]
        kustomization = {"resources": [_relative(KUSTOMIZE / self.root, folder)], "components": below}
        own = self.more
        if DROP_IN in self.components and "configMapGenerator" not in own:
            shutil.copy(KUSTOMIZE / CONFIGURED / "config.yaml", folder)
            own += MERGED
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization) + own)
        return _kustomize(folder)

    def objects(self, folder: Path) -> list[Object]:
        """The same, read."""
        return [one for one in yaml.safe_load_all(self.text(folder)) if one]


def built(folder: Path) -> list[Object]:
    """The objects of any kustomization. Raises AssertionError like `Build.text`."""
    return [one for one in yaml.safe_load_all(_kustomize(folder)) if one]


def _kustomize(folder: Path) -> str:
    command: list[str | Path] = [build.runtime() / "kustomize", "build", folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{folder}: {done.stderr}"
    return done.stdout


def every() -> list[Build]:
    """The base and each overlay with every set of components that makes sense together."""
    roots = ["base", *sorted(f"overlays/{path.name}" for path in (KUSTOMIZE / "overlays").iterdir())]
    return [one for root in roots for chosen in _subsets(components()) if _fits(one := Build(root, chosen))]


def components() -> list[str]:
    """The components there are, in the order in which they can be listed."""
    names = (path.name for path in (KUSTOMIZE / "components").iterdir())
    return sorted(names, key=lambda name: (name != DROP_IN, name))


def _fits(one: Build) -> bool:
    chosen = set(one.components)
    if ADDS_ALONE in chosen and len(chosen) > 1:
        return False
    if one.root == "overlays/openshift-4.19" and OLDER_API in chosen:
        return False  # it has it already
    if OWN_GROUPS in chosen:
        return False  # see `test_own_groups…`
    if "sandboxed-devices" in chosen and one.root in ("overlays/openshift", "overlays/openshift-4.19"):
        return False  # its init container needs a capability
    drops_in = DROP_IN in chosen or one.root == CONFIGURED
    if drops_in and {"nfd", "sandboxed-devices"} & chosen:
        return False  # `nfd` says otherwise where the daemon runs; the other devices are of another group
    if DROP_IN in chosen and one.root in (CONFIGURED, OTHER_ROOT):
        return False  # it has it already; the configuration needs more
    return not (NEWER_API in chosen and one.resource_api == "v1beta1")


def _subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    sizes = range(len(names) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(names, size)]


def _relative(path: Path, folder: Path) -> str:
    """Kustomize takes no absolute paths."""
    return os.path.relpath(path.resolve(), folder.resolve())


def read(path: Path) -> list[Object]:
    """The objects of one file."""
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def only(objects: Sequence[Object], kind: str, name: str = "") -> Object:
    """The one object of this kind, or of this kind and name.

    Raises:
        AssertionError: there is none, or more than one.
    """
    found = [one for one in objects if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]
