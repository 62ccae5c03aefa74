"""The Deployment that is taken along: each pod has one device for itself and answers as long as it has it."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster import PROBE, Cluster
from tests.e2e import journal

Manifest = dict[str, Any]

RESOURCE = "power-dev-plugin/dev"
NAME = "web"
NAMESPACE = "default"
PORT = 8080
REPLICAS = 5
JOURNAL = "/run/journey"
"""On each node; pods see it at `/journal`."""

ROLLOUT_S = 180
DRAIN_S = 2
"""Between a pod's leaving the endpoints and its end: everybody who has connected is answered, nobody comes any more."""

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
_LABELS = {"app": NAME}


def manifests() -> list[Manifest]:
    """What is applied once and never again."""
    return [deployment(), service()]


def deployment() -> Manifest:
    """Five pods, of which one may be missing."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": _LABELS},
        "matchLabelKeys": ["pod-template-hash"],
    }
    body = {
        "terminationGracePeriodSeconds": 20,
        "topologySpreadConstraints": [spread],
        "containers": [_container()],
        "volumes": [{"name": "journal", "hostPath": {"path": JOURNAL, "type": "DirectoryOrCreate"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": _LABELS},
            "strategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}},
            "template": {"metadata": {"labels": _LABELS}, "spec": body},
        },
    }


def _container() -> Manifest:
    hold = ["/probe", "hold", "--glob", "/dev/crypto/*", "--excl", "--serve", str(PORT)]
    return {
        "name": "web",
        "image": PROBE,
        "command": [*hold, "--journal", "/journal/all", "--id", "$(POD_NAME)"],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "resources": {"limits": {RESOURCE: 1}},
        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1, "timeoutSeconds": 5},
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_S}}},
        "volumeMounts": [{"name": "journal", "mountPath": "/journal"}],
    }


def service() -> Manifest:
    """What the client asks."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"selector": _LABELS, "ports": [{"port": 80, "targetPort": PORT}]},
    }


class Workload:
    """The Deployment in a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._restarts = 0
        self._template: Manifest = {}

    def apply(self, *more: Manifest) -> None:
        """Apply it, and wait until all of it serves; from now on this is what must not change."""
        self._cluster.apply([*(more or manifests())])
        self.rolled_out()
        found = self._cluster.get("Deployment", NAME)
        self._template, self._generation, self._restarts = (
            _template(found),
            found["metadata"]["generation"],
            0,
        )

    def restart(self) -> None:
        """Begin to replace every pod, as `kubectl rollout restart` does; that is all that is done to it."""
        self._cluster.kubectl("rollout", "restart", f"deployment/{NAME}")
        self._restarts += 1

    def rolled_out(self) -> None:
        """Wait until the pods are of the newest template, and the old ones gone."""
        status = ["rollout", "status", f"deployment/{NAME}", f"--timeout={ROLLOUT_S}s"]
        self._cluster.kubectl(*status, timeout=ROLLOUT_S + 10)
        self._cluster.wait_for(lambda: len(self.pods()) == REPLICAS, ROLLOUT_S, "the old pods to be gone")

    def unchanged(self) -> None:
        """Check that nobody changed more of it than the time of its restart."""
        found = self._cluster.get("Deployment", NAME)
        assert _template(found) == self._template
        assert found["metadata"]["generation"] == self._generation + self._restarts

    def pods(self) -> list[Manifest]:
        """Its pods, those that are just ending included."""
        return [pod for pod in self._all() if pod["status"]["phase"] != "Failed"]

    def turned_away(self) -> list[str]:
        """Why the kubelet did not admit pods: in the moment between two counts, or while no daemon is there, the
        scheduler sends one too many, and the Deployment makes another. They never ran."""
        failed = [pod["status"] for pod in self._all() if pod["status"]["phase"] == "Failed"]
        assert all(status["reason"] == "UnexpectedAdmissionError" for status in failed), failed
        return [status["message"] for status in failed]

    def _all(self) -> list[Manifest]:
        return self._cluster.list("Pod", NAMESPACE, labelSelector=f"app={NAME}")

    def notes(self, node: Any) -> list[journal.Note]:
        """What the pods of a node have noted of their devices, all there were."""
        file = node.outside(f"{JOURNAL}/all")
        return journal.parse(file.read_text()) if file.exists() else []


def _template(found: Manifest) -> Manifest:
    template: Manifest = copy.deepcopy(found["spec"]["template"])
    annotations = template["metadata"].get("annotations") or {}
    annotations.pop(RESTARTED_AT, None)
    template["metadata"]["annotations"] = annotations
    return template
