"""The files as they lie there, without kustomize."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.cli.doctor import RIGHTS
from bridge.cli.fleet.workloads import KINDS
from bridge.config import parse
from bridge.config_import import Options, power_device_plugin
from bridge.daemon.metrics import Metrics
from tests.manifests import sayings
from tests.manifests.builds import (
    ADDS_ALONE,
    CONFIGURED,
    DROP_IN,
    KUSTOMIZE,
    OWN_GROUPS,
    Object,
    components,
    only,
    read,
)

BASE = KUSTOMIZE / "base"
MONITORING = KUSTOMIZE / "components" / "monitoring"
FILES = sorted(path.relative_to(KUSTOMIZE) for path in KUSTOMIZE.rglob("*.yaml"))


def base() -> list[Object]:
    """The objects of the base, with the ConfigMap that kustomize would generate."""
    (kustomization,) = read(BASE / "kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    (file,) = generated["files"]
    config: Object = {
        "kind": "ConfigMap",
        "metadata": {"name": generated["name"], "labels": generated["options"]["labels"]},
        "data": {file: (BASE / file).read_text()},
    }
    return [config, *(one for name in kustomization["resources"] for one in read(BASE / name))]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_is_yaml_and_named_by_a_kustomization(path: Path) -> None:
    assert all(isinstance(one, dict) for one in read(KUSTOMIZE / path))
    if path.name == "kustomization.yaml":
        return
    (kustomization,) = read(KUSTOMIZE / path.parent / "kustomization.yaml")
    named = [*kustomization.get("resources", []), *(p.get("path") for p in kustomization.get("patches", []))]
    named += [file for one in kustomization.get("configMapGenerator", []) for file in one["files"]]
    assert path.name in named


def test_the_base_is_whole() -> None:
    sayings.whole(base())


def test_the_rights_are_those_that_doctor_asks_for_and_no_more() -> None:
    rules = only(base(), "ClusterRole", "device-bridge")["rules"]
    granted = [
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert sorted(granted) == sorted(right[:3] for right in RIGHTS)
    assert not any("resourceNames" in rule for rule in rules)


def test_every_privilege_has_its_reason_beside_it() -> None:
    text = (BASE / "daemonset.yaml").read_text()
    volumes = text[text.index("      volumes:") :].splitlines()
    reasoned = False
    for line in volumes:
        if line.startswith("      - name:") and "config" not in line and "cdi-dynamic" not in line:
            assert reasoned, line
        reasoned = line.lstrip().startswith("#")


def test_nobody_reaches_the_daemon_but_the_kubelet_and_prometheus() -> None:
    assert only(base(), "NetworkPolicy")["spec"]["ingress"] == []
    (opened,) = read(MONITORING / "network-policy.yaml")
    (rule,) = opened["spec"]["ingress"]
    assert rule["ports"] == [{"port": "metrics"}]
    assert all(source.keys() == {"namespaceSelector"} for source in rule["from"])


def test_sandboxed_devices_are_devices_of_their_own() -> None:
    (patch,) = read(KUSTOMIZE / "components" / "sandboxed-devices" / "make-devices.yaml")
    pod = patch["spec"]["template"]["spec"]
    (script,) = pod["initContainers"][0]["args"]
    compile(script, "make-devices.yaml", "exec")
    minors = re.findall(r'"acc\d": (\d+)', script)
    assert len(minors) == len(set(minors)) == 4
    made_in = pod["volumes"][0]["hostPath"]["path"]
    for name in ("base", "overlays/microk8s"):
        config = yaml.safe_load((KUSTOMIZE / name / "config.yaml").read_text())
        assert f"{made_in}/acc*" in config["groups"][0]["options"]["include"]


def test_no_component_has_a_configuration() -> None:
    """It would win over the one of the overlay that lists it, and nobody would be told."""
    for name in components():
        (kustomization,) = read(KUSTOMIZE / "components" / name / "kustomization.yaml")
        generated = {one["name"] for one in kustomization.get("configMapGenerator", [])}
        assert "device-bridge" not in generated


def test_there_are_the_components_that_are_promised() -> None:
    wanted = {"monitoring", "extended-resource-names", "sandboxed-devices", "nfd", "deviceclasses-v1beta1"}
    assert set(components()) == wanted | {DROP_IN, ADDS_ALONE, OWN_GROUPS}


def test_operators_may_do_what_the_command_line_does_and_no_more() -> None:
    """Each path that a fleet's command asks for is in the rules; what they are enough for: `tests/docs`."""
    rules = read(KUSTOMIZE / "components" / ADDS_ALONE / "rbac.yaml")
    granted = {
        one["metadata"]["name"]: {
            (resource, verb)
            for rule in one["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for one in rules
    }
    plurals = {path.rpartition("/")[2] for path in KINDS.values()}
    listed = {resource for role in granted.values() for resource, verb in role if verb == "list"}
    assert plurals <= listed
    assert {verb for _, verb in granted["device-bridge-operator"]} == {"get", "list", "watch", "patch"}
    assert granted["device-bridge-exec"] == {("pods/exec", "get"), ("pods/exec", "create")}
    assert not [one for one in rules if one["kind"].endswith("Binding")], "who they are is not known here"


def test_the_drop_in_is_what_an_import_makes_of_its_manifests() -> None:
    component = KUSTOMIZE / "components" / DROP_IN
    arch = {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "ppc64le", "s390x"]}
    terms = [{"matchExpressions": [arch]}]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
    plugin = {
        "kind": "DaemonSet",
        "metadata": {"name": DROP_IN},
        "spec": {"template": {"spec": {"affinity": affinity, "containers": []}}},
    }
    made = power_device_plugin(json.dumps(plugin), "its manifests", Options())
    assert parse((KUSTOMIZE / CONFIGURED / "config.yaml").read_text()) == parse(
        yaml.safe_dump(dict(made.config))
    )
    (patch,) = read(component / "daemonset.yaml")
    assert patch["spec"]["template"]["spec"]["affinity"] == affinity


def dashboard() -> Iterator[str]:
    """The PromQL of the dashboard."""
    for panel in json.loads((MONITORING / "device-bridge.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def series() -> dict[str, set[str]]:
    """What the daemon exports, by name of the series, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        described: Any = metric.describe()[0] if hasattr(metric, "describe") else None
        if described is None or not hasattr(metric, "_labelnames"):
            continue
        labels = set(metric._labelnames)
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        for suffix in suffixes.get(described.type, [""]):
            found[described.name + suffix] = labels
    return found


@pytest.mark.parametrize("expression", [*sayings.expressions(read(MONITORING / "rules.yaml")), *dashboard()])
def test_what_is_asked_of_prometheus_is_exported(expression: str) -> None:
    known = series()
    asked = set(re.findall(r"\bdevice_bridge_\w+", expression))
    assert asked <= known.keys()
    assert asked or expression.startswith("up{")
    labels = {"node", "job", "le"}.union(*(known[name] for name in asked))
    used = set(re.findall(r"(\w+)=~?\"|(\w+)!=\"", expression))
    grouped = {name.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for name in by.split(",")}
    assert {name for pair in used for name in pair if name} | grouped <= labels


def test_alerts_say_what_it_costs_and_where_to_look() -> None:
    (rules,) = read(MONITORING / "rules.yaml")
    for rule in rules["spec"]["groups"][0]["rules"]:
        assert rule["alert"].startswith("DeviceBridge")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"].keys() == {"summary", "description"}
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        asked = set(re.findall(r"\bdevice_bridge_\w+", rule["expr"]))
        known = {"node"}.union(*(series()[name] for name in asked))
        by = re.search(r"by \(([^)]*)\)", rule["expr"])
        assert named <= (known if by is None else set(by[1].split(", ")))
