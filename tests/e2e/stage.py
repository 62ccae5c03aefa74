"""One test's corner of the cluster: a namespace, groups of devices that no other test uses, and a daemon.

Everything on it is named after the test's number, so that what the kubelet or the scheduler still remember of
the test before cannot be mistaken for this one's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ApiError, Cluster
from tests.cluster.consoles import FIRST, LAST, MAJOR
from tests.e2e import journal
from tests.e2e.daemon import REPOSITORY, Daemon, configuration
from tests.e2e.objects import JOURNAL_FOLDER, Dra, Manifest, Opaque

POD_LIMIT_S = 60.0
NEWS_LIMIT_S = 15.0
"""Longest time for a change to be seen in the cluster: the kubelet reports its status each second."""

DRIVER_RBAC = REPOSITORY / "kustomize" / "base" / "driver-rbac.yaml"

_OVER = ("Succeeded", "Failed")
_numbers = itertools.count(1)
_consoles = itertools.cycle(range(FIRST, LAST + 1))


@dataclass(frozen=True, slots=True)
class Group:
    """One group of devices of one test: `acc3` of `/dev/crypto/acc3x0`, `/dev/crypto/acc3x1`, …"""

    name: str

    @property
    def resource(self) -> str:
        """The extended resource."""
        return f"device-bridge.io/{self.name}"

    @property
    def driver(self) -> str:
        """The DRA driver; the DeviceClass has the group's name."""
        return f"{self.name}.device-bridge.io"

    @property
    def pattern(self) -> str:
        """The glob of its devices, the same inside and outside of containers."""
        return f"/dev/crypto/{self.name}x*"

    def path(self, index: int) -> str:
        """The node of one device."""
        return f"/dev/crypto/{self.name}x{index}"

    def device(self, index: int) -> str:
        """The name that the bridge gives to that device."""
        return f"crypto-{self.name}x{index}"

    def config(self, *, options: Mapping[str, object] | None = None, **more: object) -> Manifest:
        """Its entry in the configuration."""
        of_kind = {"include": [self.pattern], **(options or {})}
        return {"name": self.name, "kind": "device-node", "options": of_kind, **more}


