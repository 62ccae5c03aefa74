"""The modes of all groups: what is wanted of them, how far they are, and the work on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bridge.config import Group
from bridge.daemon.metrics import Metrics
from bridge.daemon.serving import Serving
from bridge.daemon.switch import GroupSwitch, Surroundings
from bridge.planes.modes import GroupMode
from bridge.platform.pulse import Pulse


class Switching:
    """Every group's switch. Single event loop.

    Attributes:
        changed: rung when what `snapshot` gives differs.
    """

    def __init__(self, groups: Sequence[Group], around: Surroundings, metrics: Metrics) -> None:
        self._around = around
        self._metrics = metrics
        self._switches = {group.name: GroupSwitch(group, around) for group in groups}
        self.changed = Pulse()
        self._told: list[Callable[[], None]] = []

    def subscribe(self, told: Callable[[], None]) -> None:
        """Call whenever what `snapshot` gives differs."""
        self._told.append(told)

    def snapshot(self) -> tuple[GroupMode, ...]:
        """The groups' modes as they are now, in the order of the configuration."""
        return tuple(switch.now for switch in self._switches.values())

    async def begin(self) -> None:
        """Let each group begin where the ledger or the Node say; before anything is served."""
        account = self._around.ledger.account
        if any(account.switch_of(name) is None for name in self._switches):
            await self._around.node.first()
        await asyncio.gather(*(switch.begin() for switch in self._switches.values()))

    def list_read(self, group: str, yes: bool) -> None:
        """The kubelet began or ceased to read a group's device list."""
        self._switches[group].admitting.list_read(yes)

    async def run(self, serving: Serving) -> None:
        """Go where it is wanted, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for switch in self._switches.values():
                tasks.create_task(switch.run(serving))
                tasks.create_task(self._follow(switch))

    async def _follow(self, switch: GroupSwitch) -> None:
        with switch.changed.listen() as news:
            while True:
                self._metrics.mode_of(switch.now, lambda: switch.phase_seconds)
                self.changed.ring()
                for told in self._told:
                    told()
                await news.wait()
