"""The controllers that a node's contracts need: template claims, release of claims, garbage, taint eviction."""

from __future__ import annotations

import asyncio

from bridge.sandbox.cluster.allocator import tolerates
from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    clone,
    dig,
    label_of,
    meta,
    name_of,
    namespace_of,
    owner_reference,
    terminal,
    uid_of,
)
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.scheduler import FINALIZER
from bridge.sandbox.observe import Observations
from bridge.sandbox.tasks import spawn


class Controllers:
    """One loop over pods, claims and slices, woken by every write.

    Attributes:
        pace: seconds that it gathers news before it looks at everything again.
    """

    def __init__(self, server: ApiServer, observe: Observations) -> None:
        self._server, self._observe = server, observe
        self.pace = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._server.registry.store.listen(lambda change: self._wake.set())
        self._wake.set()
        self._task = spawn(self._observe, "controllers", self._run())

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def _api(self) -> Registry:
        return self._server.registry

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(self.pace)
            self._wake.clear()
            if not self._server.up:
                await asyncio.sleep(0.1)
                self._wake.set()
                continue
            if not self._api.serves("resourceclaims"):
                continue
            for step in (self._make_claims, self._release, self._collect, self._evict):
                try:
                    step()
                except ApiProblem as problem:
                    self._observe.tell("controller", "WriteFailed", step.__name__, error=problem.message)
                    self._wake.set()

    def _make_claims(self) -> None:
        """Make the claims of pods that name a template."""
        for pod in self._api.peek("pods"):
            if terminal(pod) or dig(pod, "metadata.deletionTimestamp"):
                continue
            made: list[Object] = list(dig(pod, "status.resourceClaimStatuses", []))
            have = {entry["name"] for entry in made}
            for entry in dig(pod, "spec.resourceClaims", []):
                source = entry.get("resourceClaimTemplateName")
                if source is None or entry["name"] in have:
                    continue
                template = self._api.find_one("resourceclaimtemplates", source, namespace_of(pod))
                if template is not None:
                    claim = self._make_claim(pod, entry["name"], template)
                    made.append({"name": entry["name"], "resourceClaimName": name_of(claim)})
            if len(made) > len(have):
                self._api.patch(
                    "pods",
                    name_of(pod),
                    {"status": {"resourceClaimStatuses": made}},
                    namespace=namespace_of(pod),
                    kind="merge",
                    subresource="status",
                )

    def _make_claim(self, pod: Object, inside: str, template: Object) -> Object:
        spec = template["spec"]
        data = clone(spec.get("metadata") or {})
        data["generateName"] = f"{name_of(pod)}-{inside}-"
        data.setdefault("annotations", {})["resource.kubernetes.io/pod-claim-name"] = inside
        data["ownerReferences"] = [owner_reference("v1", "Pod", pod)]
        made = self._api.create("resourceclaims", {"metadata": data, "spec": spec["spec"]}, namespace_of(pod))
        self._observe.tell("controller", "ClaimMade", label_of(made), pod=label_of(pod))
        return made

    def _release(self) -> None:
        """Take ended pods out of reservedFor; on the step from used to unused clear the allocation (C.3)."""
        pods = {uid_of(pod): pod for pod in self._api.peek("pods")}
        for claim in self._api.peek("resourceclaims"):
            users: list[Object] = dig(claim, "status.reservedFor", [])
            left = [u for u in users if u["uid"] in pods and not terminal(pods[u["uid"]])]
            unused = bool(users) and not left
            dying = bool(dig(claim, "metadata.deletionTimestamp")) and not left
            if len(left) < len(users) or (dying and FINALIZER in meta(claim).get("finalizers", [])):
                freed = clone(claim)
                status = freed.setdefault("status", {})
                status["reservedFor"] = left
                if unused or dying:
                    self._deallocate(freed, status)
                self._api.update("resourceclaims", freed)
            self._delete_generated(claim, pods)

    def _deallocate(self, claim: Object, status: Object) -> None:
        for key in ("allocation", "reservedFor", "devices"):
            status.pop(key, None)
        meta(claim)["finalizers"] = [f for f in meta(claim).get("finalizers", []) if f != FINALIZER]
        self._observe.tell("controller", "ClaimDeallocated", label_of(claim))

    def _delete_generated(self, claim: Object, pods: dict[str, Object]) -> None:
        """Delete a claim made for a pod once that pod has ended."""
        for owner in meta(claim).get("ownerReferences") or []:
            if owner["kind"] == "Pod" and not dig(claim, "metadata.deletionTimestamp"):
                pod = pods.get(owner["uid"])
                if pod is None or terminal(pod):
                    self._api.delete("resourceclaims", name_of(claim), namespace_of(claim))

    def _collect(self) -> None:
        """Delete what a node owned that is no more."""
        nodes = {uid_of(node) for node in self._api.peek("nodes")}
        for piece in self._api.peek("resourceslices"):
            owners = [o for o in meta(piece).get("ownerReferences") or [] if o["kind"] == "Node"]
            if owners and all(owner["uid"] not in nodes for owner in owners):
                self._api.delete("resourceslices", name_of(piece))

    def _evict(self) -> None:
        """Delete pods whose claims use a device with an untolerated NoExecute taint.

        As the real one: every sharer and admin access too, and only claims that the pod's spec names.
        """
        tainted = {
            (piece["spec"]["driver"], piece["spec"]["pool"]["name"], device["name"]): taint
            for piece in self._api.peek("resourceslices")
            for device in dig(piece, "spec.devices", [])
            for taint in device.get("taints") or []
            if taint["effect"] == "NoExecute"
        }
        if not tainted:
            return
        for pod in self._api.peek("pods"):
            if not dig(pod, "spec.nodeName") or terminal(pod) or dig(pod, "metadata.deletionTimestamp"):
                continue
            for result in self._results_of(pod):
                taint = tainted.get((result["driver"], result["pool"], result["device"]))
                if taint is not None and not any(
                    tolerates(t, taint) for t in result.get("tolerations") or []
                ):
                    self._observe.tell("controller", "Evicted", label_of(pod), device=result["device"])
                    self._api.delete("pods", name_of(pod), namespace_of(pod))
                    break

    def _results_of(self, pod: Object) -> list[Object]:
        made = {s["name"]: s.get("resourceClaimName") for s in dig(pod, "status.resourceClaimStatuses", [])}
        results: list[Object] = []
        for entry in dig(pod, "spec.resourceClaims", []):
            name = entry.get("resourceClaimName") or made.get(entry["name"])
            claim = self._api.find_one("resourceclaims", name, namespace_of(pod)) if name else None
            users = [user["uid"] for user in dig(claim, "status.reservedFor", [])]
            if uid_of(pod) in users:
                results += dig(claim, "status.allocation.devices.results", [])
        return results