class Stage:
    """What one test has of the cluster.

    Attributes:
        cluster: the cluster.
        namespace: of this test's pods and claims.
        dra: builds objects in the version that the cluster serves.
        node_version: major and minor number of Kubernetes.
        provoked: messages that the daemon may log as errors, for the test gives it reason to.
    """

    def __init__(self, cluster: Cluster, kubeconfig: Path, folder: Path) -> None:
        self.cluster = cluster
        self.number = next(_numbers)
        self.namespace = f"test-{self.number}"
        self.dra = Dra(cluster.release.resource_api)
        self._kubeconfig = kubeconfig
        self._folder = folder
        self.provoked: set[str] = set()
        self._daemon: Daemon | None = None
        self._nodes: list[str] = []
        self._classes: list[str] = []

    # Life

    def open(self) -> None:
        """Make the namespace, and wait until pods can be made in it."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        self.cluster.node.outside(JOURNAL_FOLDER).mkdir(exist_ok=True)
        self.wait_for(
            lambda: self.cluster.get("ServiceAccount", "default", self.namespace), 20, "the account of pods"
        )

    def close(self) -> None:
        """Remove everything, in an order in which every pod can end; the daemon serves until the last has."""
        if self._daemon is not None and not self._daemon.running:
            self._daemon.start()
        for kind in ("Job", "Pod"):
            self.delete_all(kind)
        for kind in ("ResourceClaimTemplate", "ResourceClaim"):
            self.delete_all(kind)
        for name in self._classes:
            self.cluster.delete("DeviceClass", name)
        if self._daemon is not None:
            self._daemon.stop()
            complaints = [c for c in self._daemon.complaints() if c["message"] not in self.provoked]
            assert not complaints, complaints
        for path in self._nodes:
            self.cluster.rm(path)
        self.cluster.delete("Namespace", self.namespace, wait=None)

    def delete_all(self, kind: str) -> None:
        """Delete every object of a kind in the namespace, and wait until they are gone."""
        for item in self.cluster.list(kind, self.namespace):
            self.cluster.delete(kind, item["metadata"]["name"], self.namespace, wait=None)
        self.wait_for(lambda: self.gone(kind), 120, f"every {kind} of {self.namespace} to be gone")

    def gone(self, kind: str) -> bool:
        """Whether the namespace has no such objects; of a Job, pods do not count."""
        return not self.cluster.list(kind, self.namespace)

    # Devices and the daemon

    def group(self, stem: str = "acc") -> Group:
        """A group that no other test has."""
        return Group(f"{stem}{self.number}")

    def judged(self, group: Group, count: int, first: int = 0) -> list[str]:
        """Make block devices that the kernel lets only one opener have with O_EXCL; return their paths."""
        paths = [group.path(i) for i in range(first, first + count)]
        for path in paths:
            self.cluster.add_judged_device(path)
        self._nodes += paths
        return paths

    def plug(self, path: str, minor: int | None = None, mode: int = 0o660) -> int:
        """Make a character device that containers may not open unless it is given to them; return its minor."""
        minor = next(_consoles) if minor is None else minor
        self.cluster.mknod(path, "c", MAJOR, minor, mode)
        self._nodes.append(path)
        return minor

    def start(
        self, *groups: Manifest, mode: str = "dual", sys_root: Path | None = None, **daemon: object
    ) -> Daemon:
        """Start a daemon with these groups, and wait until it is ready; make their DeviceClasses.

        Without two-phase binding, which costs each DRA pod five seconds, unless a group asks for it.
        """
        config = self._folder / "bridge.yaml"
        state = f"/var/lib/kubelet/plugins/device-bridge-{self.number}"
        settings = {"stateDir": state, **daemon}
        wanted = [{"mode": mode, "binding": "off", **group} for group in groups]
        config.write_text(configuration(wanted, **settings))
        more = [] if sys_root is None else ["--sys-root", str(sys_root)]
        self._daemon = self.make_daemon(config, more)
        for entry in groups:
            self.make_class(Group(str(entry["name"])))
        self._allow([Group(str(g["name"])).driver for g in wanted if g["binding"] != "off"])
        self._daemon.start()
        return self._daemon

    def _allow(self, drivers: Sequence[str]) -> None:
        """Grant the daemon what it needs to set binding conditions on devices of these drivers."""
        role, binding = yaml.safe_load_all(DRIVER_RBAC.read_text())
        role["rules"][0]["resourceNames"] = list(drivers)
        for body in (role, binding) if drivers else ():
            self.cluster.apply(body)

    def make_daemon(self, config: Path, arguments: Sequence[str]) -> Daemon:
        """Give the daemon that `start` starts."""
        return Daemon(self.cluster, self._kubeconfig, config, f"bridge-{self.number}", arguments)

    def make_class(self, group: Group, name: str = "", *config: Opaque, extended_resource: str = "") -> str:
        """Make a DeviceClass of a group's driver, of the group's name by default."""
        name = name or group.name
        of_driver = f"device.driver == '{group.driver}'"
        self.take_class(self.dra.device_class(name, of_driver, *config, extended_resource=extended_resource))
        return name

    def take_class(self, manifest: Manifest) -> None:
        """Apply a DeviceClass; it goes with the stage."""
        self.apply(manifest)
        self._classes.append(manifest["metadata"]["name"])

    @property
    def daemon(self) -> Daemon:
        """The daemon of this stage, once it was started."""
        assert self._daemon is not None
        return self._daemon

    # What the cluster sees

    def allocatable(self, group: Group) -> int:
        """How many the scheduler may still count on, as the node says."""
        return int(self._node_status()["allocatable"].get(group.resource, 0))

    def capacity(self, group: Group) -> int:
        """How many the kubelet knows."""
        return int(self._node_status()["capacity"].get(group.resource, 0))

    def _node_status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cluster.get("Node", self.cluster.node_name)["status"]
        return status

    def slices(self, group: Group) -> list[dict[str, Any]]:
        """The group's slices of the newest generation."""
        found = self.cluster.list("ResourceSlice", fieldSelector=f"spec.driver={group.driver}")
        newest = max((s["spec"]["pool"]["generation"] for s in found), default=0)
        return [s for s in found if s["spec"]["pool"]["generation"] == newest]

    def published(self, group: Group) -> list[str]:
        """The names of the devices in its slices, in order."""
        return [d["name"] for s in self.slices(group) for d in s["spec"].get("devices") or ()]

    def offered(self, group: Group, count: int) -> None:
        """Wait until both planes offer so many devices."""
        self.wait_for(lambda: self.allocatable(group) == count, NEWS_LIMIT_S, f"{count} allocatable")
        self.wait_for(lambda: len(self.published(group)) == count, NEWS_LIMIT_S, f"{count} published")

    # Pods

    def apply(self, *manifests: Manifest) -> None:
        """Apply objects, in the test's namespace unless they name another."""
        for manifest in manifests:
            manifest["metadata"].setdefault("namespace", self.namespace)
            self.cluster.apply(manifest)

    def pod(self, name: str) -> dict[str, Any]:
        """A pod as it is now."""
        return self.cluster.get("Pod", name, self.namespace)

    def finished(self, name: str, container: str = "main") -> str:
        """Wait until a pod has succeeded and return what a container wrote."""
        pod = self.wait_for(lambda: self._over(name), POD_LIMIT_S, f"pod {name} to end")
        assert pod["status"]["phase"] == "Succeeded", f"{pod['status']}\n{self.output(name, container)}"
        return self.output(name, container)

    def failed(self, name: str) -> dict[str, Any]:
        """Wait until a pod has failed and return its status."""
        pod = self.wait_for(lambda: self._over(name), POD_LIMIT_S, f"pod {name} to end")
        assert pod["status"]["phase"] == "Failed", pod["status"]
        status: dict[str, Any] = pod["status"]
        return status

    def _over(self, name: str) -> dict[str, Any] | None:
        pod = self.pod(name)
        return pod if pod["status"]["phase"] in _OVER else None

    def running(self, *names: str) -> None:
        """Wait until all containers of these pods run."""
        for name in names:
            self.wait_for(lambda name=name: self._ready(name), POD_LIMIT_S, f"pod {name} to run")  # type: ignore[misc]

    def _ready(self, name: str) -> bool:
        status = self.pod(name)["status"]
        assert status["phase"] not in _OVER, f"pod {name} ended: {status}\n{self.output(name)}"
        containers = status.get("containerStatuses") or ()
        return bool(containers) and all(c["ready"] for c in containers)

    def output(self, name: str, container: str = "main") -> str:
        """What a container has written so far; empty if it never began."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/log"
        try:
            return str(self.cluster.api.get(path, container=container)["text"])
        except ApiError as error:
            return f"({error})"

    def containers(self, *names: str) -> dict[str, tuple[str, int]]:
        """Which container each pod runs, and how often it was restarted, once all of them are known to run."""
        self.running(*names)
        found = {}
        for name in names:
            status = self.pod(name)["status"]["containerStatuses"][0]
            found[name] = (status["containerID"], status["restartCount"])
        return found

    def delete(self, *names: str) -> None:
        """Delete pods and wait until they are gone."""
        for name in names:
            self.cluster.delete("Pod", name, self.namespace, wait=None)
        for name in names:
            self.cluster.delete("Pod", name, self.namespace)

    def events(self, name: str) -> list[str]:
        """The messages of the events about an object."""
        found = self.cluster.list("Event", self.namespace, fieldSelector=f"involvedObject.name={name}")
        return [f"{event['reason']}: {event['message']}" for event in found]

    # The journal

    @property
    def journal_file(self) -> str:
        """The name of this test's journal inside containers."""
        return f"/journal/{self.namespace}"

    def notes(self) -> list[journal.Note]:
        """What the probes have noted so far."""
        file = self.cluster.node.outside(f"{JOURNAL_FOLDER}/{self.namespace}")
        return journal.parse(file.read_text()) if file.exists() else []

    def opened(self, holders: Iterable[str]) -> dict[str, str]:
        """Wait until each of these has noted an open, and return what each has open."""
        wanted = set(holders)

        def look() -> dict[str, str] | None:
            found = {note.holder: note.path for note in self.notes() if note.event == "open"}
            return {h: found[h] for h in wanted} if wanted <= found.keys() else None

        return self.wait_for(look, POD_LIMIT_S, f"{sorted(wanted)} to open their devices") or {}

    def holding(self, pattern: str, *, excl: bool = True, seconds: float | None = None) -> Sequence[str]:
        """The command of a container that opens all devices of a pattern and keeps them until it is told to
        end, or for some seconds."""
        command = ["/probe", "hold", "--glob", pattern, "--journal", self.journal_file, "--id", "$(POD_NAME)"]
        command += ["--excl"] if excl else []
        return command + ([] if seconds is None else ["--seconds", str(seconds)])

    def wait_for(self, predicate: Callable[[], Any], limit: float, what: str) -> Any:
        """Wait until something is so; see `Cluster.wait_for`. An error shows the daemon's log too."""
        try:
            return self.cluster.wait_for(predicate, limit, what, interval=0.05)
        except AssertionError as error:
            if self._daemon is not None:
                error.add_note(f"the daemon's log ends with\n{self._daemon.tail()}")
            raise
