"""What a ResourceClaim says to one driver: which devices, for whom, and with what configuration.

Decoding is pure; `fetch_claims` reads from the API server and answers per claim, so that one broken claim
never hides another. Results and configuration of other drivers never get past this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from dra_v1.kube_errors import ApiError, Forbidden, Json, NotFound, Unreachable
from dra_v1.resource_api import NoResourceApi, ResourceApi

EXTENDED_RESOURCE_ANNOTATION: Final = "resource.kubernetes.io/extended-resource-claim"
"""On claims that the scheduler made for extended resources of a pod (kubelet-contract C.3)."""


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """One claim, as the kubelet names it; only the UID tells a claim from a later one of the same name (H6)."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Consumer:
    """Somebody for whom a claim is reserved.

    Attributes:
        resource: plural resource name, `pods` as a rule; never assume it (kubelet-contract C.3).
        name: object name.
        uid: object UID.
        api_group: API group, empty for the core group.
    """

    resource: str
    name: str
    uid: str
    api_group: str = ""


@dataclass(frozen=True, slots=True)
class AllocatedDevice:
    """One device that the scheduler allocated to a claim.

    Attributes:
        request: request name as allocated, `request` or `request/subrequest` (KEP 4816).
        pool, device: which device.
        admin_access: monitoring access beside whoever holds the device; never a hold (kubelet-contract C.4).
        share_id: which share of a device that may be allocated several times (KEP 5075), else None.
        consumed_capacity: what the share uses, quantities as the scheduler wrote them.
        binding_conditions, binding_failure_conditions: conditions that the scheduler waits for (KEP 5007).
    """

    request: str
    pool: str
    device: str
    admin_access: bool = False
    share_id: str | None = None
    consumed_capacity: Mapping[str, str] = field(default_factory=dict)
    binding_conditions: tuple[str, ...] = ()
    binding_failure_conditions: tuple[str, ...] = ()

    @property
    def base_request(self) -> str:
        """The request without its sub-request: what the kubelet wants to hear back."""
        return base_request(self.request)


@dataclass(frozen=True, slots=True)
class OpaqueConfig:
    """Parameters for this driver.

    Attributes:
        requests: requests it applies to; empty for all. A main request covers all its sub-requests.
        parameters: the author's JSON, apiVersion and kind included.
        from_class: set by the administrator (DeviceClass), not by the claim.
    """

    requests: tuple[str, ...]
    parameters: Json
    from_class: bool

    def applies_to(self, request: str) -> bool:
        """Whether it configures `request`, given by name or by the parent's name."""
        return not self.requests or request in self.requests or base_request(request) in self.requests


