"""A node of a cluster: namespaces, and in them the components that make a Kubernetes node of it."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.cluster import components, loops
from tests.cluster.node import Node
from tests.cluster.processes import Process
from tests.cluster.waiting import wait_for

_ARGV: Mapping[str, Callable[[components.Layout], list[str]]] = {
    "etcd": components.etcd,
    "containerd": components.containerd,
    "kube-apiserver": components.api_server,
    "kube-scheduler": components.scheduler,
    "kube-controller-manager": components.controller_manager,
    "kubelet": components.kubelet,
}


class Member(Node):
    """A node and its components; the first node of a cluster has the control plane's too.

    Attributes:
        layout: what the components have in common.
    """

    def __init__(self, layout: components.Layout, path: Sequence[Path]) -> None:
        super().__init__(layout.node_name, layout.directory, path, layout.place)
        self.layout = layout
        self._running: dict[str, Process] = {}

    def stop(self) -> None:
        """End every process of the node and wait until the last one is gone."""
        self._running.clear()
        super().stop()

    # Components

    def start_component(self, name: str) -> Process:
        """Start a component that does not run: etcd, containerd, kubelet or one of the kube- programs."""
        process = self._running[name] = self.popen(_ARGV[name](self.layout), name=name)
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

    def ended(self) -> Iterator[str]:
        """Tell of each component that ended by itself, with the last lines of its log."""
        for name, process in self._running.items():
            if process.poll() is not None:
                yield f"{self.name}: {name} has ended ({process.returncode}):\n{tail(self.logs(name))}"

    def start_kubelet(self) -> None:
        """Start the kubelet and wait until it answers."""
        self.start_component("kubelet")
        self._wait_for(self._kubelet_healthy, 30, "the kubelet to be healthy")

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

    def _kubelet_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", 10248)
        connection.sock = self.connect(("127.0.0.1", 10248), 1)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()

    # Devices and images

    def add_judged_device(self, path: str, minor: int, mode: int = 0o660) -> None:
        """Make the node of a loop device, which lets only one opener have it with O_EXCL."""
        self.mknod(path, "b", loops.MAJOR, minor, mode)

    def import_image(self, archive: Path) -> None:
        """Bring the images of an OCI archive into the node."""
        self._wait_for(self.outside(components.CONTAINERD_SOCKET).exists, 30, "containerd to listen")
        self.exec(["ctr", "-n", "k8s.io", "images", "import", "--local", archive.resolve()], timeout=300)

    def _wait_for(self, predicate: Callable[[], bool], timeout: float, what: str) -> None:
        wait_for(predicate, timeout, f"{what} on {self.name}", 0.1, lambda: "\n".join(self.ended()))


def tail(text: str, lines: int = 20) -> str:
    """The last lines of a log."""
    return "\n".join(text.splitlines()[-lines:])
