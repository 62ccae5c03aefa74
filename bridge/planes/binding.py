"""Whether a group's slices carry binding conditions, and why not: by configuration, rights and the cluster (Q3).

A device that carries them is bound to no pod before we have spoken, so they are published only where we can speak;
what stands in the way is told once. Rights may be given later, so they are asked for again; what the cluster itself
lacks stands until the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from bridge.config import Binding as Wish
from bridge.config import Group, Mode, Sharing
from bridge.planes.conditions import FIELDS, Names
from bridge.platform.budget import Budget
from bridge.platform.rights import Right, minor_version, missing
from dra_v1.backoff import Backoff
from dra_v1.kube import ApiError, Forbidden, Invalid, KubeApi

log = logging.getLogger(__name__)

AGAIN_S, LONGEST_S = 1.0, 600.0
"""Rights that are lacking are asked for again after the first, then ever more seldom."""

_FIRST_MINOR = 34
"""The release that brought binding conditions, behind a gate at first."""

_GRANULAR_MINOR = 36
"""From here on the status of a device needs a right on its driver too (kubelet-contract C.5)."""

_API_GROUP = "resource.k8s.io"
_DRIVERS = "resourceclaims/driver"


def wished(group: Group) -> bool:
    """Whether the configuration asks for two-phase binding: `auto` means where both planes race for a device."""
    if group.mode is Mode.DEVICE_PLUGIN or group.binding is Wish.OFF:
        return False
    return group.binding is Wish.ON or (group.mode is Mode.DUAL and group.sharing is Sharing.SHARED)


def is_forbidden(error: ApiError) -> bool:
    """Whether a right is missing: that on the driver is checked with the object, so its lack is answered 422."""
    return isinstance(error, Forbidden) or _is_about_driver(error)


def _is_about_driver(error: ApiError) -> bool:
    return isinstance(error, Invalid) and _DRIVERS in error.message


class Binding:
    """One group's two-phase binding.

    Args:
        group: its configuration.
        changed: called when `active` changes.

    Attributes:
        names: of its conditions.
        trouble: why not, although the configuration asks for it; empty where there is nothing to say.
        decided: set once it is known whether to begin with them.
    """

    def __init__(self, group: Group, changed: Callable[[], None]) -> None:
        self.names = Names.of(group.driver_name)
        self.trouble = ""
        self.decided = asyncio.Event()
        self._group = group
        self._changed = changed
        self._stopped = asyncio.Event()
        self._pauses = Backoff(AGAIN_S, LONGEST_S, min(1.0, AGAIN_S))
        self._lacks_cluster = False
        self._possible = False
        self._wished = asyncio.Event()
        self.wish(group)
        if not self._wished.is_set():
            self.decided.set()

    @property
    def active(self) -> bool:
        """Whether slices carry the conditions."""
        return self._possible and self._wished.is_set()

    @property
    def answers(self) -> bool:
        """Whether a scheduler may be waiting for one: also where a switch of modes has ended `active`."""
        return self._possible

    def wish(self, group: Group) -> None:
        """The group is in another mode, in which binding may be wished or not."""
        before = self.active
        if wished(group):
            self._wished.set()
        else:
            self._wished.clear()
        if before != self.active:
            self._changed()

    async def decide(self, api: KubeApi, budget: Budget) -> None:
        """Find out whether the cluster and our rights allow it, and again whenever they do not, until cancelled;
        returns where only another cluster could change the answer."""
        if self._group.binding is Wish.OFF:
            return
        while not self._lacks_cluster:
            await self._wished.wait()
            try:
                self._set(await self._obstacle(api, budget))
            except (ApiError, ValueError) as error:
                if not self.trouble:
                    self._set(f"it cannot be told whether this daemon may set conditions: {error}")
            if self._possible:
                self._stopped.clear()
                await self._stopped.wait()
            if not self._lacks_cluster:
                await asyncio.sleep(self._pauses.next())

    def dropped(self, fields: frozenset[str]) -> None:
        """The cluster does not keep some fields of devices (H25)."""
        if self._possible and fields & FIELDS:
            self._lacks_cluster = True
            self._set("this cluster does not keep binding conditions (gate DRADeviceBindingConditions)")

    def forbidden(self, error: ApiError) -> None:
        """A condition could not be set for want of rights: no further device may wait for one."""
        if self._possible:
            grant = f"; grant it {self._of_driver()}" if _is_about_driver(error) else ""
            self._set(f"this daemon may not set conditions: {error}{grant}")

    def allowed(self) -> None:
        """A condition was set: should that end, it is asked for again soon."""
        self._pauses.reset()

    async def _obstacle(self, api: KubeApi, budget: Budget) -> str:
        """What stands in the way; empty if nothing does. Raises ApiError, ValueError."""
        await budget.take()
        minor = await minor_version(api)
        if minor < _FIRST_MINOR:
            self._lacks_cluster = True
            return f"Kubernetes 1.{minor} has no binding conditions, 1.{_FIRST_MINOR} and newer have"
        rights = [Right("patch", _API_GROUP, "resourceclaims/status")]
        if minor >= _GRANULAR_MINOR:
            rights.append(self._of_driver())
        for _ in rights:
            await budget.take()
        lacking = await missing(api, *rights)
        if not lacking:
            return ""
        rules = "; ".join(map(str, lacking))
        return f"RBAC lacks {rules}: grant it, it is asked for again every few minutes"

    def _of_driver(self) -> Right:
        return Right("associated-node:patch", _API_GROUP, _DRIVERS, self._group.driver_name)

    def _set(self, trouble: str) -> None:
        possible, before, known = self._possible, self.active, self.trouble
        self._possible, self.trouble = not trouble, trouble
        self.decided.set()
        if trouble:
            self._stopped.set()
        if trouble and trouble != known:
            log.warning(
                "no two-phase binding: a DRA pod that loses a race waits on this node",
                extra={"group": self._group.name, "why": trouble},
            )
        elif not trouble and not possible:
            log.info("two-phase binding", extra={"group": self._group.name})
        if before != self.active:
            self._changed()