@dataclass(frozen=True, slots=True)
class Claim:
    """An allocated claim as one driver sees it.

    Attributes:
        ref: which claim.
        results: devices of this driver, in order of allocation.
        configs: configuration of this driver, class before claim, else in order.
        consumers: for whom it is reserved.
        allocated_at: RFC 3339 time of allocation, empty where the server does not say.
        extended_resource: the scheduler made it for extended resources of a pod; no pod's spec names it.
    """

    ref: ClaimRef
    results: tuple[AllocatedDevice, ...]
    configs: tuple[OpaqueConfig, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    allocated_at: str = ""
    extended_resource: bool = False

    def config_for(self, result: AllocatedDevice) -> list[Json]:
        """The parameters that apply to one device, the weakest first: class before claim, later over earlier.

        An entry for a main request applies to its sub-requests too (API documentation of `requests`).
        """
        return [config.parameters for config in self.configs if config.applies_to(result.request)]


class ClaimProblem(Enum):
    """Why a claim cannot be used now."""

    MISSING = "missing"
    REPLACED = "replaced"
    NOT_ALLOCATED = "not allocated"
    NOT_OURS = "not ours"
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


HAS_NOTHING: Final = frozenset({ClaimProblem.REPLACED, ClaimProblem.NOT_ALLOCATED, ClaimProblem.NOT_OURS})
"""Problems that prove that a claim, as it was read, has no device of the driver."""


class ClaimError(Exception):
    """One claim cannot be used; the text goes to the pod's events.

    Attributes:
        ref: which claim.
        problem: what kind of trouble.
    """

    def __init__(self, ref: ClaimRef, problem: ClaimProblem, text: str) -> None:
        super().__init__(text)
        self.ref = ref
        self.problem = problem


def base_request(request: str) -> str:
    """`gpu/large` -> `gpu`."""
    return request.partition("/")[0]


def ref_of(body: Json) -> ClaimRef:
    """The reference of a ResourceClaim object."""
    meta = body["metadata"]
    return ClaimRef(str(meta["namespace"]), str(meta["name"]), str(meta["uid"]))


def decode_claim(body: Json, driver: str) -> Claim | None:
    """One ResourceClaim in the shape of v1, as `driver` sees it; None while it is not allocated."""
    status = body.get("status") or {}
    allocation = status.get("allocation")
    if not allocation:
        return None
    devices = allocation.get("devices") or {}
    annotations = body["metadata"].get("annotations") or {}
    return Claim(
        ref=ref_of(body),
        results=tuple(_result(r) for r in devices.get("results") or () if r.get("driver") == driver),
        configs=_configs(devices.get("config") or (), driver),
        consumers=tuple(_consumer(c) for c in status.get("reservedFor") or ()),
        allocated_at=str(allocation.get("allocationTimestamp") or ""),
        extended_resource=annotations.get(EXTENDED_RESOURCE_ANNOTATION) == "true",
    )


def check_claim(body: Json, ref: ClaimRef, driver: str) -> Claim | ClaimError:
    """The claim that the kubelet asked for, or why it is not (any longer) that one."""
    found = ref_of(body)
    if found.uid != ref.uid:
        return ClaimError(
            ref,
            ClaimProblem.REPLACED,
            f"claim {ref} was deleted and re-created: the kubelet asks for UID {ref.uid}, the API server has "
            f"{found.uid}; delete the pod that still uses the old claim",
        )
    claim = decode_claim(body, driver)
    if claim is None:
        return ClaimError(
            ref,
            ClaimProblem.NOT_ALLOCATED,
            f"claim {ref} is not allocated; the scheduler has to allocate it before a pod can use it",
        )
    if not claim.results:
        return ClaimError(
            ref,
            ClaimProblem.NOT_OURS,
            f"claim {ref} has no device of driver {driver}; its allocation names other drivers only",
        )
    return claim


async def fetch_claims(
    api: ResourceApi, refs: Sequence[ClaimRef], driver: str, *, attempts: int = 3
) -> dict[str, Claim | ClaimError]:
    """Read all the claims at once; by UID, the claim or why it cannot be used. Never raises for a claim."""
    found = await asyncio.gather(*(_fetch(api, ref, driver, attempts) for ref in refs))
    return {ref.uid: claim for ref, claim in zip(refs, found, strict=True)}


async def _fetch(api: ResourceApi, ref: ClaimRef, driver: str, attempts: int) -> Claim | ClaimError:
    try:
        body = await api.get_claim(ref.namespace, ref.name, attempts=attempts)
    except NotFound as error:
        if error.unserved:
            # One of several API servers, in the middle of an upgrade: it knows nothing of the claim.
            return ClaimError(ref, ClaimProblem.FAILED, f"claim {ref} cannot be read: {error}")
        text = f"claim {ref} (UID {ref.uid}) does not exist any longer; its pod has to be deleted"
        return ClaimError(ref, ClaimProblem.MISSING, text)
    except Forbidden as error:
        return ClaimError(ref, ClaimProblem.FORBIDDEN, f"claim {ref} cannot be read: {error}")
    except Unreachable as error:
        return ClaimError(ref, ClaimProblem.UNREACHABLE, f"claim {ref} cannot be read now: {error}")
    except (ApiError, NoResourceApi) as error:
        return ClaimError(ref, ClaimProblem.FAILED, f"claim {ref} cannot be read: {error}")
    return check_claim(body, ref, driver)


def _result(raw: Json) -> AllocatedDevice:
    return AllocatedDevice(
        request=str(raw.get("request", "")),
        pool=str(raw["pool"]),
        device=str(raw["device"]),
        admin_access=bool(raw.get("adminAccess")),
        share_id=str(raw["shareID"]) if raw.get("shareID") else None,
        consumed_capacity={str(k): str(v) for k, v in (raw.get("consumedCapacity") or {}).items()},
        binding_conditions=tuple(raw.get("bindingConditions") or ()),
        binding_failure_conditions=tuple(raw.get("bindingFailureConditions") or ()),
    )


def _configs(raw: Sequence[Json], driver: str) -> tuple[OpaqueConfig, ...]:
    ours = [
        OpaqueConfig(
            tuple(entry.get("requests") or ()),
            dict(entry["opaque"].get("parameters") or {}),
            entry.get("source") == "FromClass",
        )
        for entry in raw
        if (entry.get("opaque") or {}).get("driver") == driver
    ]
    return tuple(sorted(ours, key=lambda config: not config.from_class))


def _consumer(raw: Json) -> Consumer:
    return Consumer(
        str(raw.get("resource", "")),
        str(raw.get("name", "")),
        str(raw.get("uid", "")),
        str(raw.get("apiGroup", "")),
    )
