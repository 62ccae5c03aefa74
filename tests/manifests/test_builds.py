"""Every build by kustomize itself. It is one of the programs of the real node, so these run where that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.manifests import sayings
from tests.manifests.builds import DROP_IN, Build, every, only

# The first build of the programs takes minutes.
pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(1800)]

OTHER_NAMESPACE = "namespace: devices\n"


@pytest.mark.parametrize("one", every(), ids=str)
def test_a_build_is_whole(one: Build, tmp_path: Path) -> None:
    sayings.whole(one.objects(tmp_path))


@pytest.mark.parametrize("root", ["base", "overlays/openshift"])
def test_an_overlay_that_moves_the_namespace_takes_everything_along(root: str, tmp_path: Path) -> None:
    objects = Build(root, ("monitoring",), OTHER_NAMESPACE).objects(tmp_path)
    sayings.whole(objects)
    assert only(objects, "Namespace")["metadata"]["name"] == "devices"
    assert {one["metadata"].get("namespace", "devices") for one in objects} == {"devices"}


def test_an_overlay_of_ones_own_as_the_base_describes_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "apiVersion: device-bridge.io/v1alpha1\nkind: BridgeConfig\nmode: device-plugin\n"
        "groups: [{name: acc, kind: device-node, options: {include: [/dev/own*]}}]\n"
        'daemon: {metricsAddress: "[::]:9464"}\n'
    )
    own = Build(
        "base",
        ("monitoring",),
        "configMapGenerator:\n"
        "- {name: device-bridge, namespace: device-bridge, behavior: merge, files: [config.yaml]}\n"
        "images: [{name: device-bridge, newName: images.example/device-bridge, newTag: '1.2.3'}]\n",
    )
    objects = own.objects(tmp_path)
    sayings.whole(objects)
    assert sayings.configuration(objects).mode.value == "device-plugin"
    pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert [c["image"] for c in pod["containers"]] == ["images.example/device-bridge:1.2.3"]


def test_a_change_of_the_configuration_rolls_the_daemons(tmp_path: Path) -> None:
    names = set()
    for number, chosen in enumerate([(), ("sandboxed-devices",)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        pod = only(Build("base", chosen).objects(folder), "DaemonSet")["spec"]["template"]["spec"]
        names |= {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
    assert len(names) == 2


def test_classes_are_of_the_version_and_the_name_that_components_say(tmp_path: Path) -> None:
    found = {}
    for one in (
        Build("base"),
        Build("base", ("deviceclasses-v1beta1",)),
        Build("overlays/openshift-4.19"),
        Build("overlays/openshift", ("extended-resource-names",)),
        Build("overlays/openshift", (DROP_IN, "extended-resource-names")),
        Build("overlays/openshift-4.19", (DROP_IN,)),
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
    }
