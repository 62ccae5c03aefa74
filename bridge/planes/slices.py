"""The DRA view of a group in the words of a ResourceSlice. Pure."""

from __future__ import annotations

from dataclasses import replace

from bridge.devices.model import AttributeValue, Device
from bridge.devices.model import Version as ModelVersion
from bridge.planes.conditions import Names
from bridge.planes.projection import SliceOffer
from dra_v1.slices import Attribute, Capacity, RequestPolicy, SliceDevice, Taint, Version

NUMA_NODE = "resource.kubernetes.io/numaNode"
"""The field's standard attribute (KEP 6072)."""


HELD = "held-by-device-plugin"
"""The taint that moves the claim which lost a device to the device plugin plane: `<driver>/held-by-device-plugin`."""


def slice_device(offer: SliceOffer, driver: str, conditions: Names | None = None) -> SliceDevice:
    """One device of a driver's slice; with `conditions` its pods are bound only after they are set (KEP 5007).

    A shareable one is allocated by amounts of its capacity; what is free bounds a request (the API refuses a
    policy above the capacity, and a step where there is no room for one).
    """
    device = offer.device
    capacity: dict[str, Capacity | str] = {name: str(amount) for name, amount in device.capacities.items()}
    if offer.units is not None:
        most = min(offer.units, offer.most or offer.units)
        policy = RequestPolicy(default="1", minimum="1", maximum=str(most), step="1" if most > 1 else None)
        capacity[device.share_unit] = Capacity(str(offer.units), policy)
    else:
        capacity.pop(device.share_unit, None)
    taints = (Taint(f"{driver}/{HELD}", effect="NoExecute"),) if offer.evict else ()
    shown = SliceDevice(
        offer.name, _attributes(device), capacity, allow_multiple=offer.units is not None, taints=taints
    )
    if conditions is None:
        return shown
    return replace(
        shown,
        binding_conditions=(conditions.reserved,),
        binding_failure_conditions=(conditions.elsewhere,),
        binds_to_node=True,
    )


def _attributes(device: Device) -> dict[str, Attribute]:
    attributes = {name: _attribute(value) for name, value in device.attributes.items()}
    attributes["kind"] = device.kind
    if device.numa_node is not None:
        attributes[NUMA_NODE] = device.numa_node
    return attributes


def _attribute(value: AttributeValue) -> Attribute:
    return Version(value.text) if isinstance(value, ModelVersion) else value
