"""The DRA manager: claims of a pod are prepared before its containers and unprepared after them (B.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from bridge.sandbox.cluster.objects import (
    ApiProblem,
    Object,
    dig,
    label_of,
    name_of,
    namespace_of,
    uid_of,
)
from bridge.sandbox.kubelet import checkpoint
from bridge.sandbox.kubelet.claims import ClaimCache, ClaimInfo, PreparedDevice
from bridge.sandbox.kubelet.context import Context
from bridge.sandbox.kubelet.dra_plugins import DraCallError, DraPlugins
from bridge.sandbox.kubelet.health import DeviceHealth
from dra_v1.api import dra_v1_pb2 as v1


class PrepareError(Exception):
    """Why a pod's claims could not be prepared or unprepared; the kubelet tries again."""


def claim_names(pod: Object) -> Iterator[tuple[str, str, bool]]:
    """Yield (name inside the pod, claim's name, made from a template) of a pod's claims.

    The claim of DRA-backed extended resources has no name inside the pod.

    Raises:
        PrepareError: for a template claim that has not been made yet.
    """
    made = {s["name"]: s.get("resourceClaimName") for s in dig(pod, "status.resourceClaimStatuses", [])}
    for entry in dig(pod, "spec.resourceClaims", []):
        if entry.get("resourceClaimName"):
            yield entry["name"], entry["resourceClaimName"], False
        elif entry["name"] not in made:
            raise PrepareError(f"claim {entry['name']}: ResourceClaim not created yet")
        elif made[entry["name"]]:
            yield entry["name"], made[entry["name"]], True
    if extended := dig(pod, "status.extendedResourceClaimStatus.resourceClaimName"):
        yield "", extended, True


