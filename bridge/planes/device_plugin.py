"""The device plugin plane of one group: ListAndWatch from the projection, Allocate on the ledger.

Keeps S1 and S2 (design 1): an answer leaves only after the ledger has it on disk, and the ledger refuses what DRA
has. On the path of Allocate there is one commit and nothing else (H40), with two exceptions, both bounded: where an ID
is handed out again, a look at its last pod; where a claim has just left it, the question whether it is deallocated.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from bridge.devices.model import ContainerEdits, Device
from bridge.ledger.account import Account
from bridge.ledger.holds import Pick, Plane, Refused
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import LedgerError
from bridge.planes.booking import book_patiently
from bridge.planes.deallocation import Deallocations
from bridge.planes.projection import IdOffer, Memory, device_plugin_view, order_of, preferred
from bridge.planes.regrants import StillUsed, Witnesses, check_last_holders
from bridge.planes.report import Report
from bridge.planes.roster import Roster, Unavailable, check_present
from bridge.platform.cdi import qualified
from bridge.platform.pulse import Pulse
from deviceplugin_v1beta1 import AllocationRefused, ContainerResponse, DeviceSpec
from deviceplugin_v1beta1 import Device as PluginDevice
from deviceplugin_v1beta1 import Mount as PluginMount

REST_S = 0.025
"""Between two lists: each is made, sent and read whole, and a burst of hand-outs needs only the last."""

SETTLED_S = 0.25
"""How long after a hand-out of an ID the kubelet is given to show the pod that got it, before it can have it again."""

UNKNOWN_POD = "a pod of this node"
"""Allocate does not say who asks (kubelet-contract A.4)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the device plugin plane works with.

    Attributes:
        ledger: the one account.
        roster: the group's devices now.
        changed: pulses when ledger or inventory changed.
        report: where hand-outs and refusals are told.
        there: whether a device node exists now, by its host path.
        witnesses: who tells whether an ID's last pod still has it.
        deallocations: who tells whether a claim that lets go has let go.
    """

    ledger: Ledger
    roster: Callable[[], Roster]
    changed: Pulse
    report: Report
    there: Callable[[str], bool]
    witnesses: Witnesses
    deallocations: Deallocations


class DevicePluginPlane:
    """A `deviceplugin_v1beta1` plugin for one group."""

    def __init__(self, group: str, around: Surroundings) -> None:
        self._group = group
        self._around = around
        self._memory = Memory[tuple[IdOffer, ...]]()
        self._turn = asyncio.Lock()
        self._granted: dict[str, float] = {}

    async def devices(self) -> AsyncIterator[Sequence[PluginDevice]]:
        """Complete lists, a new one at each change that this plane shows."""
        last: Sequence[PluginDevice] | None = None
        with self._around.changed.listen(REST_S) as changes:
            while True:
                now = self.shown()
                if now != last:
                    last = now
                    yield now
                await changes.wait()

    def shown(self) -> tuple[PluginDevice, ...]:
        """The list as it is to be shown now."""
        return tuple(
            _plugin_device(offer.id, offer.healthy, offer.numa_node)
            for offer in device_plugin_view(self._around.roster(), self._around.ledger.account, self._memory)
        )

    async def allocate(self, containers: Sequence[Sequence[str]]) -> Sequence[ContainerResponse]:
        """Book all IDs of all containers, or none (H28); raises AllocationRefused with the reason.

        One call at a time: a kubelet admits pods so, but containers that it starts anew ask beside that, and it may
        choose the same ID for both (it gives up its lock while it asks for a preference).
        """
        async with self._turn:
            return await self._allocate(containers)

    async def _allocate(self, containers: Sequence[Sequence[str]]) -> Sequence[ContainerResponse]:
        started = time.perf_counter()
        ids = [i for container in containers for i in container]
        await self._settled(ids)
        try:
            responses, unproven = await book_patiently(
                lambda: self._grant(ids, containers), self._around.deallocations
            )
        except (Unavailable, Refused, StillUsed, LedgerError) as error:
            self._around.report.refused(Plane.DEVICE_PLUGIN, self._group, ids, UNKNOWN_POD, str(error), error)
            raise AllocationRefused(str(error)) from error
        self._granted |= dict.fromkeys(ids, asyncio.get_running_loop().time())
        for device_id, why in unproven.items():
            self._around.report.unproven(Plane.DEVICE_PLUGIN, self._group, [device_id], why)
        seconds = time.perf_counter() - started
        # The kubelet admits nobody else meanwhile, and shall wait for no log line: nothing between here and the
        # sending of the answer waits, so this comes after it.
        handed_out = self._around.report.handed_out
        asyncio.get_running_loop().call_soon(
            handed_out, Plane.DEVICE_PLUGIN, self._group, ids, UNKNOWN_POD, seconds
        )
        return responses

    async def _grant(
        self, ids: Sequence[str], containers: Sequence[Sequence[str]]
    ) -> tuple[Sequence[ContainerResponse], Mapping[str, str]]:
        """Book all IDs as things are now; what the containers get, and of which IDs it is not proven that they are
        free."""
        roster, account = self._around.roster(), self._around.ledger.account
        picks = [pick_id(roster, account, i) for i in ids]
        check_present(
            {pick.device: roster.by_name[pick.device] for pick in picks}.values(), self._around.there
        )
        responses = [container_response(roster, container) for container in containers]
        unproven = await check_last_holders(
            account, self._group, roster.group.resource_name, ids, self._around.witnesses
        )
        await self._around.ledger.grant(picks)
        return responses, unproven

    async def _settled(self, ids: Sequence[str]) -> None:
        """Wait until the kubelet has had time to show whom these IDs were last given to, if nobody knows that yet."""
        account, now = self._around.ledger.account, asyncio.get_running_loop().time()
        held = ((i, account.of_share(Plane.DEVICE_PLUGIN, self._group, i)) for i in ids)
        begun = [self._granted.get(i, 0.0) for i, hold in held if hold is not None and not hold.holder.uid]
        await asyncio.sleep(max(0.0, max(begun, default=0.0) + SETTLED_S - now))

    async def preferred(
        self, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> Sequence[str]:
        """Steer the kubelet to the end that DRA does not begin with (Q2), and last of all to what DRA has."""
        view = device_plugin_view(self._around.roster(), self._around.ledger.account, self._memory)
        return preferred(list(available), list(must_include), size, order_of(view))


def pick_id(roster: Roster, account: Account, device_id: str) -> Pick:
    """The pick for one device plugin ID. Raises Unavailable.

    An ID that this plane has out may be asked for again whatever the configuration says now: among its own the
    kubelet decides (kubelet-contract A.4).
    """
    held = account.of_share(Plane.DEVICE_PLUGIN, roster.group.name, device_id)
    pick = roster.pick(device_id)
    if held is None and device_id not in roster.device_plugin_shares:
        why = (
            f"is in mode {roster.group.mode}, and its configuration gives this device to DRA"
            if roster.device_plugin_offered
            else "is in mode dra, or on its way there"
        )
        raise Unavailable(
            f"{device_id} is not offered through the device plugin API: group {roster.group.name} {why}"
        )
    return pick


def container_response(roster: Roster, ids: Sequence[str]) -> ContainerResponse:
    """What a container gets for its IDs.

    Device specs wherever they can say it: the answer is kept by the kubelet and used again after a reboot, when
    no CDI file may be there yet (kubelet-contract A.5). An owner inside the container they cannot express, so
    such devices go by CDI name alone; the same node is never returned both ways.
    """
    devices = {device.name: device for i in ids if (device := roster.by_name.get(i)) is not None}
    by_cdi = [d for d in devices.values() if needs_cdi(d)]
    edits = ContainerEdits()
    for device in devices.values():
        if not needs_cdi(device):
            edits = edits + device.edits
    return ContainerResponse(
        envs=dict(edits.env),
        mounts=tuple(PluginMount(m.host_path, m.container_path, m.read_only) for m in edits.mounts),
        devices=tuple(DeviceSpec(n.host_path, n.container_path, n.permissions) for n in edits.nodes),
        cdi_devices=tuple(qualified(roster.group.name, d.name) for d in by_cdi),
    )


def needs_cdi(device: Device) -> bool:
    """Whether its edits say something that a device spec cannot."""
    return any(node.owner is not None for node in device.edits.nodes)


@functools.lru_cache(maxsize=4096)
def _plugin_device(name: str, healthy: bool, numa_node: int | None) -> PluginDevice:
    """The same object for the same device: most of a list is as it was, and is compared and made in no time."""
    return PluginDevice(name, healthy, () if numa_node is None else (numa_node,))
