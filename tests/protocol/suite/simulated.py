"""The simulated node as scenarios see it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge.sandbox import make
from bridge.sandbox.cluster.objects import uid_of
from bridge.sandbox.kubelet.runtime import EXIT_CODE, RUN_SECONDS, STOP_SECONDS
from bridge.sandbox.node import Sandbox, Timings
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import Box, Got, Object, Pod, Request

TIMINGS = Timings(
    node_status=0.05,
    watcher_retry=0.1,
    watcher_retry_most=0.4,
    pod_retry=0.05,
    pod_retry_most=0.2,
    reconcile=0.2,
    wipe_delay=2.5,
    endpoint_grace=300,
    health_reconnect=0.1,
    pod_sync=0.1,
    dial=0.5,
)

QUICK = 0.1
"""Simulated containers that end by themselves do so in a tenth of their time."""


class SimulatedNode(Node):
    """A sandbox of its own for each scenario."""

    simulated = True
    poll_s = 0.01
    limit_s = 15.0
    namespace = "default"

    def __init__(self, box: Sandbox, profile: str, number: int) -> None:
        super().__init__(number)
        major, minor = profile.split(".")
        self.box, self.name, self.version = box, box.node, (int(major), int(minor))
        self.kubelet, self.cdi = box.paths.kubelet, box.paths.cdi_dynamic
        box.tree.add("/dev/null")

    def inside(self, path: Path) -> str:
        return str(path)

    # Pods

    async def create(self, pod: Pod) -> str:
        made = make.pod(
            pod.name,
            containers=[_container(box) for box in pod.boxes],
            init=[_container(box) for box in pod.init],
            claims=pod.claims,
            restart=pod.restart,
            grace=pod.grace,
            node=self.name if pod.bound else "",
        )
        notes = made["metadata"]["annotations"]
        for box in (*pod.init, *pod.boxes):
            notes[f"{STOP_SECONDS}.{box.name}"] = str(box.stop)
            notes[f"{EXIT_CODE}.{box.name}"] = str(box.exit_code)
            if box.run is not None:
                notes[f"{RUN_SECONDS}.{box.name}"] = str(box.run * QUICK)
        return uid_of(self.box.create_pod(made))

    async def pod(self, name: str) -> Object | None:
        return self.box.get("pods", name)

    async def delete(self, name: str, *, force: bool = False) -> None:
        self.box.delete_pod(name, force=force)

    async def got(self, pod: str, box: str = "main") -> Got:
        async def started() -> bool:
            return self.box.container(pod, box) is not None

        await self.until(started, f"container {box} of {pod} to start")
        container = self.box.container(pod, box)
        assert container is not None
        env = {key: value for key, value in container.got.env.items() if key.startswith("SUITE_")}
        nodes = {n.container_path for n in container.got.nodes if n.container_path.startswith("/dev/suite-")}
        return Got(env, frozenset(nodes))

    async def alive(self, container_id: str) -> bool:
        found = self.box.runtime.containers.get(container_id)
        return found is not None and found.running

    async def events(self, pod: str, reason: str) -> list[str]:
        found = self.box.api.registry.select("events", "default")
        return [
            event["message"]
            for event in found
            if event["involvedObject"]["name"] == pod and event["reason"] == reason
        ]

    # The node

    async def status(self) -> Object:
        found: Object = self.box.api.registry.get("nodes", self.name)["status"]
        return found

    async def stop_kubelet(self) -> None:
        await self.box.kubelet.kill()

    async def start_kubelet(self) -> None:
        await self.box.kubelet.start()

    # DRA

    async def publish(self, driver: str, devices: Sequence[str]) -> None:
        if self.box.get("deviceclasses", driver, "") is None:
            self.box.create_class(driver, driver)
        self.box.create(
            "resourceslices",
            {
                "metadata": {"name": f"{self.name}-{driver}"},
                "spec": {
                    "driver": driver,
                    "nodeName": self.name,
                    "pool": {"name": self.name, "generation": 1, "resourceSliceCount": 1},
                    "devices": [{"name": device} for device in devices],
                },
            },
        )

    async def slices(self, driver: str) -> list[Object]:
        return self.box.slices(driver)

    async def claim(self, name: str, *requests: Request) -> str:
        asked = [make.request(one.driver, one.name, count=one.count) for one in requests]
        return uid_of(self.box.create_claim(name, *asked))

    async def claim_status(self, name: str) -> Object | None:
        found = self.box.get("resourceclaims", name)
        return None if found is None else found.get("status", {})

    async def clear(self) -> None:
        """Nothing to do: the node goes with the scenario."""


def _container(box: Box) -> Object:
    made = make.container(box.name, limits=box.limits, claims=box.claims, always=box.sidecar)
    if box.cpu:
        made["resources"].setdefault("requests", {})["cpu"] = str(box.cpu)
    return made
