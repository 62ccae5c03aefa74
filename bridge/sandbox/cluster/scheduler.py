"""A small scheduler: extended resources by node allocatable, claims by slices, two-phase binding, first node that fits.

It decides from what the API server shows (or from a frozen view, to make a race certain) and binds like the real
one: claim finalizer, allocation and reservation first, then the pod's node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bridge.sandbox.cluster.allocator import Unschedulable, Usage, allocate, offers_of, usage_of
from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.extended import Split, extended_claim, split_requests
from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    clone,
    dig,
    label_of,
    meta,
    name_of,
    namespace_of,
    now,
    terminal,
    uid_of,
)
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.observe import Observations
from bridge.sandbox.tasks import spawn

FINALIZER = "resource.kubernetes.io/delete-protection"
NAME = "default-scheduler"


@dataclass(slots=True)
class _Binding:
    """A pod that waits for binding conditions before it gets its node."""

    node: str
    claims: list[tuple[str, str]]
    since: float


@dataclass(slots=True)
class _View:
    """Slices and nodes as the scheduler believes them to be."""

    slices: list[Object] = field(default_factory=list)
    nodes: list[Object] = field(default_factory=list)


class Scheduler:
    """Binds pods.

    Attributes:
        binding_poll: seconds between looks at binding conditions (the real one: 5).
        binding_timeout: seconds after which waiting ends in a new attempt (the real one: 600).
        pace: seconds that it gathers news before it looks at all pods again.
    """

    def __init__(self, server: ApiServer, observe: Observations) -> None:
        self._server, self._observe = server, observe
        self.binding_poll, self.binding_timeout, self.pace = 0.05, 600.0, 0.0
        self._wake = asyncio.Event()
        self._frozen: _View | None = None
        self._paused = False
        self._binding: dict[str, _Binding] = {}
        self._reasons: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to schedule."""
        self._server.registry.store.listen(lambda change: self._wake.set())
        self._wake.set()
        self._task = spawn(self._observe, "scheduler", self._run())

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    # -- making races certain

    @contextmanager
    def stale(self) -> Iterator[None]:
        """Decide from slices and nodes as they are now, whatever is published meanwhile (H2, H3)."""
        self._frozen = self._look()
        try:
            yield
        finally:
            self._frozen = None
            self._wake.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Decide nothing for a while."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self._wake.set()

    # -- the loop

    @property
    def _api(self) -> Registry:
        return self._server.registry

    def _look(self) -> _View:
        slices = self._api.peek("resourceslices") if self._api.serves("resourceslices") else []
        return _View(slices, self._api.peek("nodes"))

    async def _run(self) -> None:
        while True:
            waiting = self.binding_poll if self._binding else None
            try:
                await asyncio.wait_for(self._wake.wait(), waiting)
                await asyncio.sleep(self.pace)
            except TimeoutError:
                self._wake.set()
            self._wake.clear()
            if self._paused:
                continue
            if not self._server.up:
                await asyncio.sleep(0.1)
                self._wake.set()
                continue
            self._pass()

    def _pass(self) -> None:
        """Look at every pod without a node once."""
        self._drop_bindings()
        for pod in sorted(self._api.peek("pods", fields="spec.nodeName="), key=_age):
            if (
                terminal(pod)
                or dig(pod, "metadata.deletionTimestamp")
                or dig(pod, "spec.schedulerName") != NAME
            ):
                continue
            try:
                if uid_of(pod) in self._binding:
                    self._check_binding(pod)
                else:
                    self._schedule(pod)
            except (Unschedulable, ValueError) as reason:
                self._unschedulable(pod, str(reason))
            except ApiProblem as problem:
                self._observe.tell("scheduler", "WriteFailed", label_of(pod), error=problem.message)
                self._wake.set()

    def _unschedulable(self, pod: Object, reason: str) -> None:
        if self._reasons.get(uid_of(pod)) == reason:
            return
        self._reasons[uid_of(pod)] = reason
        self._observe.tell("scheduler", "Unschedulable", label_of(pod), reason=reason)
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason}
        self._patch_status(pod, {"conditions": [condition]})

    def _patch_status(self, pod: Object, status: Object) -> None:
        where = {"namespace": namespace_of(pod), "kind": "strategic", "subresource": "status"}
        self._api.patch("pods", name_of(pod), {"status": status}, **where)

    # -- one pod

    def _schedule(self, pod: Object) -> None:
        claims = self._claims_of(pod)
        view = self._frozen or self._look()
        reasons = []
        for node in view.nodes:
            try:
                self._place(pod, claims, node, view.slices)
                return
            except Unschedulable as reason:
                reasons.append(f"{name_of(node)}: {reason}")
        raise Unschedulable("; ".join(reasons) or "there are no nodes")

    def _claims_of(self, pod: Object) -> list[Object]:
        made = {s["name"]: s.get("resourceClaimName") for s in dig(pod, "status.resourceClaimStatuses", [])}
        claims = []
        for entry in dig(pod, "spec.resourceClaims", []):
            name = entry.get("resourceClaimName") or made.get(entry["name"])
            if name is None:
                raise Unschedulable(f"waiting for the claim of {entry['name']} to be created")
            claim = self._api.find_one("resourceclaims", name, namespace_of(pod))
            if claim is None or dig(claim, "metadata.deletionTimestamp"):
                raise Unschedulable(f'resourceclaim "{name}" not found or being deleted')
            claims.append(claim)
        return claims

    def _place(self, pod: Object, claims: list[Object], node: Object, slices: list[Object]) -> None:
        """Put a pod on a node, or raise Unschedulable."""
        if dig(node, "spec.unschedulable"):
            raise Unschedulable("node is unschedulable")
        classes = self._classes()
        split = split_requests(pod, node, self._api.peek("pods"), classes, self._api.profile)
        usage, offers = self._usage(), offers_of(slices, name_of(node))
        allocations: list[tuple[Object, Object | None]] = []
        for claim in claims:
            if (allocation := dig(claim, "status.allocation")) is not None:
                if name_of(node) not in _nodes_of(allocation):
                    raise Unschedulable(f"claim {name_of(claim)} is allocated on another node")
                allocations.append((claim, None))
            else:
                allocations.append((claim, allocate(claim, classes, offers, usage, name_of(node))))
        extended = extended_claim(pod, split, classes)
        if extended is not None:
            allocations.append((extended, allocate(extended, classes, offers, usage, name_of(node))))
        self._commit(pod, name_of(node), allocations, split)

    def _usage(self) -> Usage:
        claims = self._api.peek("resourceclaims") if self._api.serves("resourceclaims") else []
        return usage_of(claims)

    def _classes(self) -> dict[str, Object]:
        found = self._api.peek("deviceclasses") if self._api.serves("deviceclasses") else []
        return {name_of(one): one for one in found}

    def _commit(
        self, pod: Object, node: str, allocations: list[tuple[Object, Object | None]], split: Split
    ) -> None:
        """Write claims, then the node; with binding conditions the node comes later, the nomination first."""
        slow = any(
            result.get("bindingConditions")
            for claim, allocation in allocations
            for result in dig(allocation or dig(claim, "status.allocation"), "devices.results", [])
        )
        if slow:
            self._patch_status(pod, {"nominatedNodeName": node})
        written = []
        for claim, allocation in allocations:
            if not uid_of(claim):
                claim = self._api.create("resourceclaims", claim, namespace_of(pod))
                self._patch_status(pod, {"extendedResourceClaimStatus": split.status(name_of(claim))})
            written.append(self._reserve(pod, claim, allocation, slow))
        self._reasons.pop(uid_of(pod), None)
        if slow:
            names = [(namespace_of(claim), name_of(claim)) for claim in written]
            self._binding[uid_of(pod)] = _Binding(node, names, time.monotonic())
            self._observe.tell("scheduler", "BindingConditionsPending", label_of(pod), node=node)
        else:
            self._bind(pod, node)

    def _reserve(self, pod: Object, claim: Object, allocation: Object | None, slow: bool) -> Object:
        written = clone(claim)
        status = written.setdefault("status", {})
        if allocation is not None:
            finalizers = meta(written).setdefault("finalizers", [])
            if FINALIZER not in finalizers:
                finalizers.append(FINALIZER)
            status["allocation"] = {**allocation, "allocationTimestamp": now()} if slow else allocation
            devices = [result["device"] for result in dig(allocation, "devices.results", [])]
            self._observe.tell(
                "scheduler", "ClaimAllocated", label_of(claim), devices=devices, pod=label_of(pod)
            )
        users = status.setdefault("reservedFor", [])
        if uid_of(pod) not in [user["uid"] for user in users]:
            users.append({"resource": "pods", "name": name_of(pod), "uid": uid_of(pod)})
        return self._api.update("resourceclaims", written)

    def _bind(self, pod: Object, node: str) -> None:
        bound = self._api.get("pods", name_of(pod), namespace_of(pod))
        bound["spec"]["nodeName"] = node
        bound.setdefault("status", {}).pop("nominatedNodeName", None)
        bound["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        self._api.update("pods", bound)
        self._observe.tell("scheduler", "Bound", label_of(pod), node=node)

    # -- two-phase binding (D-5007)

    def _drop_bindings(self) -> None:
        there = {uid_of(pod) for pod in self._api.peek("pods", fields="spec.nodeName=")}
        self._binding = {uid: binding for uid, binding in self._binding.items() if uid in there}

    def _check_binding(self, pod: Object) -> None:
        binding = self._binding[uid_of(pod)]
        claims = [self._api.get("resourceclaims", name, namespace) for namespace, name in binding.claims]
        states = [_binding_state(claim) for claim in claims]
        late = time.monotonic() - binding.since > self.binding_timeout
        if "failed" in states or late:
            del self._binding[uid_of(pod)]
            for claim, state in zip(claims, states, strict=True):
                if state != "ready" or late:
                    self._deallocate(pod, claim)
            self._observe.tell("scheduler", "BindingFailed", label_of(pod), timeout=late)
            self._patch_status(pod, {"nominatedNodeName": None})
        elif all(state == "ready" for state in states):
            del self._binding[uid_of(pod)]
            self._bind(pod, binding.node)

    def _deallocate(self, pod: Object, claim: Object) -> None:
        status = claim["status"]
        status["reservedFor"] = [u for u in status.get("reservedFor", []) if u["uid"] != uid_of(pod)]
        if not status["reservedFor"]:
            for key in ("allocation", "devices", "reservedFor"):
                status.pop(key, None)
        self._api.update("resourceclaims", claim)


def _age(pod: Object) -> tuple[str, int]:
    return dig(pod, "metadata.creationTimestamp", ""), int(dig(pod, "metadata.resourceVersion", "0"))


def _nodes_of(allocation: Object) -> list[str]:
    return [
        value
        for term in dig(allocation, "nodeSelector.nodeSelectorTerms", [])
        for match in term.get("matchFields") or []
        for value in match["values"]
    ]


def _binding_state(claim: Object) -> str:
    """Return `ready`, `failed` or `waiting`, over all devices of a claim."""
    true: dict[tuple[str, ...], set[str]] = {}
    for entry in dig(claim, "status.devices", []):
        key = (entry["driver"], entry["pool"], entry["device"])
        true[key] = {c["type"] for c in entry.get("conditions") or [] if c.get("status") == "True"}
    ready = True
    for result in dig(claim, "status.allocation.devices.results", []):
        have = true.get((result["driver"], result["pool"], result["device"]), set())
        if have & set(result.get("bindingFailureConditions") or []):
            return "failed"
        ready = ready and set(result.get("bindingConditions") or []) <= have
    return "ready" if ready else "waiting"
