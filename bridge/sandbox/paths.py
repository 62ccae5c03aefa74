"""Where everything of one sandbox lies: one short folder, because a unix socket's path has 107 bytes at most."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of a node, re-rooted.

    Attributes:
        base: the sandbox's own folder.
    """

    base: Path

    @property
    def kubelet(self) -> Path:
        """The kubelet's root (`/var/lib/kubelet` on a node)."""
        return self.base / "k"

    @property
    def device_plugins(self) -> Path:
        """The folder of `kubelet.sock` and of the kubelet's device checkpoint."""
        return self.kubelet / "device-plugins"

    @property
    def plugins(self) -> Path:
        """The folder for plugins' own data and sockets."""
        return self.kubelet / "plugins"

    @property
    def registry(self) -> Path:
        """The folder that the plugin watcher watches."""
        return self.kubelet / "plugins_registry"

    @property
    def pod_resources(self) -> Path:
        """The socket of the podresources API."""
        return self.kubelet / "pod-resources" / "kubelet.sock"

    @property
    def cdi_static(self) -> Path:
        """`/etc/cdi` on a node: survives a reboot."""
        return self.base / "etc-cdi"

    @property
    def cdi_dynamic(self) -> Path:
        """`/var/run/cdi` on a node: empty after a reboot."""
        return self.base / "run-cdi"

    @property
    def root(self) -> Path:
        """The root of the generated device tree (`dev/`, `sys/`)."""
        return self.base / "root"

    @property
    def cri_socket(self) -> Path:
        """The container runtime's socket."""
        return self.base / "cri.sock"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig file for the sandbox's API server."""
        return self.base / "kubeconfig"

    def make(self) -> None:
        """Make the folders."""
        for folder in (
            self.device_plugins,
            self.plugins,
            self.registry,
            self.pod_resources.parent,
            self.cdi_static,
            self.cdi_dynamic,
            self.root,
        ):
            folder.mkdir(parents=True, exist_ok=True)
