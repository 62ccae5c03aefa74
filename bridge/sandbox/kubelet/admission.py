"""Admission of a pod: does it fit, which devices does each container get, and the Allocate calls (A.4, A.6)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    containers,
    dig,
    extended_limits,
    init_containers,
    label_of,
    sidecar,
    uid_of,
)
from bridge.sandbox.kubelet.allocations import NO_NODE, Grant
from bridge.sandbox.kubelet.devices import DeviceManager
from bridge.sandbox.kubelet.endpoint import Endpoint, EndpointError


class Rejected(Exception):
    """A pod that the kubelet does not admit; it becomes Failed with this reason and message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class _AllocateError(Exception):
    """Why a container's devices could not be had."""


@dataclass(slots=True)
class _Choice:
    """Devices chosen for one (container, resource) so far."""

    resource: str
    required: int
    ids: set[str]

    @property
    def needed(self) -> int:
        return self.required - len(self.ids)


def requests_of(pod: Object) -> dict[str, int]:
    """Return what a pod asks of each extended resource: app containers and sidecars added up, or the largest init."""
    total: dict[str, int] = {}
    for container in [*containers(pod), *(c for c in init_containers(pod) if sidecar(c))]:
        for name, count in extended_limits(container).items():
            total[name] = total.get(name, 0) + count
    for container in init_containers(pod):
        if not sidecar(container):
            for name, count in extended_limits(container).items():
                total[name] = max(total.get(name, 0), count)
    return total


def cpu_of(pod: Object) -> int:
    """Return what a pod's app containers ask of whole CPUs."""
    return sum(int(dig(container, "resources.requests", {}).get("cpu", 0)) for container in containers(pod))


def dra_backed(pod: Object) -> set[tuple[str, str]]:
    """Return the (container, resource) pairs that DRA serves (KEP-5004)."""
    mappings: list[Object] = dig(pod, "status.extendedResourceClaimStatus.requestMappings", [])
    return {(m["containerName"], m["resourceName"]) for m in mappings}


