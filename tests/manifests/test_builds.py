"""Every build by kustomize itself. It is one of the programs of the real node, so these run where that does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bridge.config import parse
from tests.docs.pages import blocks, pages
from tests.docs.test_commands import environment, folder_of
from tests.manifests import sayings
from tests.manifests.builds import (
    CONFIGURED,
    DROP_IN,
    KUSTOMIZE,
    MERGED,
    OWN_GROUPS,
    REPOSITORY,
    Build,
    Object,
    built,
    components,
    every,
    only,
)

# The first build of the programs takes minutes.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

COMBINATIONS = [
    pytest.param(one, id=str(one), marks=[pytest.mark.ci] if len(one.components) < 2 else [])
    for one in every()
]
"""Alone and with one component in every run; all of them take minutes."""

STACKS = [
    pytest.param(one, component, id=f"{one}, {component}", marks=[] if component else [pytest.mark.ci])
    for component in ("", *components())
    for one in every()
    if not one.components
]

OWN = """apiVersion: device-bridge.io/v1alpha1
kind: BridgeConfig
mode: device-plugin
groups: [{name: acc, kind: device-node, options: {include: [/dev/own*]}}]
daemon: {metricsAddress: "[::]:9464"}
"""

OTHER_NAMESPACE = "namespace: devices\n"


@pytest.mark.parametrize("one", COMBINATIONS)
def test_a_build_is_whole(one: Build, tmp_path: Path) -> None:
    sayings.whole(one.objects(tmp_path))


@pytest.mark.ci
@pytest.mark.parametrize("root", ["base", "overlays/openshift"])
def test_an_overlay_that_moves_the_namespace_takes_everything_along(root: str, tmp_path: Path) -> None:
    objects = Build(root, ("monitoring",), OTHER_NAMESPACE).objects(tmp_path)
    sayings.whole(objects)
    assert only(objects, "Namespace")["metadata"]["name"] == "devices"
    assert {one["metadata"].get("namespace", "devices") for one in objects} == {"devices"}


@pytest.mark.parametrize(("one", "component"), STACKS)
def test_an_overlay_of_ones_own_has_its_own_configuration(one: Build, component: str, tmp_path: Path) -> None:
    """Whatever it stands on and lists, and in whichever order."""
    if component == DROP_IN and one.root == CONFIGURED:
        pytest.skip("it is in there")
    text = OWN.replace("acc", "mine")
    (tmp_path / "config.yaml").write_text(text)
    objects = Build(one.root, (component,) if component else (), MERGED).objects(tmp_path)
    assert sayings.configuration(objects) == parse(text)


def with_groups(folder: Path, *order: str) -> list[Object]:
    """The overlay that docs/configuration.md shows, with the two groups of an import; `groups` is that component."""
    samples = REPOSITORY / "samples" / "power-device-plugin"
    (folder / "groups").mkdir()
    shutil.copy(samples / "config.yaml", folder)
    shutil.copy(samples / "classes.yaml", folder / "groups" / "groups.yaml")
    (folder / "groups" / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nresources: [groups.yaml]\n"
    )
    groups = os.path.relpath(folder / "groups", KUSTOMIZE / "components")
    return Build("base", tuple(groups if name == "groups" else name for name in order), MERGED).objects(
        folder
    )


@pytest.mark.ci
@pytest.mark.parametrize(
    "order",
    [
        (OWN_GROUPS, "groups"),
        (DROP_IN, OWN_GROUPS, "groups"),
        (OWN_GROUPS, "monitoring", "groups", "operators"),
        (OWN_GROUPS, "groups", "extended-resource-names"),
    ],
    ids="+".join,
)
def test_own_groups_and_what_is_printed_for_them_are_whole(order: tuple[str, ...], tmp_path: Path) -> None:
    objects = with_groups(tmp_path, *order)
    sayings.whole(objects)
    assert len([made for made in objects if made["kind"] == "DeviceClass"]) == 2


@pytest.mark.ci
@pytest.mark.parametrize(
    "order", [("groups",), ("groups", DROP_IN), (OWN_GROUPS, "groups", DROP_IN)], ids="+".join
)
def test_groups_that_would_undo_one_another_are_an_error(order: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"already registered|testing value"):
        with_groups(tmp_path, *order)


OVERLAYS = [
    (page, block.file)
    for page in pages()
    for block in blocks(page)
    if block.file.endswith("/kustomization.yaml") and "kind: Kustomization" in block.text
]


@pytest.mark.ci
@pytest.mark.parametrize(("page", "file"), OVERLAYS, ids=lambda one: getattr(one, "name", one))
def test_an_overlay_of_the_pages_is_whole(page: Path, file: str, tmp_path: Path) -> None:
    """With the files that the page writes, and those that its commands make."""
    folder = folder_of(page, tmp_path)
    for command in (command for block in blocks(page) for command in block.commands):
        if command.startswith("bridge config "):
            bash = ["bash", "-euo", "pipefail", "-c", command]
            subprocess.run(bash, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment(folder))
    sayings.whole(built(folder / Path(file).parent))


@pytest.mark.ci
def test_an_overlay_of_ones_own_as_the_base_describes_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(OWN)
    own = Build(
        "base",
        ("monitoring",),
        MERGED + "images: [{name: device-bridge, newName: images.example/device-bridge, newTag: '1.2.3'}]\n",
    )
    objects = own.objects(tmp_path)
    sayings.whole(objects)
    assert sayings.configuration(objects).mode.value == "device-plugin"
    pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert [c["image"] for c in pod["containers"]] == ["images.example/device-bridge:1.2.3"]


@pytest.mark.ci
def test_a_change_of_the_configuration_rolls_the_daemons(tmp_path: Path) -> None:
    names = set()
    for number, own in enumerate(["", MERGED]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.yaml").write_text(OWN)
        pod = only(Build("base", (), own).objects(folder), "DaemonSet")["spec"]["template"]["spec"]
        names |= {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
    assert len(names) == 2


@pytest.mark.ci
def test_classes_are_of_the_version_and_the_name_that_components_say(tmp_path: Path) -> None:
    found = {}
    for one in (
        Build("base"),
        Build("base", ("deviceclasses-v1beta1",)),
        Build("overlays/openshift-4.19"),
        Build("overlays/openshift", ("extended-resource-names",)),
        Build("overlays/openshift", (DROP_IN, "extended-resource-names")),
        Build("overlays/openshift-4.19", (DROP_IN,)),
        # In the other order a name is missing, never wrong; an older class has none.
        Build("base", ("extended-resource-names", DROP_IN)),
        Build("base", ("deviceclasses-v1beta1", "extended-resource-names")),
        Build("base", ("extended-resource-names", "deviceclasses-v1beta1")),
    ):
        folder = tmp_path / str(one)
        folder.mkdir()
        made = only(one.objects(folder), "DeviceClass")
        found[str(one)] = made["apiVersion"], made["spec"].get("extendedResourceName")
    assert found == {
        "base": ("resource.k8s.io/v1", None),
        "base+deviceclasses-v1beta1": ("resource.k8s.io/v1beta1", None),
        "openshift-4.19": ("resource.k8s.io/v1beta1", None),
        "openshift+extended-resource-names": ("resource.k8s.io/v1", "device-bridge.io/acc"),
        "openshift+power-device-plugin+extended-resource-names": (
            "resource.k8s.io/v1",
            "power-dev-plugin/dev",
        ),
        "openshift-4.19+power-device-plugin": ("resource.k8s.io/v1beta1", None),
        "base+extended-resource-names+power-device-plugin": ("resource.k8s.io/v1", None),
        "base+deviceclasses-v1beta1+extended-resource-names": ("resource.k8s.io/v1beta1", None),
        "base+extended-resource-names+deviceclasses-v1beta1": ("resource.k8s.io/v1beta1", None),
    }
