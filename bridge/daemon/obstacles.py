"""What keeps a group from being switched: asked of the API server before anything begins to close.

Only what would leave pods without a plane is an obstacle: a cluster without DRA, or a resource name that is to go on
and that no DeviceClass carries (KEP-5004), so that pods which ask for it would stay pending; or a kubelet that does not
take the driver.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bridge.config import Group, Mode
from bridge.daemon.serving import NotServed, Serving
from bridge.ledger.holds import Plane
from bridge.ledger.switches import Switch
from bridge.planes.modes import ACCEPT_STRANDED, Options, Reason, closes_device_plugin, opens_dra
from bridge.platform.budget import Budget
from bridge.platform.cdi import CdiError
from bridge.platform.rights import minor_version
from dra_v1.kube_errors import ApiError, Forbidden, NotFound
from dra_v1.resource_api import NoResourceApi, ResourceApi
from dra_v1.sockets import SocketError

NAMES_MINOR = 36
"""The release from which a cluster keeps `extendedResourceName` without a gate being opened (KEP-5004)."""

_NAMES_FIRST_MINOR = 34

REGISTERED_S = 10.0
"""How long the kubelet may take to register a driver, and the API server to answer for its slices."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a switch is refused, and what to do."""

    reason: Reason
    text: str


async def obstacle(
    switch: Switch, mode: Mode, group: Group, options: Options, resources: ResourceApi | None, budget: Budget
) -> Obstacle | None:
    """What keeps a group from going to a mode now; None if nothing does."""
    closes = closes_device_plugin(switch, mode)
    if not closes and not opens_dra(switch, mode):
        return None
    if resources is None:
        return Obstacle(Reason.NO_DRA, f"{mode} needs an API server, and the daemon runs without one")
    try:
        await budget.take()
        version = await resources.version()
        if closes and group.keep_resource_name and not options.accepts(group.name):
            return await _name(group, version, resources, budget)
    except NoResourceApi as error:
        return Obstacle(Reason.NO_DRA, f"{mode} needs dynamic resource allocation: {error}")
    except ApiError as error:
        return Obstacle(Reason.NOT_CHECKED, f"it cannot be told whether {mode} is possible: {error}")
    return None


async def unregistered(group: Group, serving: Serving) -> Obstacle | None:
    """What keeps the kubelet from taking the group's driver, tried while the device plugin still serves the name;
    nothing is offered by it yet."""
    try:
        await serving.open(group, Plane.DRA)
        if (runner := serving.runner(group.name)) is not None:
            async with asyncio.timeout(REGISTERED_S):
                await runner.published()
    except TimeoutError:
        why = f"driver {group.driver_name} was not registered and published within {REGISTERED_S:g} s"
    except (NotServed, SocketError, CdiError, NoResourceApi, RuntimeError) as error:
        why = str(error)
    else:
        return None
    return Obstacle(
        Reason.NOT_CHECKED, f"it cannot be told whether DRA can serve {group.resource_name}: {why}"
    )


async def _name(group: Group, version: str, resources: ResourceApi, budget: Budget) -> Obstacle | None:
    """Whether the group's DeviceClass carries its resource name. Raises ApiError for what may pass."""
    name, resource = group.driver_name, group.resource_name
    await budget.take()
    try:
        found = await resources.api.get(f"/apis/resource.k8s.io/{version}/deviceclasses/{name}")
    except NotFound:
        return _stranded(group, f"there is no DeviceClass {name}", f"make one with {_carrying(resource)}")
    except Forbidden as error:
        return _stranded(group, f"this daemon may not read the DeviceClass {name}: {error}", "")
    carried = (found.get("spec") or {}).get("extendedResourceName") or ""
    if carried == resource:
        return None
    if carried:
        what = f"DeviceClass {name} carries {carried} as extendedResourceName and not {resource}"
        return _stranded(group, what, f"give it {_carrying(resource)}")
    await budget.take()
    return _stranded(
        group,
        f"DeviceClass {name} carries no extendedResourceName",
        f"give it {_carrying(resource)}{_who_keeps_it(await _minor(resources))}",
    )


async def _minor(resources: ResourceApi) -> int:
    try:
        return await minor_version(resources.api)
    except ValueError:
        return NAMES_MINOR


def _carrying(resource: str) -> str:
    return f"spec.extendedResourceName: {resource}"


def _who_keeps_it(minor: int) -> str:
    if minor < _NAMES_FIRST_MINOR:
        return (
            f"; Kubernetes 1.{minor} has no such field: DRA serves a resource name from 1.{NAMES_MINOR} on, "
            f"until then mode dual goes as far as it can"
        )
    if minor < NAMES_MINOR:
        return (
            f"; Kubernetes 1.{minor} drops that field unless the gate DRAExtendedResource is on, "
            f"1.{NAMES_MINOR} and newer keep it"
        )
    return ""


def _stranded(group: Group, what: str, do: str) -> Obstacle:
    ask = f"pods that ask for {group.resource_name} would stay pending on this node"
    accept = f"annotate the Node with {ACCEPT_STRANDED}={group.name} to switch all the same"
    return Obstacle(Reason.NAME_NOT_CARRIED, "; ".join(filter(None, (f"{what}: {ask}", do, accept))))
