"""The command lines and configuration files of everything that runs in a node.

Only data in, data out: what is started when, and where, is said elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster import audit
from tests.cluster.addresses import (
    API_PORT,
    API_URL,
    DNS_ADDRESS,
    NODE_ADDRESS,
    SERVICE_RANGE,
    Place,
)
from tests.cluster.certs import Credentials
from tests.cluster.images import PAUSE
from tests.cluster.versions import Release

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """What the components of one node have in common.

    Attributes:
        release: the Kubernetes release.
        directory: the node's own folder; etcd's data and all configuration files go there.
        node_name: the node's name.
        place: where the node is in the cluster's network.
        cgroup: the cgroup under which the kubelet puts its pods, from the root of each hierarchy.
        credentials: keys and tokens.
        feature_gates: for every component, on top of those that the release needs.
        kubelet_config: merged into the KubeletConfiguration, deep.
        extra_args: more flags, by component.
        audit: whether the API server keeps an audit log.
    """

    release: Release
    directory: Path
    node_name: str
    place: Place
    cgroup: str
    credentials: Credentials
    feature_gates: Mapping[str, bool] = field(default_factory=dict)
    kubelet_config: Mapping[str, Any] = field(default_factory=dict)
    extra_args: Mapping[str, Sequence[str]] = field(default_factory=dict)
    audit: bool = False

    @property
    def gates(self) -> dict[str, bool]:
        """Every feature gate that is set."""
        return {**self.release.feature_gates, **self.feature_gates}

    def flags(self, component: str) -> list[str]:
        """The flags that come last on a component's command line."""
        gates = ",".join(f"{name}={str(on).lower()}" for name, on in self.gates.items())
        wanted = [f"--feature-gates={gates}"] if gates and component.startswith("kube-") else []
        return [*wanted, "--v=2", *self.extra_args.get(component, ())]


def etcd(layout: Layout) -> list[str]:
    """The store; it need not survive the machine, so it never waits for the disk."""
    return ["etcd", f"--data-dir={layout.directory / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn"]


def api_server(layout: Layout) -> list[str]:
    """The API server, with node authorization and admission as in a real cluster."""
    secret = layout.credentials
    arguments: dict[str, object] = {
        "etcd-servers": "http://127.0.0.1:2379",
        "bind-address": "0.0.0.0",
        "secure-port": API_PORT,
        "advertise-address": NODE_ADDRESS,
        "service-cluster-ip-range": SERVICE_RANGE,
        "tls-cert-file": secret.authority,
        "tls-private-key-file": secret.authority_key,
        "token-auth-file": secret.token_file,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": secret.service_account_key,
        "service-account-signing-key-file": secret.service_account_key,
        "kubelet-client-certificate": secret.client,
        "kubelet-client-key": secret.client_key,
        "kubelet-preferred-address-types": "InternalIP",
    }
    if layout.release.runtime_config:
        arguments["runtime-config"] = ",".join(layout.release.runtime_config)
    if layout.audit:
        arguments.update(audit.flags(layout.directory))
    return ["kube-apiserver", *_flags(arguments), *layout.flags("kube-apiserver")]


def scheduler(layout: Layout) -> list[str]:
    """The scheduler, alone, so without an election."""
    config = kubeconfig(layout, "system:kube-scheduler")
    arguments = {
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "leader-elect": "false",
    }
    return ["kube-scheduler", *_flags(arguments), *layout.flags("kube-scheduler")]


def controller_manager(layout: Layout) -> list[str]:
    """The controllers, among them those that make service accounts, claims and taint evictions."""
    arguments = {
        "kubeconfig": kubeconfig(layout, "system:kube-controller-manager"),
        "leader-elect": "false",
        "root-ca-file": layout.credentials.authority,
        "service-account-private-key-file": layout.credentials.service_account_key,
    }
    return ["kube-controller-manager", *_flags(arguments), *layout.flags("kube-controller-manager")]


def kubelet(layout: Layout) -> list[str]:
    """The kubelet, with its standard directories: what plugins see is what they would see anywhere."""
    arguments = {
        "kubeconfig": kubeconfig(layout, f"system:node:{layout.node_name}"),
        "config": _write(layout, "kubelet.json", kubelet_configuration(layout)),
        "hostname-override": layout.node_name,
        "node-ip": layout.place.address,
    }
    return ["kubelet", *_flags(arguments), *layout.flags("kubelet")]


def containerd(layout: Layout) -> list[str]:
    """The container runtime; CDI and NRI are on."""
    path = layout.directory / "containerd.toml"
    path.write_text(_CONTAINERD.format(pause=PAUSE))
    _cni(layout)
    return ["containerd", "--config", str(path)]


def kubelet_configuration(layout: Layout) -> Manifest:
    """The KubeletConfiguration, with the caller's wishes merged in."""
    secret = layout.credentials
    resolver = layout.directory / "resolv.conf"
    resolver.touch()
    configuration: Manifest = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(secret.authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(secret.authority),
        "tlsPrivateKeyFile": str(secret.authority_key),
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": layout.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        # A test machine may be nearly full; that must evict nobody.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "1s",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolver),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "featureGates": layout.gates,
    }
    return merged(configuration, layout.kubelet_config)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Manifest:
    """Merge two nested mappings; where both have a value that is not a mapping, `over` wins."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[key] = value
    return result


def kubeconfig(layout: Layout, user: str, token: str | None = None) -> Path:
    """Write a kubeconfig for a user with a token; without one, the user's static token is taken."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": API_URL,
                    "certificate-authority": str(layout.credentials.authority),
                },
            }
        ],
        "users": [{"name": user, "user": {"token": token or layout.credentials.tokens[user]}}],
    }
    return _write(layout, f"{user.replace(':', '-')}.kubeconfig", config)


def _cni(layout: Layout) -> None:
    """Write the pod network: one bridge, one range of addresses."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": layout.place.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipam": ipam}
    network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    _write(layout, "root/etc/cni/net.d/10-pods.conflist", network)


def _write(layout: Layout, name: str, content: Manifest) -> Path:
    path = layout.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    # JSON is YAML too, so every component reads it.
    path.write_text(json.dumps(content, indent=1))
    return path


def _flags(arguments: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in arguments.items()]


_CONTAINERD = """\
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  # Without CAP_SYS_RESOURCE the runtime cannot lower a score, and dies of trying.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""
