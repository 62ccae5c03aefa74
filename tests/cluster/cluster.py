"""A real Kubernetes cluster of one node, for as long as a `with` block lasts."""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.cluster import build, certs, cgroups, components, consoles, images, loops, network, workdirs
from tests.cluster.addresses import API_URL
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.audit import NAME as AUDIT_LOG
from tests.cluster.kinds import usual_version
from tests.cluster.node import Node
from tests.cluster.processes import Process
from tests.cluster.versions import DEFAULT, release
from tests.cluster.waiting import retry, wait_for

T = TypeVar("T")

_ARGV: Mapping[str, Callable[[components.Layout], list[str]]] = {
    "etcd": components.etcd,
    "containerd": components.containerd,
    "kube-apiserver": components.api_server,
    "kube-scheduler": components.scheduler,
    "kube-controller-manager": components.controller_manager,
    "kubelet": components.kubelet,
}


class Cluster:
    """One control plane and one node.

    Attributes:
        release: what is known about its Kubernetes release.
        node: its node, with everything that concerns namespaces, programs and devices.
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
        workdir: Path | None = None,
        audit: bool = False,
    ) -> None:
        """Describe a cluster; `start` or a `with` block makes it.

        Args:
            k8s: the Kubernetes release; without one `$K8S`, else the default.
            feature_gates: for every component.
            kubelet_config: merged into the KubeletConfiguration, such as `{"topologyManagerPolicy": "..."}`.
            extra_args: more flags by component, such as `{"kube-apiserver": ["--v=4"]}`.
            node_name: the node's name.
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
        self._running: dict[str, Process] = {}
        self._minors = loops.LoopMinors()
        self._cleanup = ExitStack()
        self._layout: components.Layout | None = None
        self._api: Api | None = None
        self._node: Node | None = None

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
        """Boot, and return when the node is ready for pods; call `stop` even if this fails."""
        workdirs.sweep()
        cgroups.sweep()
        loops.sweep()
        consoles.release()
        programs = [build.kubernetes(self.release), build.runtime()]
        archive = images.archive()
        self._prepare(programs)
        for name in ("etcd", "containerd", "kube-apiserver"):
            self.start_component(name)
        self.wait_for(self.node.outside(components.CONTAINERD_SOCKET).exists, 30, "containerd to listen")
        self.import_image(archive)
        self._wait_for_api()
        for name in ("kubelet", "kube-controller-manager", "kube-scheduler"):
            self.start_component(name)
        self.wait_for(self._ready, 60, "the node to be ready for pods", interval=0.05)

    def stop(self) -> None:
        """End everything and remove every trace of it."""
        self._running.clear()
        self._cleanup.close()

    def _prepare(self, programs: Sequence[Path]) -> None:
        """Make what the components need, and note for each thing how it goes away again."""
        self.workdir.mkdir(parents=True)
        self._cleanup.callback(retry, partial(workdirs.remove, self.workdir))
        cgroup = cgroups.create()
        self._cleanup.callback(retry, partial(cgroups.remove, cgroup))
        self._cleanup.callback(self._minors.release)
        self._cleanup.callback(consoles.release)
        secret = certs.create(self.workdir, self.node_name)
        self._layout = components.Layout(
            release=self.release,
            directory=self.workdir,
            node_name=self.node_name,
            cgroup=cgroup,
            credentials=secret,
            feature_gates=self._gates,
            kubelet_config=self._kubelet_config,
            extra_args=self._extra_args,
            audit=self._audit,
        )
        self._node = Node(self.node_name, self.workdir, programs)
        self._cleanup.callback(self._node.stop)
        self._node.start()
        self._api = self.api_as(secret.tokens["admin"])
        components.kubeconfig(self._layout, "admin")

    def _ready(self) -> bool:
        node = self.api.get(f"/api/v1/nodes/{self.node_name}")
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
        account = self.api.get("/api/v1/namespaces/default/serviceaccounts/default")
        return ready and not node["spec"].get("taints") and bool(account)

    # Where things are

    @property
    def version(self) -> str:
        """The Kubernetes release, without a leading `v`."""
        return self.release.version

    @property
    def node(self) -> Node:
        """The node."""
        return _started(self._node)

    @property
    def api(self) -> Api:
        """The administrator's client."""
        return _started(self._api)

    @property
    def layout(self) -> components.Layout:
        """What the components have in common."""
        return _started(self._layout)

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
        process = self._running[name] = self.node.popen(_ARGV[name](self.layout), name=name)
        return process

    def component(self, name: str) -> Process:
        """Return the process of a component that runs."""
        return self._running[name]

    def stop_component(self, name: str, *, kill: bool = False) -> None:
        """End a component, in order or at once."""
        process = self._running.pop(name)
        if kill:
            process.kill()
            process.wait()
        else:
            process.stop()

    def start_kubelet(self) -> None:
        """Start the kubelet and wait until it answers."""
        self.start_component("kubelet")
        self.wait_for(self._kubelet_healthy, 30, "the kubelet to be healthy")

    def stop_kubelet(self) -> None:
        """End the kubelet in order; containers run on."""
        self.stop_component("kubelet")

    def kill_kubelet(self) -> None:
        """End the kubelet at once; containers run on."""
        self.stop_component("kubelet", kill=True)

    def restart_kubelet(self) -> None:
        """End the kubelet in order and start it again."""
        self.stop_kubelet()
        self.start_kubelet()

    def stop_apiserver(self) -> None:
        """Make the API server vanish; what it stored stays."""
        self.stop_component("kube-apiserver", kill=True)

    def start_apiserver(self) -> None:
        """Start the API server and wait until it answers."""
        self.start_component("kube-apiserver")
        self._wait_for_api()

    def _kubelet_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", 10248)
        connection.sock = self.node.connect(("127.0.0.1", 10248), 1)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()

    def _wait_for_api(self) -> None:
        def answers() -> bool:
            if (status := self._running["kube-apiserver"].poll()) is not None:
                log = _tail(self.logs("kube-apiserver"))
                raise RuntimeError(f"kube-apiserver ended with status {status}:\n{log}")
            return bool(self.api.get("/readyz"))

        self.wait_for(answers, 60, "the API server to be ready", interval=0.05)

    # Objects

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> str:
        """Run kubectl as the administrator and return what it printed."""
        command: Sequence[str | Path] = ["kubectl", "--kubeconfig", self.admin_kubeconfig, *arguments]
        return self.exec(command, input=input, check=check, timeout=timeout).stdout

    def apply(self, what: str | Path | Object | Sequence[Object]) -> None:
        """Apply objects server-side: YAML text, a file or a kustomize folder, one object or several."""
        if isinstance(what, str):
            self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=what)
        elif isinstance(what, Path):
            flag = "-k" if what.is_dir() else "-f"
            self.kubectl("apply", "--server-side", "--force-conflicts", flag, str(what.resolve()))
        else:
            for manifest in [what] if isinstance(what, dict) else what:
                self.api.apply(manifest)

    def get(self, kind: str, name: str, namespace: str = "default", api_version: str | None = None) -> Object:
        """Read one object.

        Raises:
            ApiError: there is none, with code 404.
        """
        return self.api.get(self._path(kind, namespace, name, api_version))

    def list(
        self, kind: str, namespace: str | None = None, api_version: str | None = None, **query: object
    ) -> list[Object]:
        """List objects of a kind, of all namespaces unless one is given; `query` may hold selectors."""
        return self.api.items(self._path(kind, namespace, None, api_version), **query)

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "default",
        *,
        api_version: str | None = None,
        grace_seconds: int | None = None,
        wait: float | None = 60,
    ) -> None:
        """Delete an object and wait up to `wait` seconds until it is gone; `None` does not wait."""
        path = self._path(kind, namespace, name, api_version)
        self.api.delete(path, grace_seconds=grace_seconds)
        if wait is not None:
            self.wait_for(lambda: _gone(self.api, path), wait, f"{kind} {name} to be gone", interval=0.05)

    def pod_logs(self, name: str, namespace: str = "default") -> str:
        """Return what a pod's only container has written."""
        text: str = self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}/log")["text"]
        return text

    def _path(self, kind: str, namespace: str | None, name: str | None, api_version: str | None) -> str:
        guessed = api_version or usual_version(kind, self.release.resource_api)
        return self.api.path(guessed, kind, namespace, name)

    # Identities

    def api_as(self, token: str) -> Api:
        """Give a client that speaks with a token."""
        api = Api(self.node.connect, self.workdir / "ca.crt", token)
        self._cleanup.callback(api.close)
        return api

    def service_account_token(self, namespace: str, name: str, *, bound: Object | None = None) -> str:
        """Ask for a token of a service account that says on which node its bearer runs.

        Args:
            namespace: of the service account.
            name: of the service account, which must exist.
            bound: an object (a pod on the node) to bind the token to; without one it is the Node itself.
        """
        to = bound or {"apiVersion": "v1", "kind": "Node", **self.get("Node", self.node_name)}
        reference = {
            "apiVersion": "v1",
            "kind": to.get("kind", "Pod"),
            "name": to["metadata"]["name"],
            "uid": to["metadata"]["uid"],
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        spec = {"boundObjectRef": reference, "expirationSeconds": 24 * 3600}
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        token: str = self.api.create(path, asked)["status"]["token"]
        return token

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

    def add_judged_device(self, path: str, mode: int = 0o660) -> int:
        """Make a device that the kernel lets only one opener have with O_EXCL, and return its minor."""
        minor = self.loop_minor()
        self.mknod(path, "b", loops.MAJOR, minor, mode)
        return minor

    def import_image(self, archive: Path) -> None:
        """Bring the images of an OCI archive into the node."""
        self.exec(["ctr", "-n", "k8s.io", "images", "import", "--local", archive.resolve()], timeout=300)

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
        for name, process in self._running.items():
            if process.poll() is not None:
                parts.append(f"{name} has ended ({process.returncode}):\n{_tail(self.logs(name))}")
        return "\n".join(parts)


def _started(value: T | None) -> T:
    if value is None:
        raise RuntimeError("the cluster has not been started")
    return value


def _gone(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        return error.code == http.client.NOT_FOUND
    return False


def _event(event: Object) -> str:
    about = event["involvedObject"]
    return f"event: {about.get('kind')} {about.get('name')}: {event.get('reason')}: {event.get('message')}"


def _tail(text: str, lines: int = 20) -> str:
    return "\n".join(text.splitlines()[-lines:])
