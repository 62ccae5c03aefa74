"""A real node as scenarios see it: kubelet, scheduler, API server and containerd of the test bed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.cluster import BUSYBOX, ApiError, Cluster
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import Box, Got, Object, Pod, Request

T = TypeVar("T")

KUBELET = Path("/var/lib/kubelet")
_END = "suite-end"
_SHOW = f"env | grep ^SUITE_ || true; ls -d /dev/suite-* 2>/dev/null || true; echo {_END}"


class RealNode(Node):
    """A namespace of its own on a cluster that all scenarios share."""

    simulated = False
    poll_s = 0.05
    limit_s = 60.0

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__(number)
        self._cluster = cluster
        self.name, self.namespace = cluster.node_name, f"suite-{number}"
        major, minor = cluster.release.major_minor
        self.version = (int(major), int(minor))
        self.kubelet = cluster.node.outside(KUBELET)
        self.cdi = cluster.node.outside("/run/cdi")  # /var/run is a link that would lead out of the node
        self._flat = cluster.release.resource_api == "v1beta1"
        self._made: list[tuple[str, str]] = []

    async def _do(self, action: Callable[[], T]) -> T:
        return await asyncio.to_thread(action)

    async def open(self) -> None:
        """Make the namespace, and wait until pods can be made in it."""
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        await self._do(lambda: self._cluster.apply(made))

        async def account() -> bool:
            return await self._find("ServiceAccount", "default") is not None

        await self.until(account, "the account of pods")

    async def close(self) -> None:
        """Remove what scenarios leave in the cluster."""
        for kind, name in [*self._made, ("Namespace", self.namespace)]:
            await self._do(lambda kind=kind, name=name: self._cluster.delete(kind, name, wait=None))  # type: ignore[misc]

    def inside(self, path: Path) -> str:
        return str(KUBELET / path.relative_to(self.kubelet))

    async def _find(self, kind: str, name: str) -> Object | None:
        try:
            return await self._do(lambda: self._cluster.get(kind, name, self.namespace))
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    async def _create(self, kind: str, manifest: Object) -> Object:
        path = self._cluster.api.path(manifest["apiVersion"], kind, self.namespace)
        return await self._do(lambda: self._cluster.api.create(path, {"kind": kind, **manifest}))

    # Pods

    async def create(self, pod: Pod) -> str:
        spec: Object = {
            "restartPolicy": pod.restart,
            "terminationGracePeriodSeconds": pod.grace,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [_container(box) for box in pod.boxes],
            "initContainers": [_container(box) for box in pod.init],
            "resourceClaims": [{"name": n, "resourceClaimName": c} for n, c in pod.claims.items()],
        }
        if pod.bound:
            spec["nodeName"] = self.name
        made = await self._create("Pod", {"apiVersion": "v1", "metadata": {"name": pod.name}, "spec": spec})
        uid: str = made["metadata"]["uid"]
        return uid

    async def pod(self, name: str) -> Object | None:
        return await self._find("Pod", name)

    async def delete(self, name: str, *, force: bool = False) -> None:
        grace = 0 if force else None
        await self._do(
            lambda: self._cluster.delete("Pod", name, self.namespace, grace_seconds=grace, wait=None)
        )

    async def got(self, pod: str, box: str = "main") -> Got:
        path = self._cluster.api.path("v1", "Pod", self.namespace, pod)

        async def text() -> str:
            try:
                found = await self._do(lambda: self._cluster.api.get(f"{path}/log", container=box))
            except ApiError:
                return ""
            shown = str(found["text"])
            return shown if _END in shown else ""

        lines = (await self.until(text, f"the log of {box} in {pod}")).splitlines()
        env = dict(line.split("=", 1) for line in lines if re.match(r"SUITE_\w+=", line))
        return Got(env, frozenset(line for line in lines if line.startswith("/dev/suite-")))

    async def alive(self, container_id: str) -> bool:
        found = await self._do(lambda: self._cluster.exec(["ctr", "--namespace", "k8s.io", "task", "ls"]))
        return any(
            line.split()[0] == container_id and "RUNNING" in line
            for line in found.stdout.splitlines()
            if line
        )

    async def events(self, pod: str, reason: str) -> list[str]:
        query = {"fieldSelector": f"involvedObject.name={pod},reason={reason}"}
        found = await self._do(lambda: self._cluster.list("Event", self.namespace, **query))
        return [event["message"] for event in found for _ in range(event.get("count") or 1)]

    # The node

    async def status(self) -> Object:
        found: Object = (await self._do(lambda: self._cluster.get("Node", self.name)))["status"]
        return found

    async def stop_kubelet(self) -> None:
        await self._do(self._cluster.stop_kubelet)

    async def start_kubelet(self) -> None:
        await self._do(self._cluster.start_kubelet)

    # DRA

    @property
    def _version(self) -> str:
        return f"resource.k8s.io/{self._cluster.release.resource_api}"

    async def publish(self, driver: str, devices: Sequence[str]) -> None:
        expression = f'device.driver == "{driver}"'
        manifest: Object = {
            "apiVersion": self._version,
            "kind": "DeviceClass",
            "metadata": {"name": driver},
            "spec": {"selectors": [{"cel": {"expression": expression}}]},
        }
        await self._do(lambda: self._cluster.apply(manifest))
        listed: list[Object] = [
            {"name": device, "basic": {}} if self._flat else {"name": device} for device in devices
        ]
        name = f"{self.name}-{driver}"
        spec: Object = {
            "driver": driver,
            "nodeName": self.name,
            "pool": {"name": self.name, "generation": 1, "resourceSliceCount": 1},
            "devices": listed,
        }
        await self._create(
            "ResourceSlice", {"apiVersion": self._version, "metadata": {"name": name}, "spec": spec}
        )
        self._made += [("DeviceClass", driver), ("ResourceSlice", name)]

    async def slices(self, driver: str) -> list[Object]:
        fields = f"spec.driver={driver},spec.nodeName={self.name}"
        return await self._do(lambda: self._cluster.list("ResourceSlice", fieldSelector=fields))

    async def claim(self, name: str, *requests: Request) -> str:
        asked: list[Object] = []
        for one in requests:
            exactly = {"deviceClassName": one.driver, "count": one.count, "allocationMode": "ExactCount"}
            asked.append({"name": one.name, **(exactly if self._flat else {"exactly": exactly})})
        spec = {"devices": {"requests": asked}}
        made = await self._create(
            "ResourceClaim", {"apiVersion": self._version, "metadata": {"name": name}, "spec": spec}
        )
        uid: str = made["metadata"]["uid"]
        return uid

    async def claim_status(self, name: str) -> Object | None:
        found = await self._find("ResourceClaim", name)
        return None if found is None else found.get("status", {})

    async def clear(self) -> None:
        """Remove all pods and claims; where there are claims, wait for the pods' end."""
        with_claims = bool(await self._do(lambda: self._cluster.list("ResourceClaim", self.namespace)))
        for pod in await self._do(lambda: self._cluster.list("Pod", self.namespace)):
            await self.delete(pod["metadata"]["name"], force=not with_claims)

        async def none_left() -> bool:
            return not await self._do(lambda: self._cluster.list("Pod", self.namespace))

        await self.until(none_left, "every pod to be gone")
        for claim in await self._do(lambda: self._cluster.list("ResourceClaim", self.namespace)):
            name = claim["metadata"]["name"]
            await self._do(
                lambda name=name: self._cluster.delete("ResourceClaim", name, self.namespace, wait=None)  # type: ignore[misc]
            )


def _container(box: Box) -> Object:
    trap = f"trap 'sleep {box.stop}; exit 143' TERM"
    for_ever = "while :; do sleep 3600 & wait $!; done"
    live = for_ever if box.run is None else f"sleep {box.run}; exit {box.exit_code}"
    amounts = {name: str(count) for name, count in box.limits.items()}
    requests = {**amounts, "cpu": str(box.cpu)} if box.cpu else amounts
    claims = [
        {"name": name, "request": request} if request else {"name": name}
        for name, _, request in (claim.partition("/") for claim in box.claims)
    ]
    made: Object = {
        "name": box.name,
        "image": BUSYBOX,
        "command": ["sh", "-c", f"{trap}; {_SHOW}; {live}"],
        "resources": {"limits": amounts, "requests": requests, "claims": claims},
    }
    return {**made, "restartPolicy": "Always"} if box.sidecar else made