class Admission:
    """Admits pods one at a time, as the kubelet's sync loop does.

    Attributes:
        numa: NUMA nodes that the topology manager prefers; None without a policy.
    """

    def __init__(self, manager: DeviceManager) -> None:
        self._manager, self._context = manager, manager.context
        self._reuse: dict[str, dict[str, set[str]]] = {}
        self._running_at_start: set[tuple[str, str]] = set()
        self.numa: set[int] | None = None

    def started(self, running: set[tuple[str, str]]) -> None:
        """Tell which (pod uid, container) were running when the kubelet started."""
        self._running_at_start = running

    async def admit(self, pod: Object, others: list[Object]) -> None:
        """Admit a pod beside `others`, the active pods of the node.

        Raises:
            Rejected: with the reason and message of the pod's status.
        """
        self._reuse = {}
        try:
            for container in [*init_containers(pod), *containers(pod)]:
                await self._container(pod, container)
        except (_AllocateError, EndpointError) as error:
            text = f"Allocate failed due to {error}, which is unexpected"
            raise Rejected("UnexpectedAdmissionError", text) from error
        # Only after the plugins were called, as in the real one: a pod that does not fit has been allocated for.
        self._check_fit(pod, others)

    async def again(self, pod: Object, container: Object) -> None:
        """Allocate for a container that starts without cached devices (GetDeviceRunContainerOptions, A.4).

        Raises:
            Rejected: the container cannot start; the pod is not failed by it.
        """
        granted = self._manager.allocations.of(uid_of(pod), container["name"])
        wanted = {r for r in extended_limits(container) if r in self._manager.healthy}
        backed = {r for name, r in dra_backed(pod) if name == container["name"]}
        if wanted - backed <= set(granted):
            return
        try:
            await self._allocate_all(pod, container, {})
        except (_AllocateError, EndpointError) as error:
            raise Rejected("CreateContainerConfigError", str(error)) from error

    def _check_fit(self, pod: Object, others: list[Object]) -> None:
        manager = self._manager
        try:
            node = self._context.api.get("nodes", self._context.node_name)
        except ApiProblem:
            return  # The real one then uses its initial node, which has no extended resources: they are ignored.
        allocatable = {name: int(n) for name, n in dig(node, "status.allocatable", {}).items() if "/" in name}
        if uid_of(pod) in manager.allocations.pods():
            for name, ids in manager.allocated.items():
                allocatable[name] = max(allocatable.get(name, 0), len(ids))
        used: dict[str, int] = {}
        for other in others:
            for name, count in requests_of(other).items():
                used[name] = used.get(name, 0) + count
        self._check_cpu(pod, others, dig(node, "status.allocatable.cpu", "0"))
        by_dra = {resource for _, resource in dra_backed(pod)}
        for name, count in requests_of(pod).items():
            if name in by_dra or name not in allocatable:
                continue
            if used.get(name, 0) + count > allocatable[name]:
                raise Rejected(
                    f"OutOf{name}",
                    f"Node didn't have enough resource: {name}, requested: {count}, "
                    f"used: {used.get(name, 0)}, capacity: {allocatable[name]}",
                )

    def _check_cpu(self, pod: Object, others: list[Object], allocatable: str) -> None:
        wanted, used = cpu_of(pod), sum(map(cpu_of, others))
        if wanted and used + wanted > int(allocatable):
            raise Rejected(
                "OutOfcpu",
                f"Node didn't have enough resource: cpu, requested: {wanted}000, used: {used}000, "
                f"capacity: {allocatable}000",
            )

    async def _container(self, pod: Object, container: Object) -> None:
        """Give one container its devices, and let later containers re-use those of finished init containers."""
        reuse = self._reuse.setdefault(uid_of(pod), {})
        await self._allocate_all(pod, container, reuse)
        is_init = any(c["name"] == container["name"] for c in init_containers(pod))
        grants = self._manager.allocations.of(uid_of(pod), container["name"])
        for resource, grant in grants.items():
            if is_init and not sidecar(container):
                reuse.setdefault(resource, set()).update(grant.ids)
            else:
                reuse.setdefault(resource, set()).difference_update(grant.ids)

    async def _allocate_all(self, pod: Object, container: Object, reuse: Mapping[str, set[str]]) -> None:
        manager = self._manager
        skipped = dra_backed(pod) if self._context.profile.skips_dra_extended else set()
        granted = collected = False
        for resource, required in extended_limits(container).items():
            if resource not in manager.healthy and resource not in manager.allocated:
                continue
            if (container["name"], resource) in skipped:
                continue
            if not collected:
                manager.collect()
                collected = True
            ids = await self._choose(pod, container["name"], resource, required, reuse.get(resource, set()))
            if ids:
                await self._grant(pod, container["name"], resource, ids)
                granted = True
        if granted:
            manager.write_checkpoint()

    async def _grant(self, pod: Object, container: str, resource: str, ids: set[str]) -> None:
        """Call Allocate and remember the answer; on failure the ids are free again."""
        manager = self._manager
        endpoint = manager.endpoints.get(resource)
        try:
            if endpoint is None:
                raise _AllocateError(f"unknown Device Plugin {resource}")
            self._context.tell("AllocateAsked", label_of(pod), resource=resource, ids=sorted(ids))
            response = await endpoint.allocate(sorted(ids, key=lambda _: random.random()))  # noqa: S311
        except (EndpointError, _AllocateError) as error:
            manager.allocated = manager.allocations.devices()
            self._context.tell(
                "AllocateRefused", label_of(pod), container=container, ids=sorted(ids), error=str(error)
            )
            raise
        manager.allocations.put(
            uid_of(pod), container, resource, Grant(self._by_node(resource, ids), response)
        )
        self._context.tell(
            "Allocated", label_of(pod), container=container, resource=resource, ids=sorted(ids)
        )

    def _by_node(self, resource: str, ids: set[str]) -> dict[str, tuple[str, ...]]:
        by_node: dict[str, list[str]] = {}
        for device in sorted(ids):
            nodes = [str(node) for node in self._nodes(resource, device)]
            for node in nodes or [NO_NODE]:
                by_node.setdefault(node, []).append(device)
        return {node: tuple(found) for node, found in by_node.items()}

    def _nodes(self, resource: str, device: str) -> set[int]:
        listed = self._manager.listed.get(resource, {}).get(device)
        return {node.ID for node in listed.topology.nodes} if listed is not None else set()

    async def _choose(
        self, pod: Object, container: str, resource: str, required: int, reusable: set[str]
    ) -> set[str] | None:
        """Pick ids for one container (devicesToAllocate); None if it has its devices already.

        Raises:
            _AllocateError, EndpointError: see kubelet-contract A.4 step 4.
        """
        manager = self._manager
        held = manager.allocations.get(uid_of(pod), container, resource)
        had = held.ids if held is not None else set()
        if held is not None and len(had) != required:
            raise _AllocateError(
                f'pod "{uid_of(pod)}" container "{container}" changed request for resource "{resource}" '
                f"from {len(had)} to {required}"
            )
        if not manager.sources_ready and (uid_of(pod), container) in self._running_at_start:
            return None
        if resource not in manager.healthy:
            raise _AllocateError(f"cannot allocate unregistered device {resource}")
        if not manager.healthy[resource]:
            raise _AllocateError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        if not had <= manager.healthy[resource]:
            raise _AllocateError(
                f"previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            )
        if held is not None:
            return None
        return await self._pick(_Choice(resource, required, set()), reusable)

    async def _pick(self, choice: _Choice, reusable: set[str]) -> set[str]:
        manager, resource = self._manager, choice.resource
        if self._take(choice, reusable):
            return choice.ids
        available = manager.healthy[resource] - manager.allocated.get(resource, set())
        if len(available) < choice.needed:
            raise _AllocateError(
                f"requested number of devices unavailable for {resource}. "
                f"Requested: {choice.needed}, Available: {len(available)}"
            )
        aligned, unaligned, without = self._by_affinity(resource, available)
        endpoint = manager.endpoints.get(resource)
        if choice.needed < len(aligned) and self._take(choice, await _prefer(endpoint, choice, aligned)):
            return choice.ids
        if self._take(choice, aligned):
            return choice.ids
        if self._take(choice, await _prefer(endpoint, choice, available)):
            return choice.ids
        if self._take(choice, unaligned) or self._take(choice, without):
            return choice.ids
        manager.allocated = manager.allocations.devices()
        raise _AllocateError(
            f"unexpectedly allocated less resources than required. Requested: {choice.required}"
        )

    def _by_affinity(self, resource: str, available: set[str]) -> tuple[set[str], set[str], set[str]]:
        if self.numa is None:
            return set(), set(), available
        without = {device for device in available if not self._nodes(resource, device)}
        aligned = {device for device in available - without if self._nodes(resource, device) & self.numa}
        return aligned, available - without - aligned, without

    def _take(self, choice: _Choice, candidates: set[str]) -> bool:
        """Take ids, in no order (a Go map's), until there are enough; they count as in use before the RPC."""
        in_use = self._manager.allocated.setdefault(choice.resource, set())
        free = list(candidates - choice.ids)
        random.shuffle(free)
        taken = free[: choice.needed]
        choice.ids.update(taken)
        in_use.update(taken)
        return choice.needed == 0


async def _prefer(endpoint: Endpoint | None, choice: _Choice, candidates: set[str]) -> set[str]:
    if endpoint is None:
        return set()
    wanted = await endpoint.preferred(candidates | choice.ids, choice.ids, choice.required)
    return wanted & candidates
