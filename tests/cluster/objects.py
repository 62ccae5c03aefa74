"""The objects of a cluster: applied, read, deleted, and the identities that are made from them."""

from __future__ import annotations

import http.client
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.kinds import usual_version
from tests.cluster.versions import Release

T = TypeVar("T")


class Objects(ABC):
    """What a cluster stores, as an administrator sees it.

    Attributes:
        release: what is known about its Kubernetes release.
        node_name: its first node's name.
    """

    release: Release
    node_name: str

    @property
    @abstractmethod
    def api(self) -> Api:
        """The administrator's client."""

    @property
    @abstractmethod
    def admin_kubeconfig(self) -> Path:
        """The administrator's kubeconfig; its address answers inside the cluster's network only."""

    @abstractmethod
    def exec(self, argv: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside the first node to its end; see `Node.exec`."""

    @abstractmethod
    def wait_for(self, predicate: Callable[[], T], timeout: float, what: str, interval: float = 0.1) -> T:
        """Call `predicate` until it gives something true, and return that; see `waiting.wait_for`."""

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

    def service_account_token(self, namespace: str, name: str, *, bound: Object | None = None) -> str:
        """Ask for a token of a service account that says on which node its bearer runs.

        Args:
            namespace: of the service account.
            name: of the service account, which must exist.
            bound: an object to bind the token to, a Node or a pod on it; without one it is the first Node.
        """
        to = bound or {"kind": "Node", **self.get("Node", self.node_name)}
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

    def _path(self, kind: str, namespace: str | None, name: str | None, api_version: str | None) -> str:
        guessed = api_version or usual_version(kind, self.release.resource_api)
        return self.api.path(guessed, kind, namespace, name)


def _gone(api: Api, path: str) -> bool:
    try:
        api.get(path)
    except ApiError as error:
        return error.code == http.client.NOT_FOUND
    return False
