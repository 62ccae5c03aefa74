"""The groups' CDI files as ledger and inventory want them, and which groups can do without.

Through the device plugin API a device without an owner goes into a container by its nodes alone
(`bridge.planes.device_plugin`): a CDI folder that cannot be written is no reason to hold it up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence

from bridge.ledger.account import Account
from bridge.ledger.holds import Phase, Plane, PreparedClaim
from bridge.ledger.ledger import Ledger
from bridge.planes.cdi import static_edits
from bridge.planes.claims import decode
from bridge.planes.device_plugin import needs_cdi
from bridge.planes.roster import Roster
from bridge.platform.cdi import CdiError, CdiFiles

log = logging.getLogger(__name__)


class GroupFiles:
    """Writes the files of groups; every call works in a thread."""

    def __init__(self, cdi: CdiFiles, ledger: Ledger) -> None:
        self._cdi = cdi
        self._ledger = ledger
        self._said: dict[str, str] = {}
        self._one_at_a_time = asyncio.Lock()

    async def sweep(self, groups: Collection[str], noted: Collection[str] | None) -> None:
        """Remove what earlier runs left and nobody needs; what cannot be removed stays, and is told.

        `noted`: UIDs of claims that the kubelet has prepared, known to the ledger or not; None if that cannot be told.
        """
        account = self._ledger.account
        keep = {claim.holder.uid for claim in account.prepared_claims()}
        # Those that were taken up from evidence have no answer.
        keep |= {hold.holder.uid for hold in account.on_plane(Plane.DRA) if hold.phase is Phase.PREPARED}

        def sweep() -> None:
            self._cdi.sweep_groups(groups)
            if noted is not None:
                self._cdi.sweep_claims(keep.union(noted))

        try:
            await asyncio.to_thread(sweep)
        except CdiError as error:
            log.error("stale CDI files stay", extra={"error": str(error)})

    async def restore(self, rosters: Sequence[Roster]) -> Mapping[str, str]:
        """Write the files of groups and of their prepared claims: after a reboot, or a crash in between (H20).

        Returns why not, by group, for those that need them.
        """
        return await self._write(rosters, self._ledger.account.prepared_claims())

    async def write(self, rosters: Sequence[Roster]) -> Mapping[str, str]:
        """Bring the groups' files up to date; the runtime re-reads all files when one changes, so only then.

        Returns why not, by group, for those that need them.
        """
        return await self._write(rosters, ())

    async def _write(self, rosters: Sequence[Roster], claims: Sequence[PreparedClaim]) -> Mapping[str, str]:
        account = self._ledger.account
        needing = {roster.group.name for roster in rosters if needs_file(roster, account)}

        def write() -> dict[str, str]:
            failed: dict[str, str] = {}
            for roster in rosters:
                name = roster.group.name
                try:
                    self._cdi.write_group(name, static_edits(roster))
                    self._restore_claims([claim for claim in claims if claim.group == name])
                except CdiError as error:
                    failed[name] = str(error)
            return failed

        async with self._one_at_a_time:
            failed = await asyncio.to_thread(write)
        for roster in rosters:
            self._tell(roster.group.name, failed.get(roster.group.name, ""), roster.group.name in needing)
        return {group: error for group, error in failed.items() if group in needing}

    def _restore_claims(self, claims: Sequence[PreparedClaim]) -> None:
        for claim in claims:
            stored = decode(claim.answer)
            if stored.edits:
                self._cdi.write_claim(claim.group, claim.holder.uid, stored.edits)

    def _tell(self, group: str, error: str, needed: bool) -> None:
        if error == self._said.get(group, ""):
            return
        self._said[group] = error
        if not error:
            log.info("CDI file written again", extra={"group": group})
        elif needed:
            log.error("new devices are not offered", extra={"group": group, "error": error})
        else:
            log.warning("no CDI file, this group does without", extra={"group": group, "error": error})


def needs_file(roster: Roster, account: Account) -> bool:
    """Whether a group's containers get devices by CDI name, now or when they are started again."""
    name = roster.group.name
    return (
        roster.dra_offered
        or bool(account.of_group(Plane.DRA, name))
        or any(claim.group == name for claim in account.prepared_claims())
        or any(needs_cdi(device) for device in roster.devices)
    )
