"""The ledger at the start of the daemon: opened, begun anew as told, and compared with what the kubelet has noted."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from bridge.config import Config
from bridge.daemon.errors import StartError
from bridge.ledger.ledger import Ledger
from bridge.ledger.store import EVERYTHING, LedgerError
from bridge.platform import checkpoint

log = logging.getLogger("bridge.daemon")


async def opened(config: Config) -> Ledger:
    """The ledger of the state folder, under its lock. Raises StartError."""
    try:
        ledger = await Ledger.open(config.daemon.state_dir, boot=boot_id())
    except LedgerError as error:
        raise StartError(str(error)) from error
    if ledger.rebooted:
        extra = {"holds": len(ledger.account)}
        log.warning("the machine was booted since the last run, what is held stays held", extra=extra)
    return ledger


async def noted(config: Config, ledger: Ledger) -> set[str] | None:
    """UIDs of claims that the kubelet has prepared, where the ledger may be a lost one; None if that cannot be told."""
    if not ledger.fresh:
        return set()
    found = await asyncio.to_thread(checkpoint.read_claims, config.daemon.kubelet_root / checkpoint.CLAIMS)
    if isinstance(found, checkpoint.Damaged):
        return None
    return set() if isinstance(found, checkpoint.Missing) else {device.claim_uid for device in found}


async def accept_empty(ledger: Ledger) -> None:
    """Begin anew after damage, as told. Raises StartError.

    Damage that this start found is not what the operator knew of: the flag may stand in a pod's arguments since
    an earlier one.
    """
    quarantine = ledger.account.quarantine_of(EVERYTHING, EVERYTHING)
    if quarantine is None:
        log.warning(
            "--accept-empty-ledger has nothing to accept; take it out of the arguments, it would accept damage later"
        )
    elif ledger.damaged:
        log.error(
            "--accept-empty-ledger does not accept damage that this start found; drain the node, then start again"
        )
    else:
        try:
            await ledger.lift(EVERYTHING, EVERYTHING)
        except LedgerError as error:
            raise StartError(str(error)) from error
        log.warning(
            "quarantine of everything lifted, as told; take --accept-empty-ledger out of the arguments",
            extra={"reason": quarantine.reason},
        )


def boot_id() -> str:
    """The machine's boot ID, the same until the next boot; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
