"""Hand-outs of our devices past the ledger, by a plugin that registered in our name with the kubelet alone (H19).

A kubelet gives a name to whoever registered last and tells the one before nothing: our list goes on being read, and
Allocate goes elsewhere (kubelet-contract A.2). But it notes each hand-out in its checkpoint: that is read whenever it
is written, and the reconciler is woken for what the ledger lacks. At rest nothing is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bridge.config import Config
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.platform import checkpoint
from dra_v1.folders import FolderWatch
from dra_v1.registration import RECHECK_SECONDS

AGAIN_S, NEW_S = 1.0, 60.0
"""The pod of a new entry may show in no other source yet: looks go on at this pace, for so long. An older entry is a
stale one (H10), or of a pod that the reconciler has fenced off."""


class PastLedger:
    """Follows the kubelet's checkpoint. Single event loop.

    Args:
        config: our names and the kubelet's folder.
        ledger: what is explained.
        found: called while there is a new entry that is not.
    """

    def __init__(self, config: Config, ledger: Ledger, found: Callable[[], None]) -> None:
        self._folder = config.daemon.kubelet_root / "device-plugins"
        self._groups = {group.resource_name: group.name for group in config.groups}
        self._ledger = ledger
        self._found = found
        self._since: dict[tuple[str, str, str], float] = {}

    async def follow(self) -> None:
        """Read at each change of the folder, until cancelled."""
        watch = FolderWatch(self._folder)
        try:
            while True:
                new = await self._look()
                if new:
                    self._found()
                await watch.wait(AGAIN_S if new else RECHECK_SECONDS)
        finally:
            watch.close()

    async def _look(self) -> bool:
        """Whether there is a new entry that no hold explains."""
        noted = await asyncio.to_thread(checkpoint.read, self._folder / checkpoint.NAME)
        entries = noted.entries if isinstance(noted, checkpoint.Checkpoint) else ()
        account, now = self._ledger.account, time.monotonic()
        self._since = {
            (key := (entry.pod_uid, group, name)): self._since.get(key, now)
            for entry in entries
            if (group := self._groups.get(entry.resource)) is not None
            for name in entry.ids
            if account.of_share(Plane.DEVICE_PLUGIN, group, name) is None
        }
        return any(now - since < NEW_S for since in self._since.values())
