"""A disk that takes nothing more: nothing is answered that is not on it, and all goes on when it does (S1)."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.daemon.run import StartError
from bridge.ledger.holds import Phase, Plane
from bridge.ledger.store import Store
from bridge.sandbox.kubelet.endpoint import EndpointError
from tests.protocol.stage import RESOURCE, Node, acc, stage
from tests.unit.disks import FULL, WRITE_ERROR, Disk, disk_below

DP, DRA = Plane.DEVICE_PLUGIN, Plane.DRA

SORTS = pytest.mark.parametrize(
    ("fails", "says"), [(FULL, "database or disk is full"), (WRITE_ERROR, "disk I/O error")],
    ids=["full", "read-only"],
)  # fmt: skip


def uid(claim: dict[str, Any]) -> str:
    found: str = claim["metadata"]["uid"]
    return found


@asynccontextmanager
async def on_disk(**more: Any) -> AsyncIterator[tuple[Node, Disk]]:
    """A node whose ledger is on a disk that can fail."""
    async with stage(start=False, **more) as node:
        with disk_below(node.state) as disk:
            await node.box.observe.wait("KubeletSynced")
            await node.start()
            try:
                yield node, disk
            finally:
                disk.fails = 0
                await node.stop()


@SORTS
async def test_allocate_is_refused_while_the_ledger_cannot_be_written(fails: int, says: str) -> None:
    async with on_disk() as (node, disk):
        disk.fails = fails
        for _ in range(2):
            with pytest.raises(EndpointError, match=f"{says}.*nothing (was|is) handed out"):
                await node.allocate(acc(1))
        assert says in (await node.log.wait("refused"))["why"]
        disk.fails = 0
        assert node.holds() == []
        await node.offers(acc(0), acc(1))
        await node.allocate(acc(1))
        assert node.phases() == {acc(1): Phase.GRANTED}
        await node.offers(acc(0))


@SORTS
async def test_prepare_is_refused_while_the_ledger_cannot_be_written(fails: int, says: str) -> None:
    async with on_disk() as (node, disk):
        held, new = node.claim_on("held", acc(0)), node.claim_on("new", acc(1))
        answer = (await node.prepare(held))[uid(held)]
        disk.fails = fails
        for _ in range(2):
            refused = (await node.prepare(new))[uid(new)]
            assert says in refused.error and not refused.devices
        again = (await node.prepare(held))[uid(held)]
        assert again == answer, "what is on the disk already is answered"
        disk.fails = 0
        assert node.ledger() == {acc(0): (DRA, "claim default/held")}
        assert not (await node.prepare(new))[uid(new)].error
        assert set(node.ledger()) == {acc(0), acc(1)}


@SORTS
async def test_unprepare_is_refused_while_the_ledger_cannot_be_written(fails: int, says: str) -> None:
    async with on_disk() as (node, disk):
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error
        disk.fails = fails
        assert says in (await node.unprepare(claim))[uid(claim)].error
        disk.fails = 0
        assert node.phases() == {acc(0): Phase.PREPARED}, "the claim holds as before"
        assert not (await node.unprepare(claim))[uid(claim)].error
        assert node.phases() in ({acc(0): Phase.RELEASING}, {})


async def test_a_pod_that_is_refused_for_a_full_disk_is_told_so_and_the_next_one_runs() -> None:
    async with on_disk() as (node, disk):
        from bridge.sandbox import make

        disk.fails = FULL
        node.box.create_pod(make.pod("p", limits={RESOURCE: 1}))
        pod = await node.box.wait_phase("p", "Failed")
        assert "disk is full" in pod["status"]["message"]
        disk.fails = 0
        assert await node.run_pod("q", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]


async def test_a_start_on_a_full_disk_is_refused_clearly_and_keeps_the_mark_of_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the mark a ledger that is lost later would pass for one that never was."""
    async with stage() as node:
        await node.allocate(acc(0))
        await node.stop()
        write = os.pwrite

        def full(fd: int, content: bytes, offset: int) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr("bridge.ledger.store.os.pwrite", full)
            with pytest.raises(StartError, match="No space left on device; free disk space"):
                await node.start()
        assert os.pwrite is write and (node.state / "ledger.lock").stat().st_size > 0
        await node.start()
        assert set(node.ledger()) == {acc(0)}


async def test_nothing_is_remembered_of_a_ledger_that_cannot_even_be_read_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the account then has may never have reached the disk (S1, S5)."""
    async with on_disk() as (node, disk):
        claim = node.claim_on("c", acc(0))
        assert not (await node.prepare(claim))[uid(claim)].error
        with monkeypatch.context() as broken:
            broken.setattr(Store, "load", _unreadable)
            disk.fails = WRITE_ERROR
            with pytest.raises(EndpointError, match=r"nothing (was|is) handed out"):
                await node.allocate(acc(1))
            answer = (await node.prepare(claim))[uid(claim)]
            assert "cannot be read" in answer.error and not answer.devices
        disk.fails = 0
        assert not (await node.prepare(claim))[uid(claim)].error
        await node.allocate(acc(1))


def _unreadable(store: Store) -> None:
    raise sqlite3.OperationalError("disk I/O error")


async def test_a_disk_that_fills_up_while_holds_end_loses_no_hold_and_no_device() -> None:
    """The claim is deallocated while the ledger cannot say so: it ends when it can."""
    async with on_disk() as (node, disk):
        claim = node.claim_on("c", acc(0))
        await node.prepare(claim)
        assert not (await node.unprepare(claim))[uid(claim)].error
        disk.fails = FULL
        since = len(node.log.records)
        patch = {"status": {"allocation": None}}
        registry = node.box.api.registry
        registry.patch("resourceclaims", "c", patch, namespace="default", kind="merge", subresource="status")
        await node.log.wait("cannot record a release", since)
        disk.fails = 0
        assert node.phases() == {acc(0): Phase.RELEASING}
        async with asyncio.timeout(20):
            await node.holds_are(set())
        await node.allocate(acc(0))
