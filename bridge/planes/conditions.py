"""Binding conditions of a claim's devices: what is to be said of them, and whether it has been said. Pure.

kubelet-contract D-5007, C.5. A condition answers one allocation: the server drops the entries with it, and what is
said of one that is not there any more is refused (`resourceVersion`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dra_v1.claims import AllocatedDevice
from dra_v1.kube_errors import Json

FIELDS = frozenset({"bindingConditions", "bindingFailureConditions", "bindsToNode"})
"""What a server without the feature does not keep of a device."""


@dataclass(frozen=True, slots=True)
class Names:
    """How one driver calls its conditions.

    Attributes:
        reserved: the ledger holds the device for the claim; then the pod may be bound.
        elsewhere: it cannot, somebody else has it; then the scheduler looks for another.
    """

    reserved: str
    elsewhere: str

    @classmethod
    def of(cls, driver: str) -> Names:
        """The names of a driver."""
        return cls(f"{driver}/reserved", f"{driver}/held-elsewhere")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the ledger said to a claim's devices: reserved, or why not."""

    refusal: str = ""


def awaited(results: Sequence[AllocatedDevice], names: Names) -> tuple[AllocatedDevice, ...]:
    """The results that the scheduler waits for us to speak about; those of admin access are among them."""
    return tuple(r for r in results if names.reserved in r.binding_conditions)


def answered(
    status: Json, results: Sequence[AllocatedDevice], driver: str, names: Names, verdict: Verdict
) -> bool:
    """Whether a claim's status says already what is to be said of these results."""
    said = {
        _key(entry): _true(entry) for entry in status.get("devices") or () if entry.get("driver") == driver
    }
    ours = {names.reserved, names.elsewhere}
    return all(
        said.get((r.pool, r.device, r.share_id or ""), frozenset()) & ours == {_condition(r, names, verdict)}
        for r in results
    )


def answer(results: Sequence[AllocatedDevice], driver: str, names: Names, verdict: Verdict, now: str) -> Json:
    """The status to apply: one condition for each result. `now`: RFC 3339."""
    return {"devices": [_entry(result, driver, names, verdict, now) for result in results]}


def _entry(result: AllocatedDevice, driver: str, names: Names, verdict: Verdict, now: str) -> Json:
    kind = _condition(result, names, verdict)
    refused = kind == names.elsewhere
    condition = {
        "type": kind,
        "status": "True",
        "reason": "HeldElsewhere" if refused else "Reserved",
        "message": verdict.refusal if refused else "the device is kept for this claim",
        "lastTransitionTime": now,
    }
    entry = {"driver": driver, "pool": result.pool, "device": result.device, "conditions": [condition]}
    return entry if result.share_id is None else {**entry, "shareID": result.share_id}


def _condition(result: AllocatedDevice, names: Names, verdict: Verdict) -> str:
    """Admin access is never refused (C.4)."""
    return names.elsewhere if verdict.refusal and not result.admin_access else names.reserved


def _key(entry: Json) -> tuple[str, str, str]:
    return str(entry.get("pool")), str(entry.get("device")), str(entry.get("shareID") or "")


def _true(entry: Json) -> frozenset[str]:
    return frozenset(str(c.get("type")) for c in entry.get("conditions") or () if c.get("status") == "True")
