"""A device plugin whose lists and answers a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from deviceplugin_v1beta1 import AllocationRefused, ContainerResponse, Device, DeviceSpec


class ScriptedPlugin:
    """Has the two methods that each plugin has.

    Attributes:
        refusal: if set, why nothing can be given.
        failure: if set, what allocate and devices raise.
        hangs: ids whose allocation takes until `release` is set.
    """

    def __init__(self, *devices: Device) -> None:
        self.refusal = ""
        self.failure: Exception | None = None
        self.hangs: set[str] = set()
        self.hanging = asyncio.Event()
        self.release = asyncio.Event()
        self._lists: asyncio.Queue[Sequence[Device] | Exception | None] = asyncio.Queue()
        if devices:
            self.show(*devices)

    def show(self, *devices: Device) -> None:
        self._lists.put_nowait(devices)

    def end(self, failure: Exception | None = None) -> None:
        self._lists.put_nowait(failure)

    async def devices(self) -> AsyncIterator[Sequence[Device]]:
        while (news := await self._lists.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield news

    async def allocate(self, containers: Sequence[Sequence[str]]) -> Sequence[ContainerResponse]:
        if self.refusal:
            raise AllocationRefused(self.refusal)
        if self.failure is not None:
            raise self.failure
        if any(one in self.hangs for ids in containers for one in ids):
            self.hanging.set()
            await self.release.wait()
        return [
            ContainerResponse(devices=[DeviceSpec(f"/dev/{one}", f"/dev/x-{one}", "rw") for one in ids])
            for ids in containers
        ]


class WishingPlugin(ScriptedPlugin):
    """Prefers the last ids, and prepares devices before a start."""

    def __init__(self, *devices: Device) -> None:
        super().__init__(*devices)
        self.prepared: list[Sequence[str]] = []

    async def preferred(
        self, available: Sequence[str], must_include: Sequence[str], size: int
    ) -> Sequence[str]:
        if self.failure is not None:
            raise self.failure
        rest = [one for one in sorted(available, reverse=True) if one not in must_include]
        return [*must_include, *rest][:size]

    async def pre_start(self, ids: Sequence[str]) -> None:
        if self.failure is not None:
            raise self.failure
        self.prepared.append(ids)
