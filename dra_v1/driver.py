"""What the author of a DRA driver implements, and the values that go in and out.

Two methods are a driver. `remembered` and `health` are optional and found by presence.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from dra_v1.claims import Claim, ClaimRef


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """One device, ready for containers.

    Attributes:
        requests: requests of the claim that it serves; sub-request names may stand, they are stripped.
        pool, device: as allocated.
        cdi_ids: fully qualified CDI names, `vendor.com/class=name`; may be empty.
        share_id: as allocated, for a share of a device (1.34 on).
    """

    requests: tuple[str, ...]
    pool: str
    device: str
    cdi_ids: tuple[str, ...] = ()
    share_id: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedClaim:
    """A claim whose devices are all ready: all of them, or it is an error (H28)."""

    devices: tuple[PreparedDevice, ...]


@dataclass(frozen=True, slots=True)
class PrepareError:
    """A claim that cannot be prepared now. The message becomes a pod event; the kubelet asks again."""

    message: str


@dataclass(frozen=True, slots=True)
class UnprepareError:
    """A claim that cannot be undone now. The pod stays Terminating; the kubelet asks again."""

    message: str


class HealthStatus(Enum):
    """Physical health of a device."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """Health of one device, shown in the status of the pods that use it.

    Attributes:
        pool, device: which device.
        status: physical health, never whether it is free.
        message: for a person, cut at 1024 characters.
        updated: when it was found so, Unix seconds; None means that the driver vouches for it all the time.
        timeout_s: after how many seconds without news the kubelet shows Unknown; 0 is the kubelet's 30.
    """

    pool: str
    device: str
    status: HealthStatus
    message: str = ""
    updated: float | None = None
    timeout_s: int = 0


class Driver(Protocol):
    """A DRA driver.

    Both methods must be idempotent: the kubelet repeats them after its restart, after errors and after lost
    answers. One claim is never in two calls at once; different claims may be.
    """

    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim | PrepareError]:
        """Make the devices of each claim ready; an answer for every claim, by UID.

        An exception counts for the claims of the call; with several claims each is then tried alone.
        """
        ...

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, UnprepareError | None]:
        """Undo it; by UID, None for done. A claim never prepared is done. The claim object may be gone."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A driver that can answer a repeated Prepare from its own records."""

    def remembered(self, ref: ClaimRef) -> PreparedClaim | None:
        """The answer already given for this claim, else None.

        Asked before the claim is read, so that running pods survive a kubelet restart while the API server is
        away (H13, H33). Must be quick: it runs on the event loop.
        """
        ...


@runtime_checkable
class ReportsHealth(Protocol):
    """A driver that reports the health of its devices (KEP 4680)."""

    def health(self) -> AsyncIterator[Sequence[DeviceHealth]]:
        """Complete lists, a new one whenever something changes; the iterator never ends."""
        ...
