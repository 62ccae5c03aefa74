"""From an allocated claim to what the ledger must book and the kubelet is answered.

Pure: claim, roster and kind in, a plan out. Keeps H28 (all devices of a claim or none) and C.4 of
kubelet-contract (admin access never holds and is never refused).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bridge.devices.kinds.base import Kind, ParameterErrors
from bridge.devices.model import ContainerEdits, Device
from bridge.devices.schema import decode as decode_strictly
from bridge.devices.schema import plain
from bridge.ledger.holds import Pick
from bridge.planes.roster import Roster, Unavailable
from dra_v1.claims import AllocatedDevice, Claim
from dra_v1.driver import PreparedClaim, PreparedDevice
from dra_v1.slices import quantity

ADMIN = "--admin"
"""Suffix of the CDI device for admin access; device names never contain `--`."""


@dataclass(frozen=True, slots=True)
class Naming:
    """How one group's devices are called in CDI: `device` the static entry, `claim` an entry of a claim's own."""

    device: Callable[[str], str]
    claim: Callable[[str, str], str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What preparing a claim takes.

    Attributes:
        picks: what to book; none for admin access.
        answer: what the kubelet is told.
        edits: container edits of the claim's own by CDI device name; empty unless its configuration asks.
    """

    picks: tuple[Pick, ...]
    answer: PreparedClaim
    edits: dict[str, ContainerEdits]


def plan(claim: Claim, roster: Roster, kind: Kind[Any], pool: str, naming: Naming) -> Plan:
    """Plan the devices of a claim. Raises Unavailable with a text for the pod's events."""
    picks: list[Pick] = []
    devices: list[PreparedDevice] = []
    edits: dict[str, ContainerEdits] = {}
    for index, result in enumerate(claim.results):
        if result.pool != pool:
            raise Unavailable(
                f"{result.device} was allocated from pool {result.pool}; this node's pool is {pool}"
            )
        if result.admin_access:
            device = _known(roster, result.device)
            cdi = naming.device(device.name + ADMIN)
        else:
            pick = _pick(result, roster)
            picks.append(pick)
            device = roster.by_name[pick.device]
            cdi = naming.device(device.name)
        ids = [cdi]
        extra = _claim_edits(claim, result, kind, device)
        if extra != ContainerEdits():
            edits[str(index)] = extra
            ids.append(naming.claim(claim.ref.uid, str(index)))
        devices.append(
            PreparedDevice((result.base_request,), result.pool, result.device, tuple(ids), result.share_id)
        )
    return Plan(tuple(picks), PreparedClaim(tuple(devices)), edits)


def picks_of(results: Iterable[AllocatedDevice], roster: Roster) -> tuple[Pick, ...]:
    """What to book for results of one pool; none for admin access. Raises Unavailable."""
    return tuple(_pick(result, roster) for result in results if not result.admin_access)


def _pick(result: AllocatedDevice, roster: Roster) -> Pick:
    return roster.pick(result.device, _units(roster, result), share=result.share_id or "")


def _known(roster: Roster, name: str) -> Device:
    """The device for admin access: held, quarantined or broken does not matter, only being there does."""
    device = roster.by_name.get(name)
    if device is None or not device.present:
        raise Unavailable(f"{name} is no device of group {roster.group.name} or is unplugged")
    return device


def _units(roster: Roster, result: AllocatedDevice) -> int:
    """How many shares a result stands for."""
    device = roster.by_name.get(result.device)
    if device is None:
        return 1
    if device.shareable and result.device == device.name and result.share_id is None:
        # The whole device by its own name, as a cluster without consumable capacity would allocate it.
        return device.shares
    consumed = {key.rpartition("/")[2]: amount for key, amount in result.consumed_capacity.items()}
    return whole_quantity(consumed.get(device.share_unit, "1"), device.share_unit)


def _claim_edits(claim: Claim, result: AllocatedDevice, kind: Kind[Any], device: Device) -> ContainerEdits:
    raw = claim.config_for(result)
    if not raw:
        return ContainerEdits()
    try:
        parameters = [kind.parameters(entry) for entry in raw]
    except ParameterErrors as error:
        raise Unavailable(f"the configuration of request {result.request} is not valid: {error}") from error
    return kind.claim_edits(device, parameters)


def whole_quantity(text: str, name: str) -> int:
    """A Kubernetes quantity as a positive whole number: `1k` is 1000. Raises Unavailable for anything else."""
    try:
        value = quantity(text)
    except ValueError as error:
        raise Unavailable(f"the amount of {name}: {error}") from None
    if value != value.to_integral_value() or value <= 0:
        raise Unavailable(f"the amount {text!r} of {name} is not a positive whole number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Stored:
    """What the ledger keeps of a prepared claim: the answer, the edits of its own CDI file, and whether it was made
    for a pod that asked by resource name."""

    answer: PreparedClaim
    edits: dict[str, ContainerEdits]
    by_name: bool = False


def encode(stored: Stored) -> str:
    """The text for the ledger, without defaults: one stays in memory for each claim."""
    return json.dumps(plain(stored, defaults=False), separators=(",", ":"))


@functools.lru_cache(maxsize=1024)
def is_by_name(text: str) -> bool:
    """Whether a stored claim was made for a pod that asked by resource name."""
    return decode(text).by_name


def decode(text: str) -> Stored:
    """The same again. Raises ValueError for a text that `encode` did not make."""
    try:
        return decode_strictly(Stored, json.loads(text))
    except RecursionError as error:
        raise ValueError("not a stored claim: nested too deeply") from error
