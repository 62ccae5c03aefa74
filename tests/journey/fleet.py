"""Two real nodes with the daemon on them as anybody installs it: the build of an overlay of one's own, in the image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bridge.ledger.store import read_account
from bridge.ledger.switches import Switch
from tests.cluster import Cluster, Member
from tests.image import built
from tests.journey.workload import RESOURCE
from tests.manifests.builds import REPOSITORY, Build

GROUP = "acc"
CLASS = f"{GROUP}.device-bridge.io"
DEVICES = 6
"""On each node: enough that a rollout never waits for one that ends."""

MODES = ("device-plugin", "dual", "dra")
LABEL = "device-bridge.io/mode"
SWITCH_S = 180

_NAMESPACE = _NAME = "device-bridge"
_STATE = "var/lib/kubelet/plugins/device-bridge"
_OWN = f"""\
configMapGenerator:
- {{name: device-bridge, namespace: device-bridge, behavior: merge, files: [config.yaml]}}
patches:
- target: {{kind: DeviceClass, name: {CLASS}}}
  patch: '[{{"op": "replace", "path": "/spec/extendedResourceName", "value": "{RESOURCE}"}}]'
"""
_CONFIG = {
    "apiVersion": "device-bridge.io/v1alpha1",
    "kind": "BridgeConfig",
    "mode": "device-plugin",
    "groups": [
        {
            "name": GROUP,
            "kind": "device-node",
            "resourceName": RESOURCE,
            "keepResourceName": True,
            "options": {"include": [f"/dev/crypto/{GROUP}*"]},
        }
    ],
    "daemon": {"metricsAddress": "0.0.0.0:9464"},
}


class Fleet:
    """The nodes of a cluster, their daemons, and the command line of whoever looks after them.

    Attributes:
        config: the configuration file of every daemon.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.config = folder / "config.yaml"
        self._folder = folder

    def install(self) -> None:
        """Devices of which the kernel lets only one opener have each, and the daemons, in mode device-plugin."""
        for node in self.cluster.nodes:
            for index in range(DEVICES):
                self.cluster.add_judged_device(f"/dev/crypto/{GROUP}{index}", node=node)
        self.cluster.import_image(built.archive())
        self.config.write_text(json.dumps(_CONFIG))
        self.cluster.apply(Build("base", ("extended-resource-names",), _OWN).objects(self._folder))
        self.cluster.wait_for(lambda: self.settled("device-plugin"), 120, "every daemon to serve")

    # As an operator

    def bridge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on a machine that can reach the API server; raises CommandError if it fails."""
        command = [sys.executable, "-m", "bridge", *arguments]
        environment = {"KUBECONFIG": str(self.cluster.admin_kubeconfig)}
        return self.cluster.exec(command, env=environment, cwd=REPOSITORY, timeout=SWITCH_S * 3)

    def switch(self, mode: str) -> str:
        """Go to a mode, one node after the other; what the command said."""
        done = self.bridge("mode", "set", mode, "--batch", "1", "--timeout", f"{SWITCH_S}s")
        return done.stderr + done.stdout

    def holds(self, node: Member) -> dict[str, str]:
        """The plane that each device of a node is held by, by the device's path."""
        rows = json.loads(self.bridge("holds", "--node", node.name, "-o", "json").stdout)
        found = {}
        for row in rows:
            assert row.get("plane"), f"{node.name}: {row}"
            found[re.sub("^crypto-", "/dev/crypto/", row["device"])] = row["plane"]
        return found

    # As everybody may see it

    def states(self) -> dict[str, dict[str, Any]]:
        """The status of each NodeBridge."""
        found = self.cluster.list("NodeBridge", api_version="device-bridge.io/v1alpha1")
        return {one["metadata"]["name"]: one["status"] for one in found}

    def settled(self, mode: str) -> bool:
        """Whether every node has arrived in a mode and serves."""
        states = self.states()
        assert set(states) <= {node.name for node in self.cluster.nodes}
        return len(states) == len(self.cluster.nodes) and all(_settled(one, mode) for one in states.values())

    # As the machine sees it

    def gates(self, node: Member) -> Switch | None:
        """How far a node's ledger is between two modes."""
        return read_account(node.directory / "root" / _STATE).switch_of(GROUP)

    def kill(self, node: Member) -> None:
        """End a node's daemon at once, as `kill -9` does; the kubelet starts another."""
        container = self.daemon(node)["status"]["containerStatuses"][0]["containerID"]
        name = container.removeprefix("containerd://")
        node.exec(["ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", name])

    def daemon(self, node: Member) -> dict[str, Any]:
        """The pod of a node's daemon."""
        on_it = f"spec.nodeName={node.name}"
        (found,) = self.cluster.list("Pod", _NAMESPACE, fieldSelector=on_it)
        return found

    def restarts(self, node: Member) -> int:
        """How often a node's daemon was started again."""
        return int(self.daemon(node)["status"]["containerStatuses"][0]["restartCount"])

    def complaints(self, node: Member) -> list[dict[str, Any]]:
        """What the daemon that runs now has logged as an error."""
        name = self.daemon(node)["metadata"]["name"]
        lines = self.cluster.pod_logs(name, _NAMESPACE).splitlines()
        return [one for one in map(json.loads, lines) if one["level"] in ("error", "critical")]


def _settled(status: dict[str, Any], mode: str) -> bool:
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
    return ready and (status["wanted"], status["mode"], status["phase"]) == (mode, mode, "Settled")
