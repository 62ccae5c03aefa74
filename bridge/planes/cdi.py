"""What a group's static CDI file says. Pure.

Every device once as pods get it, and once for admin access: the same nodes to look at and not to touch
(kubelet-contract C.4). Unplugged devices that are held stay: their containers may restart (H35).
"""

from __future__ import annotations

from dataclasses import replace

from bridge.devices.model import ContainerEdits
from bridge.planes.claims import ADMIN
from bridge.planes.roster import Roster


def static_edits(roster: Roster) -> dict[str, ContainerEdits]:
    """CDI device name to container edits."""
    edits: dict[str, ContainerEdits] = {}
    for device in roster.devices:
        if device.edits != ContainerEdits():
            edits[device.name] = device.edits
            edits[device.name + ADMIN] = _to_look_at(device.edits)
    return edits


def _to_look_at(edits: ContainerEdits) -> ContainerEdits:
    nodes = tuple(replace(node, permissions="r") for node in edits.nodes)
    mounts = tuple(replace(mount, read_only=True) for mount in edits.mounts)
    return ContainerEdits(nodes, edits.env, mounts)
