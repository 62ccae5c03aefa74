"""What has to be true of the objects of every build. Each function raises AssertionError where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from bridge.config import Config, parse
from bridge.daemon.http import heard_at
from bridge.platform.cri import USUAL_SOCKETS
from tests.manifests.builds import Object, only

DEVICE_PLUGINS = "/var/lib/kubelet/device-plugins"
"""Of the kubelet, wherever its root is."""

_NOTHING = {"privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}


def whole(objects: Sequence[Object]) -> None:
    """All of it."""
    labelled(objects)
    unprivileged(objects)
    configured(objects)
    updated_one_after_the_other(objects)
    policy_meets_the_daemon(objects)
    classes_have_rights(objects)
    nodes_are_described(objects)


def labelled(objects: Sequence[Object]) -> None:
    """Every object has the name by which all of it is found, and the daemon's pods are selected by their labels."""
    for one in objects:
        labels = one["metadata"].get("labels", {})
        assert labels.get("app.kubernetes.io/name") == "device-bridge", one["metadata"]["name"]
    daemonset = only(objects, "DaemonSet")["spec"]
    wanted = daemonset["selector"]["matchLabels"]
    assert wanted.items() <= daemonset["template"]["metadata"]["labels"].items()
    assert only(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == wanted
    for monitor in (one for one in objects if one["kind"] == "PodMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"] == wanted
        assert [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def unprivileged(objects: Sequence[Object]) -> None:
    """No container has more than it needs; MKNOD alone is added, by the maker of sandboxed devices."""
    pod = _pod(objects)
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        context = container["securityContext"]
        assert context.items() >= _NOTHING.items()
        assert context["capabilities"]["drop"] == ["ALL"]
        added = context["capabilities"].get("add", [])
        assert added == (["MKNOD"] if container["name"] == "make-devices" else [])
    mounts = {mount["name"]: mount for mount in _daemon(pod)["volumeMounts"]}
    for name in ("config", "dev", "pod-resources", "runtime"):
        assert mounts[name].get("readOnly") is True, name
    for name in ("dev", "plugins", "runtime"):  # others mount below those, and must be able to unmount
        assert mounts[name]["mountPropagation"] == "HostToContainer", name


def configured(objects: Sequence[Object]) -> None:
    """The configuration is valid, and every path and port in it is one that the container has."""
    pod, config = _pod(objects), configuration(objects)
    assert pod["containers"][0]["env"] == [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    port = int(config.daemon.metrics_address.rpartition(":")[2])
    daemon = _daemon(pod)
    assert [p["containerPort"] for p in daemon["ports"] if p["name"] == "metrics"] == [port]
    heard = heard_at(config.daemon.metrics_address, "10.1.2.3").rpartition(":")[0]
    assert heard in ("0.0.0.0", "[::]", "10.1.2.3")
    for probe, path in {"startup": "healthz", "liveness": "healthz", "readiness": "readyz"}.items():
        assert daemon[f"{probe}Probe"]["httpGet"] == {"path": f"/{path}", "port": "metrics"}
    root = config.daemon.kubelet_root
    on_node = _on_node(pod)
    # The kubelet is told the paths of sockets in these: they have to be the same on the node.
    for folder in (root / "plugins", root / "plugins_registry", root / "pod-resources"):
        assert on_node[str(folder)] == str(folder)
    assert on_node[str(root / "device-plugins")] == DEVICE_PLUGINS
    assert config.daemon.state_dir.is_relative_to(root / "plugins")
    assert {"/dev", str(config.daemon.cdi.static_dir), str(config.daemon.cdi.dynamic_dir)} <= on_node.keys()
    sockets = [PurePosixPath(config.daemon.cri_socket)] if config.daemon.cri_socket else USUAL_SOCKETS
    assert any(str(socket.parent) in on_node for socket in sockets)


def updated_one_after_the_other(objects: Sequence[Object]) -> None:
    """Two daemons of one node exclude each other, so the old one goes first; and it is the last to be evicted."""
    daemonset = only(objects, "DaemonSet")["spec"]
    assert daemonset["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"},
    }
    pod = daemonset["template"]["spec"]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["terminationGracePeriodSeconds"] > 30


def policy_meets_the_daemon(objects: Sequence[Object]) -> None:
    """The policy is bound, denies, meets the account that the pods run as and that has the rights, and no other."""
    policy = only(objects, "ValidatingAdmissionPolicy")
    binding = only(objects, "ValidatingAdmissionPolicyBinding")["spec"]
    assert binding == {"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}
    account = only(objects, "ServiceAccount")["metadata"]
    assert _pod(objects)["serviceAccountName"] == account["name"]
    for bound in (one for one in objects if one["kind"] == "ClusterRoleBinding"):
        wanted = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        assert bound["subjects"] == [wanted]
    (condition,) = policy["spec"]["matchConditions"]
    found = re.fullmatch(r"request\.userInfo\.username\.matches\('([^']*)'\)", condition["expression"])
    assert found is not None, condition["expression"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert re.search(found[1], user)
    assert not any(re.search(found[1], other) for other in (f"{user}-2", "system:node:device-bridge"))


def classes_have_rights(objects: Sequence[Object]) -> None:
    """Every group of the configuration has a DeviceClass that selects its driver and carries no other resource name
    than the group's, and the rule for its driver."""
    drivers = {group.driver_name: group for group in configuration(objects).groups}
    (rule,) = only(objects, "ClusterRole", "device-bridge-drivers")["rules"]
    assert set(rule["resourceNames"]) == drivers.keys()
    classes = [one for one in objects if one["kind"] == "DeviceClass"]
    assert {one["metadata"]["name"] for one in classes} == drivers.keys()
    for one in classes:
        resource = drivers[one["metadata"]["name"]].resource_name
        assert one["spec"].get("extendedResourceName", resource) == resource
        (selector,) = one["spec"]["selectors"]
        assert selector["cel"]["expression"] == f"device.driver == '{one['metadata']['name']}'"


def nodes_are_described(objects: Sequence[Object]) -> None:
    """The kind NodeBridge comes with its daemon, one for each node, and every field of it says what it is."""
    crd = only(objects, "CustomResourceDefinition", "nodebridges.device-bridge.io")["spec"]
    assert crd["scope"] == "Cluster"
    assert crd["names"]["shortNames"] == ["nb"]
    (version,) = crd["versions"]
    assert version["subresources"] == {"status": {}}
    known = {"name", "type", "jsonPath", "priority", "description"}
    assert all(column.keys() <= known for column in version["additionalPrinterColumns"])
    undescribed = list(_undescribed("", version["schema"]["openAPIV3Schema"]))
    assert undescribed == [".metadata"]


def _undescribed(path: str, schema: Object) -> Iterator[str]:
    if "description" not in schema and not path.endswith("[]"):
        yield path
    for name, below in schema.get("properties", {}).items():
        yield from _undescribed(f"{path}.{name}", below)
    if "items" in schema:
        assert schema["x-kubernetes-list-type"] == "map"
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])
        yield from _undescribed(f"{path}[]", schema["items"])


def configuration(objects: Sequence[Object]) -> Config:
    """The configuration that the daemon's pods mount."""
    (volume,) = (volume for volume in _pod(objects)["volumes"] if volume["name"] == "config")
    return parse(only(objects, "ConfigMap", volume["configMap"]["name"])["data"]["config.yaml"])


def expressions(objects: Sequence[Object]) -> Iterator[str]:
    """The PromQL of rules."""
    for one in (one for one in objects if one["kind"] == "PrometheusRule"):
        for group in one["spec"]["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def _pod(objects: Sequence[Object]) -> Object:
    pod: Object = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    return pod


def _daemon(pod: Object) -> Object:
    (daemon,) = (container for container in pod["containers"] if container["name"] == "daemon")
    found: Object = daemon
    return found


def _on_node(pod: Object) -> dict[str, str]:
    """Paths inside the daemon's container that are paths of the node."""
    paths = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    return {m["mountPath"]: paths[m["name"]] for m in _daemon(pod)["volumeMounts"] if m["name"] in paths}
