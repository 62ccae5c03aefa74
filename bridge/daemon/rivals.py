"""Other drivers beside us that the kubelet would ask in our name: they hand out past the ledger (H19).

Whoever registers through the kubelet's plugin folder says its name to anybody who asks. Each socket there is asked
once; at rest nothing is. A rival of the older route, kubelet.sock, says its name to the kubelet alone: what it hands
out shows in the kubelet's checkpoint (`bridge.daemon.past_ledger`) and is taken up (`bridge.ledger.doubts`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bridge.config import Config
from bridge.platform.endpoint import Unavailable, UnixEndpoint
from dra_v1.api import pluginregistration_pb2 as pb
from dra_v1.api.pluginregistration_pb2_grpc import RegistrationStub
from dra_v1.folders import FileIdentity, FolderWatch, identity_of
from dra_v1.registration import RECHECK_SECONDS

log = logging.getLogger(__name__)

ASK_S = 1.0
"""How long the kubelet waits for the same answer (kubelet-contract A.2)."""

Role = tuple[str, str]
"""(type, name), as a plugin registers."""


@dataclass(frozen=True, slots=True)
class Mine:
    """What one of our groups registers as; `own` is its endpoint, or the folder that all its endpoints are in."""

    group: str
    what: str
    own: Path


class Rivals:
    """Looks through the kubelet's plugin folder. Single event loop.

    Args:
        config: our names and folders.
        changed: called when a rival has come or gone.

    Attributes:
        found: why not, by group.
    """

    def __init__(self, config: Config, changed: Callable[[], None]) -> None:
        daemon = config.daemon
        self._registry = daemon.kubelet_root / "plugins_registry"
        self._changed = changed
        self._roles: dict[Role, Mine] = {}
        for g in config.groups:
            endpoint = daemon.kubelet_root / "plugins" / g.driver_name / "dra.sock"
            self._roles["DRAPlugin", g.driver_name] = Mine(g.name, f"DRA driver {g.driver_name}", endpoint)
            self._roles["DevicePlugin", g.resource_name] = Mine(
                g.name, f"device plugin {g.resource_name}", daemon.state_dir
            )
        self._watch: FolderWatch | None = None
        self._asked: dict[Path, tuple[FileIdentity, str, str]] = {}
        self.found: Mapping[str, str] = {}

    async def follow(self) -> None:
        """Look at each change of the folder, until cancelled."""
        self._watch = watch = FolderWatch(self._registry)
        try:
            while True:
                await self.look()
                await watch.wait(RECHECK_SECONDS)
        finally:
            self._watch = None
            watch.close()

    def wake(self) -> None:
        """Look soon: something else than the folder says that there may be one."""
        if self._watch is not None:
            self._watch.nudge()

    async def look(self) -> None:
        """Ask what is new."""
        there = await asyncio.to_thread(_sockets, self._registry)
        new = [path for path, identity in there.items() if self._asked.get(path, (None,))[0] != identity]
        answers = await asyncio.gather(*(self._ask(path) for path in new))
        self._asked = {p: known for p, known in self._asked.items() if there.get(p) == known[0]}
        self._asked |= {
            path: (there[path], *answer)
            for path, answer in zip(new, answers, strict=True)
            if answer is not None
        }
        found = {group: why for _, group, why in self._asked.values() if group}
        if found == self.found:
            return
        for group, why in found.items():
            if group not in self.found:
                log.error("another driver serves in our name", extra={"group": group, "error": why})
        for group in self.found.keys() - found.keys():
            log.info("the other driver is gone", extra={"group": group})
        self.found = found
        self._changed()

    async def _ask(self, path: Path) -> tuple[str, str] | None:
        """The group whose rival serves there, and why it is one; None if it does not answer, and is asked again."""
        endpoint = UnixEndpoint(path)
        try:
            info = await endpoint.call("ask a plugin for its name", _info)
        finally:
            await endpoint.close()
        if isinstance(info, Unavailable):
            return None
        mine = self._roles.get((info.type, info.name))
        where = Path(info.endpoint or path)
        if mine is None or mine.own in (where, where.parent):
            return "", ""
        return mine.group, (
            f"another {mine.what} is registered with the kubelet beside this one, by {path}, and serves at {where}: "
            f"it hands out past the ledger. Remove it, or give the group another name"
        )


async def _info(channel: grpc.aio.Channel) -> pb.PluginInfo:
    stub: Any = RegistrationStub(channel)
    answer: pb.PluginInfo = await stub.GetInfo(pb.InfoRequest(), timeout=ASK_S)
    return answer


def _sockets(folder: Path) -> dict[Path, FileIdentity]:
    """As the kubelet looks for them: below the folder, hidden ones left out."""
    found: dict[Path, FileIdentity] = {}
    try:
        for path in folder.rglob("*"):
            if not path.name.startswith(".") and path.is_socket():
                identity = identity_of(path)
                if identity is not None:
                    found[path] = identity
    except OSError as error:
        log.warning("cannot look for other drivers", extra={"folder": str(folder), "error": str(error)})
    return found
