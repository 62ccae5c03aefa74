"""Claims in the API server, allocated to our devices as the scheduler would, and taken back."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dra_v1.api import dra_v1_pb2 as pb
from dra_v1.kube import Json, KubeApi

NAMESPACE = "default"
COLLECTION = f"/apis/resource.k8s.io/v1/namespaces/{NAMESPACE}/resourceclaims"
SHARE_UNIT = "replicas"


@dataclass(frozen=True, slots=True)
class BenchClaim:
    """One claim."""

    name: str
    uid: str

    @property
    def path(self) -> str:
        """Where the API has it."""
        return f"{COLLECTION}/{self.name}"

    @property
    def wire(self) -> pb.Claim:
        """As the kubelet names it."""
        return pb.Claim(namespace=NAMESPACE, name=self.name, uid=self.uid)


class Claims:
    """A pool of claims, and of shares of devices for them.

    Args:
        api: the administrator's client.
        driver, pool: whose devices.
        devices: their names; each has `replicas` shares.
    """

    def __init__(self, api: KubeApi, driver: str, pool: str, devices: Sequence[str], replicas: int) -> None:
        self._api = api
        self._driver = driver
        self._pool = pool
        self._free = deque(device for _ in range(replicas) for device in devices)
        self._idle: deque[BenchClaim] = deque()
        self._places: dict[str, str] = {}

    async def create(self, count: int) -> None:
        """Make claims that are not allocated yet."""
        spec = {"devices": {"requests": [{"name": "d", "exactly": {"deviceClassName": "bench"}}]}}
        bodies = [{"metadata": {"name": f"bench-{i}"}, "spec": spec} for i in range(count)]
        made = await asyncio.gather(*(self._api.create(COLLECTION, body) for body in bodies))
        self._idle.extend(BenchClaim(one["metadata"]["name"], one["metadata"]["uid"]) for one in made)

    async def allocate(self, count: int) -> list[BenchClaim]:
        """Allocate a share of a device to each of so many claims."""
        taken = [self._idle.popleft() for _ in range(count)]
        for claim in taken:
            self._places[claim.name] = self._free.popleft()
        await asyncio.gather(*(self._write(claim, self._allocation(claim)) for claim in taken))
        return taken

    async def deallocate(self, claims: Iterable[BenchClaim]) -> None:
        """Take the shares back."""
        gone = list(claims)
        await asyncio.gather(*(self._write(claim, None) for claim in gone))
        for claim in gone:
            self._free.append(self._places.pop(claim.name))
            self._idle.append(claim)

    async def _write(self, claim: BenchClaim, allocation: Json | None) -> None:
        await self._api.patch(f"{claim.path}/status", {"status": {"allocation": allocation}})

    def _allocation(self, claim: BenchClaim) -> Json:
        result = {
            "request": "d",
            "driver": self._driver,
            "pool": self._pool,
            "device": self._places[claim.name],
            "shareID": str(uuid.uuid4()),
            "consumedCapacity": {SHARE_UNIT: "1"},
        }
        return {"devices": {"results": [result]}}
