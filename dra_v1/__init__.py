"""The DRA kubelet plugin protocol for Python: write a driver with two methods, this library does the rest.

`DraPlugin` serves, registers and publishes; the parts stand alone as well. Names are loaded when they are first
used, so that whoever needs registration alone does not pay for an HTTP client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dra_v1.claims import AllocatedDevice, Claim, ClaimError, ClaimRef, fetch_claims
    from dra_v1.driver import (
        DeviceHealth,
        Driver,
        HealthStatus,
        PreparedClaim,
        PreparedDevice,
        PrepareError,
        UnprepareError,
    )
    from dra_v1.kube import ApiError, KubeApi
    from dra_v1.plugin import DraPlugin
    from dra_v1.registration import WatcherRegistration
    from dra_v1.resource_api import NoResourceApi, ResourceApi
    from dra_v1.server import DraServer
    from dra_v1.slice_publisher import SlicePublisher
    from dra_v1.slice_rules import PublishError
    from dra_v1.slices import (
        Capacity,
        CounterSet,
        Pool,
        RequestPolicy,
        SliceDevice,
        Taint,
        Version,
    )

_HOMES = {
    "claims": ("AllocatedDevice", "Claim", "ClaimError", "ClaimRef", "fetch_claims"),
    "driver": (
        "DeviceHealth",
        "Driver",
        "HealthStatus",
        "PrepareError",
        "PreparedClaim",
        "PreparedDevice",
        "UnprepareError",
    ),
    "kube": ("ApiError", "KubeApi"),
    "plugin": ("DraPlugin",),
    "registration": ("WatcherRegistration",),
    "resource_api": ("NoResourceApi", "ResourceApi"),
    "server": ("DraServer",),
    "slice_publisher": ("SlicePublisher",),
    "slice_rules": ("PublishError",),
    "slices": ("Capacity", "CounterSet", "Pool", "RequestPolicy", "SliceDevice", "Taint", "Version"),
}

__all__ = [
    "AllocatedDevice",
    "ApiError",
    "Capacity",
    "Claim",
    "ClaimError",
    "ClaimRef",
    "CounterSet",
    "DeviceHealth",
    "DraPlugin",
    "DraServer",
    "Driver",
    "HealthStatus",
    "KubeApi",
    "NoResourceApi",
    "Pool",
    "PrepareError",
    "PreparedClaim",
    "PreparedDevice",
    "PublishError",
    "RequestPolicy",
    "ResourceApi",
    "SliceDevice",
    "SlicePublisher",
    "Taint",
    "UnprepareError",
    "Version",
    "WatcherRegistration",
    "fetch_claims",
]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"dra_v1.{module}"), name)
    raise AttributeError(f"module 'dra_v1' has no attribute {name!r}")