class DraManager:
    """Prepared claims of the node."""

    def __init__(self, context: Context, plugins: DraPlugins) -> None:
        self._context, self._plugins = context, plugins
        self.cache = ClaimCache(context.paths.kubelet / checkpoint.CLAIMS)

    @property
    def _old(self) -> bool:
        return self._context.profile.old_dra

    def _named(self, info: ClaimInfo) -> str:
        return f"claim {info.label}" if self._old else f"ResourceClaim {info.name}"

    # -- prepare

    async def prepare(self, pod: Object) -> None:
        """Prepare all claims of a pod: one call per driver, with all claims that need it.

        Raises:
            PrepareError: with the text of the pod's event; nothing is failed, the caller comes again.
        """
        try:
            await self._prepare_all(pod)
        except PrepareError as error:
            if self._old:
                raise
            raise PrepareError(f"prepare dynamic resources: {error}") from error

    async def _prepare_all(self, pod: Object) -> None:
        infos = [info for info in self._look_up(pod) if not info.prepared]
        self.cache.save()
        batches: dict[str, list[ClaimInfo]] = {}
        for info in infos:
            for driver in info.drivers:
                batches.setdefault(driver, []).append(info)
        try:
            for driver, batch in batches.items():
                await self._prepare(driver, batch, pod)
        except DraCallError as error:
            raise PrepareError(str(error)) from error
        for info in infos:
            info.prepared = True
        self.cache.save()

    def _look_up(self, pod: Object) -> list[ClaimInfo]:
        """Fetch and check every claim before any driver is called; enter them in the cache."""
        found: list[tuple[Object, bool]] = []
        for _, name, generated in claim_names(pod):
            try:
                found.append((self._context.api.get("resourceclaims", name, namespace_of(pod)), generated))
            except ApiProblem as problem:
                text = f"fetch ResourceClaim {name}: {problem.message}"
                if self._old:
                    text = f"failed to fetch ResourceClaim {name} referenced by pod {name_of(pod)}: {problem.message}"
                raise PrepareError(text) from problem
        for claim, generated in found:
            self._check(pod, claim, generated)
        infos = []
        for claim, _ in found:
            key = (namespace_of(claim), name_of(claim))
            info = self.cache.claims.setdefault(key, ClaimInfo.of(claim))
            info.pods.add(uid_of(pod))
            infos.append(info)
        return infos

    def _check(self, pod: Object, claim: Object, generated: bool) -> None:
        label = label_of(claim)
        owners = [ref["uid"] for ref in dig(claim, "metadata.ownerReferences", []) if ref.get("controller")]
        if generated and uid_of(pod) not in owners:
            raise PrepareError(
                f"ResourceClaim {label} was not created for pod {label_of(pod)} (pod is not owner)"
            )
        if uid_of(pod) not in [user["uid"] for user in dig(claim, "status.reservedFor", [])]:
            pod_and_uid, claim_and_uid = (
                f"{name_of(obj)}{'' if self._old else ' '}({uid_of(obj)})" for obj in (pod, claim)
            )
            what = "resource claim" if self._old else "ResourceClaim"
            raise PrepareError(f"pod {pod_and_uid} is not allowed to use {what} {claim_and_uid}")
        if not dig(claim, "status.allocation"):
            raise PrepareError(f"ResourceClaim {name_of(claim)}: not allocated")
        if self._old:
            return  # 1.32 compares no UIDs and looks for drivers only when it calls them.
        old = self.cache.claims.get((namespace_of(claim), name_of(claim)))
        if old is not None and old.uid != uid_of(claim):
            raise PrepareError(
                f"old ResourceClaim with same name {name_of(claim)} and different UID {old.uid} still exists "
                "(previous pod force-deleted?!)"
            )
        for result in dig(claim, "status.allocation.devices.results", []):
            try:
                self._plugins.get(result["driver"])
            except DraCallError as error:
                raise PrepareError(str(error)) from error

    async def _prepare(self, driver: str, batch: Sequence[ClaimInfo], pod: Object) -> None:
        by_uid = {info.uid: info for info in batch}
        instance = self._plugins.get(driver)
        self._context.tell("PrepareAsked", driver, claims=[info.uid for info in batch], pod=label_of(pod))
        answer = await instance.prepare([_request(info) for info in batch])
        for uid, result in answer.claims.items():
            info = by_uid.get(uid)
            if info is None:
                raise PrepareError(f"NodePrepareResources returned result for unknown claim UID {uid}")
            if result.error:
                raise PrepareError(f"NodePrepareResources failed for {self._named(info)}: {result.error}")
            # Taken as it is: the kubelet compares nothing with the allocation; an unknown CDI name is the runtime's.
            info.drivers[driver] = [_prepared(device) for device in result.devices]
            names = [device.device for device in info.drivers[driver]]
            self._context.tell("Prepared", info.label, driver=driver, devices=names, pod=label_of(pod))
        if missing := len(batch) - len(answer.claims):
            raise PrepareError(
                f"NodePrepareResources left out {missing} claims"
                if self._old
                else f"NodePrepareResources skipped {missing} ResourceClaims"
            )

    # -- unprepare

    async def unprepare(self, pod: Object) -> None:
        """Unprepare a pod's claims, but for those that another pod on the node still uses.

        Raises:
            PrepareError: the caller comes again; the pod stays until it works.
        """
        await self.unprepare_for(uid_of(pod))

    async def unprepare_for(self, pod_uid: str) -> None:
        """Unprepare what a pod used, by its uid: the claim object may be gone."""
        ended: list[ClaimInfo] = []
        for info in self.cache.claims.values():
            if pod_uid not in info.pods:
                continue
            if len(info.pods) > 1:
                info.pods.discard(pod_uid)
            else:
                ended.append(info)
        self.cache.save()
        batches: dict[str, list[ClaimInfo]] = {}
        for info in ended:
            for driver in info.drivers:
                batches.setdefault(driver, []).append(info)
        try:
            for driver, batch in batches.items():
                await self._unprepare(driver, batch)
        except DraCallError as error:
            raise PrepareError(str(error)) from error
        for info in ended:
            self.cache.claims.pop((info.namespace, info.name), None)
            self._context.tell("Unprepared", info.label, uid=info.uid)
        self.cache.save()

    async def _unprepare(self, driver: str, batch: Sequence[ClaimInfo]) -> None:
        by_uid = {info.uid: info for info in batch}
        instance = self._plugins.get(driver)
        self._context.tell("UnprepareAsked", driver, claims=[info.uid for info in batch])
        answer = await instance.unprepare([_request(info) for info in batch])
        for uid, result in answer.claims.items():
            info = by_uid.get(uid)
            if info is None:
                raise PrepareError(f"NodeUnprepareResources returned result for unknown claim UID {uid}")
            if result.error:
                raise PrepareError(f"NodeUnprepareResources failed for {self._named(info)}: {result.error}")
        if missing := len(batch) - len(answer.claims):
            raise PrepareError(f"NodeUnprepareResources skipped {missing} ResourceClaims")

    async def reconcile(self, live: Callable[[], set[str]]) -> None:
        """Unprepare the claims of pods that are not live; what fails is tried again at the next round."""
        users = {uid for info in self.cache.claims.values() for uid in info.pods}
        for uid in users - live():
            try:
                await self.unprepare_for(uid)
            except PrepareError as error:
                self._context.tell("UnprepareFailed", uid, error=str(error))

    # -- containers

    def health_of(self, driver: str, pool: str, device: str) -> DeviceHealth | None:
        """Return a device's health as its driver's stream told it."""
        return self._plugins.health.of(driver, pool, device)

    def infos(self, pod: Object, container: Object) -> Iterable[tuple[str, ClaimInfo, str]]:
        """Yield (name inside the pod, claim, request) of what a container refers to."""
        wanted: list[tuple[str, str]] = [
            (ref["name"], ref.get("request", "")) for ref in dig(container, "resources.claims", [])
        ]
        mappings: list[Object] = dig(pod, "status.extendedResourceClaimStatus.requestMappings", [])
        wanted += [("", m["requestName"]) for m in mappings if m["containerName"] == container["name"]]
        try:
            names = {inside: name for inside, name, _ in claim_names(pod)}
        except PrepareError:
            return
        for inside, request in wanted:
            info = self.cache.claims.get((namespace_of(pod), names.get(inside, "")))
            if info is not None and uid_of(pod) in info.pods:
                yield inside, info, request

    def cdi_names(self, pod: Object, container: Object) -> list[str]:
        """Return the CDI names that a container is given for its claims."""
        names: list[str] = []
        for _, info, request in self.infos(pod, container):
            names += [cdi for _, device in info.devices(request) for cdi in device.cdi_ids]
        return list(dict.fromkeys(names))


def _prepared(device: v1.Device) -> PreparedDevice:
    share = device.share_id if device.HasField("share_id") else None
    return PreparedDevice(
        device.pool_name, device.device_name, tuple(device.request_names), tuple(device.cdi_device_ids), share
    )


def _request(info: ClaimInfo) -> v1.Claim:
    return v1.Claim(namespace=info.namespace, uid=info.uid, name=info.name)
