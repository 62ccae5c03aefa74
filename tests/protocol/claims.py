"""Claims and the pods that wait with them, as the tests of early word and of binding make and see them."""

from __future__ import annotations

import asyncio
from typing import Any

from bridge.sandbox import make
from tests.protocol.stage import ACC, DRIVER, Node

UNBOUND: dict[str, Any] = ACC | {"binding": "off"}
CLAIM_GETS, CLAIM_WATCHES = ("get", "resourceclaims"), ("watch", "resourceclaims")
PATCHES = ("patch", "resourceclaims/status")


def stuck_pod(node: Node, name: str, claim: str) -> None:
    """A pod of this node whose claim is allocated, but not to it: the kubelet never asks for it."""
    node.box.create_pod(make.pod(name, claims={"dev": claim}, node=node.box.node))


def deallocate(node: Node, claim: str) -> None:
    """Clear a claim's allocation, as its controller does."""
    gone = {"status": {"allocation": None}}
    node.box.api.registry.patch(
        "resourceclaims", claim, gone, namespace="default", kind="merge", subresource="status"
    )


async def claims_watched(node: Node) -> None:
    """Wait until a claim is watched; that is no write, so nothing else would tell."""
    api = node.box.api
    async with asyncio.timeout(20):
        while not api.requests[CLAIM_WATCHES]:
            api.watched.clear()
            await api.watched.wait()


async def claim_asked_for(node: Node) -> None:
    """Wait until a claim is read."""
    api = node.box.api
    async with asyncio.timeout(20):
        while not api.requests[CLAIM_GETS]:
            api.asked.clear()
            await api.asked.wait()


def conditions(node: Node, claim: str) -> dict[str, set[str]]:
    """The true conditions of a claim's devices, by device."""
    found = node.box.get("resourceclaims", claim) or {}
    return {
        entry["device"]: {c["type"] for c in entry["conditions"] if c["status"] == "True"}
        for entry in found.get("status", {}).get("devices") or ()
    }


def carries_conditions(node: Node) -> bool:
    """Whether every published device waits for us."""
    devices = [d for s in node.box.slices(DRIVER) for d in s["spec"].get("devices", ())]
    return bool(devices) and all(d.get("bindingConditions") == [f"{DRIVER}/reserved"] for d in devices)
