"""A real Kubernetes cluster of one node or a few, for as long as a `with` block lasts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.cluster import build, certs, cgroups, components, consoles, images, loops, network, workdirs
from tests.cluster.addresses import API_URL, Place
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.audit import NAME as AUDIT_LOG
from tests.cluster.member import Member, tail
from tests.cluster.objects import Objects
from tests.cluster.processes import Process
from tests.cluster.versions import DEFAULT, release
from tests.cluster.waiting import retry, wait_for

T = TypeVar("T")


class Cluster(Objects):
    """One control plane and one node, or more of them.

    What is about one node and names none is about the first, which the control plane runs on, too.

    Attributes:
        release: what is known about its Kubernetes release.
        nodes: its nodes, with everything that concerns namespaces, programs, components and devices.
        api: a client of the API server, as an administrator.
        workdir: its folder on the machine, removed in the end.
    """

    def __init__(
        self,
        k8s: str | None = None,
        *,
        feature_gates: Mapping[str, bool] | None = None,
        kubelet_config: Mapping[str, Any] | None = None,
        extra_args: Mapping[str, Sequence[str]] | None = None,
        node_name: str = "node0",
        nodes: int = 1,
        workdir: Path | None = None,
        audit: bool = False,
    ) -> None:
        """Describe a cluster; `start` or a `with` block makes it.

        Args:
            k8s: the Kubernetes release; without one `$K8S`, else the default.
            feature_gates: for every component.
            kubelet_config: merged into the KubeletConfiguration, such as `{"topologyManagerPolicy": "..."}`.
            extra_args: more flags by component, such as `{"kube-apiserver": ["--v=4"]}`.
            node_name: the first node's name; the others are `node1`, `node2`, …
            nodes: how many; each has its own namespaces, devices and pods' range, and a cable to the first.
            workdir: a folder that does not exist yet; without one, one among the temporary files.
            audit: have the API server keep a log of writes to pods, nodes, claims and slices.
        """
        self.release = release(k8s or os.environ.get("K8S") or DEFAULT)
        self.node_name = node_name
        self.workdir = workdir or workdirs.choose()
        self._gates = dict(feature_gates or {})
        self._kubelet_config = dict(kubelet_config or {})
        self._extra_args = dict(extra_args or {})
        self._audit = audit
        self._minors = loops.LoopMinors()
        self._cleanup = ExitStack()
        self._api: Api | None = None
        self._names = [node_name, *(f"node{index}" for index in range(1, nodes))]
        self._nodes: list[Member] = []

    # Life

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Boot, and return when every node is ready for pods; call `stop` even if this fails."""
        workdirs.sweep()
        cgroups.sweep()
        loops.sweep()
        consoles.release()
        programs = [build.kubernetes(self.release), build.runtime()]
        archive = images.archive()
        self._prepare(programs)
        for node in self.nodes:
            node.start_component("containerd")
        for name in ("etcd", "kube-apiserver"):
            self.start_component(name)
        self.import_image(archive)
        self._wait_for_api()
        for node in self.nodes:
            node.start_component("kubelet")
        for name in ("kube-controller-manager", "kube-scheduler"):
            self.start_component(name)
        self.wait_for(self._ready, 60, "the nodes to be ready for pods", interval=0.05)

    def stop(self) -> None:
        """End everything and remove every trace of it."""
        self._nodes.clear()
        self._cleanup.close()

    def _prepare(self, programs: Sequence[Path]) -> None:
        """Make what the components need, and note for each thing how it goes away again."""
        self.workdir.mkdir(parents=True)
        self._cleanup.callback(retry, partial(workdirs.remove, self.workdir))
        self._cleanup.callback(self._minors.release)
        self._cleanup.callback(consoles.release)
        self._secret = certs.create(self.workdir, self._names)
        for index, name in enumerate(self._names):
            node = Member(self._lay_out(index, name), programs)
            self._cleanup.callback(node.stop)
            node.start()
            self._nodes.append(node)
        for node in self.nodes[1:]:
            self._join(node)
        self._api = self.api_as(self._secret.tokens["admin"])
        components.kubeconfig(self.layout, "admin")

    def _lay_out(self, index: int, name: str) -> components.Layout:
        cgroup = cgroups.create()
        self._cleanup.callback(retry, partial(cgroups.remove, cgroup))
        directory = self.workdir / name if index else self.workdir
        directory.mkdir(exist_ok=True)
        return components.Layout(
            release=self.release,
            directory=directory,
            node_name=name,
            place=Place(index),
            cgroup=cgroup,
            credentials=self._secret,
            feature_gates=self._gates,
            kubelet_config=self._kubelet_config,
            extra_args=self._extra_args,
            audit=self._audit,
        )

    def _join(self, node: Member) -> None:
        """Lay the cable to the first node, and tell every node that is there where the pods of this one are."""
        network.cable(self.node.pid, node.pid, f"to-{node.place.index}")
        for other in self.nodes[: node.place.index]:
            network.route(other.pid, node.place.pods, node.place.address)
            network.route(node.pid, other.place.pods, other.place.address)

    def _ready(self) -> bool:
        nodes = self.api.items("/api/v1/nodes")
        account = self.api.get("/api/v1/namespaces/default/serviceaccounts/default")
        return len(nodes) == len(self._names) and all(map(_is_ready, nodes)) and bool(account)

    # Where things are

    @property
    def version(self) -> str:
        """The Kubernetes release, without a leading `v`."""
        return self.release.version

    @property
    def nodes(self) -> Sequence[Member]:
        """The nodes, by their index."""
        return tuple(self._nodes)

    @property
    def node(self) -> Member:
        """The first node."""
        if not self._nodes:
            raise RuntimeError("the cluster has not been started")
        return self._nodes[0]

    @property
    def api(self) -> Api:
        """The administrator's client."""
        if self._api is None:
            raise RuntimeError("the cluster has not been started")
        return self._api

    @property
    def layout(self) -> components.Layout:
        """What the first node's components have in common."""
        return self.node.layout

    @property
    def admin_kubeconfig(self) -> Path:
        """The administrator's kubeconfig; its address answers inside the node only."""
        return self.workdir / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, if one is kept; see `tests.cluster.audit`."""
        return self.workdir / AUDIT_LOG

    @property
    def api_url(self) -> str:
        """The API server's address, inside the node."""
        return API_URL

    # Programs inside the node

    def exec(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside the node to its end; see `Node.exec`."""
        return self.node.exec(argv, **options)

    def popen(self, argv: Sequence[str | Path], **options: Any) -> Process:
        """Start a program inside the node; see `Node.popen`."""
        return self.node.popen(argv, **options)

    def logs(self, name: str) -> str:
        """Return the log of a component, or of a program that was started under this name."""
        return self.node.logs(name)

    # Components

    def start_component(self, name: str) -> Process:
        """Start a component that does not run: etcd, containerd, kubelet or one of the kube- programs."""
        return self.node.start_component(name)

    def component(self, name: str) -> Process:
        """Return the process of a component that runs."""
        return self.node.component(name)

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        """End a component, in order or at once."""
        self.node.stop_component(name, kill=kill)

    def start_kubelet(self) -> None:
        """Start the kubelet and wait until it answers."""
        self.node.start_kubelet()

    def stop_kubelet(self) -> None:
        """End the kubelet in order; containers run on."""
        self.node.stop_kubelet()

    def kill_kubelet(self) -> None:
        """End the kubelet at once; containers run on."""
        self.node.kill_kubelet()

    def restart_kubelet(self) -> None:
        """End the kubelet in order and start it again."""
        self.node.restart_kubelet()

    def stop_apiserver(self) -> None:
        """Make the API server vanish; what it stored stays."""
        self.stop_component("kube-apiserver", kill=True)

    def start_apiserver(self) -> None:
        """Start the API server and wait until it answers."""
        self.start_component("kube-apiserver")
        self._wait_for_api()

    def _wait_for_api(self) -> None:
        def answers() -> bool:
            if (status := self.component("kube-apiserver").poll()) is not None:
                log = tail(self.logs("kube-apiserver"))
                raise RuntimeError(f"kube-apiserver ended with status {status}:\n{log}")
            return bool(self.api.get("/readyz"))

        self.wait_for(answers, 60, "the API server to be ready", interval=0.05)

    # Identities

    def api_as(self, token: str) -> Api:
        """Give a client that speaks with a token."""
        api = Api(self.node.connect, self.workdir / "ca.crt", token)
        self._cleanup.callback(api.close)
        return api

    def kubeconfig_for_service_account(
        self, namespace: str, name: str, *, bound: Object | None = None
    ) -> Path:
        """Write a kubeconfig with such a token and return its path, the same inside the node and outside."""
        token = self.service_account_token(namespace, name, bound=bound)
        return components.kubeconfig(self.layout, f"{namespace}:{name}", token)

    # Devices and images

    def mknod(self, path: str, kind: str, major: int, minor: int, mode: int = 0o660) -> None:
        """Make a device node inside the node; see `Node.mknod`."""
        self.node.mknod(path, kind, major, minor, mode)

    def rm(self, path: str) -> None:
        """Remove a device node inside the node."""
        self.node.rm(path)

    def loop_minor(self) -> int:
        """Take the minor number (major 7) of a loop device that nobody else on the machine uses."""
        return self._minors.take()

    def add_judged_device(self, path: str, mode: int = 0o660, *, node: Member | None = None) -> int:
        """Make a device that the kernel lets only one opener have with O_EXCL, and return its minor."""
        minor = self.loop_minor()
        (node or self.node).add_judged_device(path, minor, mode)
        return minor

    def import_image(self, archive: Path) -> None:
        """Bring the images of an OCI archive into every node."""
        for node in self.nodes:
            node.import_image(archive)

    def in_network(self) -> AbstractContextManager[None]:
        """Let this thread make sockets in the node's network, for the length of a `with` block."""
        return network.entered(self.node.pid)

    # Waiting

    def wait_for(self, predicate: Callable[[], T], timeout: float, what: str, interval: float = 0.1) -> T:
        """Call `predicate` until it gives something true, and return that; see `waiting.wait_for`.

        Raises:
            NotInTime: it did not in `timeout` seconds.
        """
        return wait_for(predicate, timeout, what, interval, self._state)

    def _state(self) -> str:
        parts = []
        try:
            parts += [_event(event) for event in self.list("Event")[-15:]]
        except (ApiError, OSError, RuntimeError) as error:
            parts.append(f"no events to show: {error}")
        parts += [line for node in self.nodes for line in node.ended()]
        return "\n".join(parts)


def _is_ready(node: Object) -> bool:
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
    return ready and not node["spec"].get("taints")


def _event(event: Object) -> str:
    about = event["involvedObject"]
    return f"event: {about.get('kind')} {about.get('name')}: {event.get('reason')}: {event.get('message')}"
