"""`Sandbox`: one node and its cluster put together, with what a tour and the tests ask of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from bridge.sandbox import make
from bridge.sandbox.cdi import Specs
from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.controllers import Controllers
from bridge.sandbox.cluster.objects import ApiProblem, Object, dig, name_of, namespace_of, uid_of
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.resources import PROFILES
from bridge.sandbox.cluster.scheduler import Scheduler
from bridge.sandbox.cluster.store import Change, Store
from bridge.sandbox.kubelet.context import Context, Timings
from bridge.sandbox.kubelet.cri import CriServer
from bridge.sandbox.kubelet.kubelet import Kubelet
from bridge.sandbox.kubelet.runtime import Container, Runtime
from bridge.sandbox.observe import Observations
from bridge.sandbox.paths import Paths
from bridge.sandbox.tasks import CRASHED
from bridge.sandbox.tree import Tree

TOKEN = "sandbox-daemon"  # noqa: S105  # admits nobody anywhere: the sandbox's server looks at no token


class SandboxBroken(AssertionError):
    """A part of the sandbox itself crashed: what was observed is not to be trusted."""


class Sandbox:
    """A node in a temporary folder. Use as an async context manager.

    Attributes:
        node: the node's name.
        paths: where everything lies.
        observe: what was seen.
        tree: the device tree.
        api: the API server; `api.registry` is its inside.
        kubelet, runtime, cri, scheduler, controllers: the other parts.
    """

    def __init__(
        self,
        *,
        profile: str = "1.37",
        node: str = "node-a",
        timings: Timings | None = None,
        folder: Path | None = None,
    ) -> None:
        self.node = node
        self._folder = folder
        self._profile = PROFILES[profile]
        self._timings = timings or Timings()
        self._stack: list[Callable[[], object]] = []

    async def __aenter__(self) -> Self:
        base = self._folder or Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="sb-"))
        self.paths = Paths(base)
        self.paths.make()
        self.observe = Observations()
        self.tree = Tree(self.paths.root, self.observe)
        registry = Registry(Store(), self._profile)
        self.api = await ApiServer(registry, self.observe).start()
        self._write_kubeconfig()
        self.add_node(self.node)
        self.runtime = Runtime(Specs(self.paths.cdi_static, self.paths.cdi_dynamic), self.tree, self.observe)
        self.cri = CriServer(self.paths.cri_socket, self.runtime)
        await self.cri.start()
        context = Context(self.node, self.paths, self.api, self.observe, self._timings)
        self.kubelet = Kubelet(context, self.runtime)
        await self.kubelet.start()
        self.scheduler = Scheduler(self.api, self.observe)
        self.controllers = Controllers(self.api, self.observe)
        self.scheduler.start()
        self.controllers.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.scheduler.stop()
        await self.controllers.stop()
        if self.kubelet.running:
            await self.kubelet.kill()
        self.runtime.power_off(lambda container: False)
        await self.cri.stop()
        await self.api.stop()
        if self._folder is None:
            await asyncio.to_thread(shutil.rmtree, self.paths.base)
        if (crashes := self.observe.of(CRASHED)) and error is None:
            raise SandboxBroken("\n".join(str(crash) for crash in crashes))

    def _write_kubeconfig(self) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sandbox",
            "clusters": [{"name": "sandbox", "cluster": {"server": self.api.url}}],
            "users": [{"name": "daemon", "user": {"token": TOKEN}}],
            "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "daemon"}}],
        }
        self.paths.kubeconfig.write_text(yaml.safe_dump(config))

    # -- objects

    def add_node(self, name: str, labels: dict[str, str] | None = None) -> Object:
        """Make a Node object; only `self.node` has a kubelet."""
        made = self.api.registry.create("nodes", {"metadata": {"name": name, "labels": labels or {}}})
        made["status"] = {"capacity": {"cpu": "2"}, "allocatable": {"cpu": "2"}}
        return self.api.registry.replace("nodes", made, "status")

    def label_node(self, **labels: str | None) -> None:
        """Set or remove (None) labels of the node; `__` in a key stands for `/`."""
        wanted = {key.replace("__", "/"): value for key, value in labels.items()}
        self.api.registry.patch("nodes", self.node, {"metadata": {"labels": wanted}}, kind="merge")

    def create(self, plural: str, obj: Object) -> Object:
        """Create any object."""
        return self.api.registry.create(plural, obj, namespace_of(obj))

    def create_pod(self, pod: Object) -> Object:
        """Create a pod (see `make.pod`)."""
        return self.create("pods", pod)

    def create_class(
        self, name: str, driver: str, *, extended: str = "", parameters: Object | None = None
    ) -> Object:
        """Create a DeviceClass of all devices of a driver."""
        return self.create(
            "deviceclasses", make.device_class(name, driver, extended=extended, parameters=parameters)
        )

    def create_claim(self, name: str, *requests: Object) -> Object:
        """Create a ResourceClaim in `default` (see `make.request`)."""
        return self.create("resourceclaims", make.claim(name, make.claim_spec(*requests)))

    def create_template(self, name: str, *requests: Object) -> Object:
        """Create a ResourceClaimTemplate in `default`."""
        return self.create("resourceclaimtemplates", make.template(name, make.claim_spec(*requests)))

    def get(self, plural: str, name: str, namespace: str = "default") -> Object | None:
        """Return an object or None."""
        return self.api.registry.find_one(plural, name, namespace)

    def pod(self, name: str, namespace: str = "default") -> Object:
        """Return a pod; raises 404."""
        return self.api.registry.get("pods", name, namespace)

    def delete_pod(self, name: str, *, force: bool = False, namespace: str = "default") -> None:
        """Delete a pod; `force` is `--force --grace-period=0` (H9)."""
        self.api.registry.delete("pods", name, namespace, grace=0 if force else None)

    def allocatable(self, resource: str) -> int | None:
        """Return Node.status.allocatable of a resource; None if it is not there."""
        value = dig(self.api.registry.get("nodes", self.node), "status.allocatable", {}).get(resource)
        return None if value is None else int(value)

    def slices(self, driver: str = "") -> list[Object]:
        """Return the node's slices (of one driver)."""
        fields = f"spec.nodeName={self.node}" + (f",spec.driver={driver}" if driver else "")
        return self.api.registry.select("resourceslices", fields=fields)

    def container(self, pod: str, name: str = "main", namespace: str = "default") -> Container | None:
        """Return a pod's newest container of that name: what it got is in `.got`."""
        return self.runtime.latest(uid_of(self.pod(pod, namespace)), name)

    # -- waiting

    async def until(self, met: Callable[[], bool], what: str, within: float = 20) -> None:
        """Wait until a condition on the API server's content holds; looked at after each write.

        Raises:
            TimeoutError: with the last observations.
        """
        changed = asyncio.Event()

        def heard(change: Change) -> None:
            changed.set()

        unlisten = self.api.registry.store.listen(heard)
        try:
            async with asyncio.timeout(within):
                while not met():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            tail = "\n".join(str(seen) for seen in list(self.observe)[-20:])
            raise TimeoutError(f"not within {within} s: {what}; last seen:\n{tail}") from None
        finally:
            unlisten()

    async def wait_phase(
        self, name: str, phase: str, namespace: str = "default", within: float = 20
    ) -> Object:
        """Wait for a pod's phase; return the pod."""

        def met() -> bool:
            return bool(dig(self.get("pods", name, namespace), "status.phase") == phase)

        await self.until(met, f"pod {namespace}/{name} {phase}", within)
        return self.pod(name, namespace)

    async def wait_gone(self, plural: str, name: str, namespace: str = "default", within: float = 20) -> None:
        """Wait until an object is gone."""
        await self.until(lambda: self.get(plural, name, namespace) is None, f"{plural} {name} gone", within)

    async def wait_allocatable(self, resource: str, count: int, within: float = 20) -> None:
        """Wait for Node.status.allocatable of a resource."""
        await self.until(
            lambda: self.allocatable(resource) == count, f"{resource} allocatable {count}", within
        )

    # -- the node's fate

    async def reboot(self) -> None:
        """Power off and on: containers are gone, `/var/run/cdi` is empty, the boot id is new; objects stay."""
        if self.kubelet.running:
            await self.kubelet.kill()
        never = {
            uid_of(p) for p in self.api.registry.select("pods") if dig(p, "spec.restartPolicy") == "Never"
        }
        self.runtime.power_off(lambda container: container.pod_uid in never)
        for path in self.paths.cdi_dynamic.iterdir():
            path.unlink()
        self.tree.new_boot()
        await self.kubelet.start()


__all__ = ["ApiProblem", "Sandbox", "SandboxBroken", "Timings", "make", "name_of"]
