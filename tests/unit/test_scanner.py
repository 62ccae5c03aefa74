import asyncio
import errno
import logging
import shutil
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bridge.devices.kinds import KINDS
from bridge.devices.kinds.base import Watches
from bridge.devices.kinds.nx_gzip import CAPABILITIES, CREDITS, NODE
from bridge.devices.model import Inventory
from bridge.devices.scanner import MachineEvents, Scanner, scan
from bridge.devices.schema import decode
from bridge.platform.roots import Roots
from bridge.platform.uevents import UeventSocket
from tests.unit.trees import Tree

LIMIT = 10.0
NEVER = 3600.0


@dataclass(frozen=True)
class Group:
    name: str
    kind: str
    options: object


def group(name: str, kind: str = "device-node", **options: object) -> Group:
    return Group(name, kind, decode(KINDS[kind].options, options))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class Watched:
    """The inventories of a running scanner."""

    def __init__(self, changes: AsyncGenerator[Inventory, None]) -> None:
        self._changes = changes

    async def next(self) -> list[str]:
        async with asyncio.timeout(LIMIT):
            inventory = await anext(self._changes)
        return [device.name for device in inventory.devices]

    async def until(self, wanted: list[str]) -> None:
        while await self.next() != wanted:
            pass


@asynccontextmanager
async def running(scanner: Scanner) -> AsyncIterator[Watched]:
    changes = scanner.changes()
    try:
        yield Watched(changes)
    finally:
        await changes.aclose()


class Injected:
    """Events that a test makes."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.sysfs_changed: Callable[[], None] = lambda: None
        self.stopped = False
        self.wanted: Watches | None = None
        self.on_watch: Callable[[], bool] = lambda: False

    def start(self, changed: Callable[[], None], sysfs_changed: Callable[[], None]) -> None:
        self.changed, self.sysfs_changed = changed, sysfs_changed

    def watch(self, wanted: Watches, roots: Roots) -> bool:
        self.wanted = wanted
        return self.on_watch()

    def stop(self) -> None:
        self.stopped = True


# The merge


def test_groups_are_found_in_their_order(tree: Tree) -> None:
    tree.file("/dev/a0")
    tree.file("/dev/b0")
    inventory = scan([group("b", include=["/dev/b*"]), group("a", include=["/dev/a*"])], tree.roots)
    assert [(device.group, device.name) for device in inventory.devices] == [("b", "b0"), ("a", "a0")]
    assert [device.name for device in inventory.group("a")] == ["a0"]


def test_h29_the_same_silicon_in_two_groups_is_one_part(tree: Tree) -> None:
    tree.file("/dev/acc0")
    tree.link("/dev/by-id/acc", "../acc0")
    inventory = scan([group("a", include=["/dev/acc*"]), group("b", include=["/dev/by-id/*"])], tree.roots)
    assert [dict(device.parts) for device in inventory.devices] == [{"/dev/acc0": 1}] * 2
    assert inventory.parts == {"/dev/acc0": 1}


def test_an_exclusive_device_uses_all_of_what_another_group_shares(tree: Tree) -> None:
    tree.file("/dev/acc0")
    exclusive, shared = scan(
        [group("a", include=["/dev/acc*"]), group("b", include=["/dev/acc*"], replicas=4)], tree.roots
    ).devices
    assert (exclusive.shares, exclusive.parts) == (1, {"/dev/acc0": 4})
    assert (shared.shares, shared.parts) == (4, {"/dev/acc0": 1})


def test_groups_that_disagree_on_shares_are_told_and_the_smaller_number_counts(tree: Tree) -> None:
    tree.file("/dev/acc0")
    inventory = scan(
        [group(name, include=["/dev/acc*"], replicas=n) for name, n in (("a", 4), ("b", 8), ("c", 1))],
        tree.roots,
    )
    assert inventory.parts == {"/dev/acc0": 4}
    assert [(d.shares, d.parts["/dev/acc0"]) for d in inventory.devices] == [(4, 1), (4, 1), (1, 4)]
    assert {problem.group for problem in inventory.problems} == {"a", "b"}
    assert "a says 4, b says 8; 4 may" in inventory.problems[0].message


def test_an_accelerator_in_two_kinds_is_one_part(tree: Tree) -> None:
    tree.file(NODE)
    tree.file(f"{CREDITS}/nr_total_credits", "40")
    tree.at(CAPABILITIES).mkdir(parents=True)
    nx, whole = scan([group("nx", "nx-gzip"), group("raw", include=[NODE])], tree.roots).devices
    assert (nx.parts, nx.shares) == ({NODE: 1}, 40)
    assert (whole.parts, whole.shares) == ({NODE: 40}, 1)


def test_two_nodes_with_the_same_numbers_use_up_each_other_and_are_told(tree: Tree) -> None:
    tree.node("/dev/a", 20)
    tree.node("/dev/b", 20)
    inventory = scan([group("g", include=["/dev/?"]), group("h", include=["/dev/b"], replicas=3)], tree.roots)
    assert [dict(device.parts) for device in inventory.devices] == [
        {"/dev/a": 3, "/dev/b": 3},
        {"/dev/a": 3, "/dev/b": 3},
        {"/dev/a": 1, "/dev/b": 1},
    ]
    assert [problem.group for problem in inventory.problems] == ["g", "h"]
    assert "/dev/a and /dev/b have the same device numbers" in inventory.problems[0].message


def test_of_two_devices_with_one_name_the_second_is_left_out_and_told(tree: Tree) -> None:
    tree.file("/dev/a")
    tree.file("/dev/b")
    inventory = scan(
        [group("g", include=["/dev/b"], devices=[{"name": "b", "nodes": [{"path": "/dev/a"}]}])], tree.roots
    )
    assert len(inventory.devices) == 1
    assert "two devices of the group would be called b" in inventory.problems[0].message


def test_h23_health_is_physical_and_a_shared_part_is_no_illness(tree: Tree) -> None:
    tree.file("/dev/acc0")
    inventory = scan([group(name, include=["/dev/acc*"]) for name in "ab"], tree.roots)
    assert all(device.health.ok for device in inventory.devices)


def test_ten_thousand_devices_are_scanned_well_within_two_seconds(tree: Tree) -> None:
    for i in range(10_000):
        tree.at(f"/dev/acc{i}").touch()
    started = time.perf_counter()
    inventory = scan([group("acc", include=["/dev/acc*"], exclude=["/dev/acc1"])], tree.roots)
    assert time.perf_counter() - started < 2
    assert len(inventory.devices) == 9_999


# Watching, with the test's own events


async def test_only_inventories_that_differ_are_yielded(tree: Tree) -> None:
    tree.file("/dev/acc0")
    events = Injected()
    scanner = Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=NEVER, sources=events)
    async with running(scanner) as watched:
        assert await watched.next() == ["acc0"]
        waiting = asyncio.ensure_future(watched.next())
        for _ in range(3):
            tree.file("/dev/other")
            events.changed()
            await asyncio.sleep(0)
        tree.file("/dev/acc1")
        events.changed()
        assert await waiting == ["acc0", "acc1"]
    assert events.stopped


async def test_a_storm_of_events_is_one_scan_and_none_is_lost(tree: Tree) -> None:
    events = Injected()
    scans: list[int] = []

    def count() -> bool:
        scans.append(1)
        return False

    events.on_watch = count
    scanner = Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=NEVER, sources=events)
    async with running(scanner) as watched:
        assert await watched.next() == []
        waiting = asyncio.ensure_future(watched.until([f"acc{i}" for i in range(200)]))

        def storm() -> None:
            for i in range(200):
                tree.file(f"/dev/acc{i}")
                events.changed()

        await asyncio.to_thread(storm)
        await waiting
    assert len(scans) < 50


async def test_a_directory_that_appears_while_it_is_looked_for_is_watched_too(tree: Tree) -> None:
    events = Injected()

    def appears() -> bool:
        if not tree.at("/dev/card0").exists():
            tree.file("/dev/card0/acc")
            return True
        return False

    events.on_watch = appears
    scanner = Scanner([group("a", include=["/dev/card*/acc"])], tree.roots, rescan=NEVER, sources=events)
    async with running(scanner) as watched:
        assert await watched.next() == ["card0-acc"]
        assert events.wanted is not None
        assert "/dev/card0" in events.wanted.directories


async def test_the_end_waits_for_the_thread_that_scans(tree: Tree) -> None:
    events = Injected()
    entered, release, order = threading.Event(), threading.Event(), list[str]()

    def slow() -> bool:
        entered.set()
        release.wait(LIMIT)
        order.append(f"watched, stopped: {events.stopped}")
        return False

    events.on_watch = slow
    scanner = Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=NEVER, sources=events)
    async with running(scanner) as watched:
        pending = asyncio.ensure_future(watched.next())
        assert await asyncio.to_thread(entered.wait, LIMIT)
        pending.cancel()
        asyncio.get_running_loop().call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError):
            await pending
    assert order == ["watched, stopped: False"]
    assert events.stopped


async def test_the_slow_rescan_finds_what_no_event_told(tree: Tree) -> None:
    scanner = Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=0.05, sources=Injected())
    async with running(scanner) as watched:
        assert await watched.next() == []
        tree.file("/dev/acc0")
        assert await watched.next() == ["acc0"]


async def test_after_a_uevent_sysfs_is_read_once_more_since_it_may_lag(tree: Tree) -> None:
    tree.file(NODE)
    tree.at(CAPABILITIES).mkdir(parents=True)
    credit = tree.file(f"{CREDITS}/nr_total_credits", "20")
    events = Injected()
    scanner = Scanner([group("nx", "nx-gzip")], tree.roots, rescan=NEVER, sources=events)
    async with running(scanner) as watched:
        await watched.next()
        waiting = asyncio.ensure_future(watched.next())
        first = asyncio.Event()
        loop = asyncio.get_running_loop()

        def scanned() -> bool:
            loop.call_soon_threadsafe(first.set)
            return False

        events.on_watch = scanned
        events.sysfs_changed()
        async with asyncio.timeout(LIMIT):
            await first.wait()
        first.clear()
        async with asyncio.timeout(LIMIT):
            await first.wait()
            events.on_watch = lambda: False
            credit.write_text("40")
            events.sysfs_changed()
            await waiting
        assert scanner.inventory is not None
        assert scanner.inventory.devices[0].shares == 40


async def test_a_scan_that_fails_leaves_the_last_inventory_and_is_repeated(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.file("/dev/acc0")
    events = Injected()
    scanner = Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=0.05, sources=events)
    failed: list[int] = []

    def fail_once() -> bool:
        if not failed:
            failed.append(1)
            tree.file("/dev/acc1")
            raise OSError(errno.EMFILE, "Too many open files")
        return False

    async with running(scanner) as watched:
        assert await watched.next() == ["acc0"]
        events.on_watch = fail_once
        assert await watched.next() == ["acc0", "acc1"]
    assert [r.levelname for r in caplog.records if "could not be scanned" in r.getMessage()] == ["ERROR"]


async def test_problems_are_logged_once(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    tree.at("/dev/accdir").mkdir()
    scanner = Scanner(
        [group("a", include=["/dev/accdir", "/dev/acc*"])], tree.roots, rescan=0.01, sources=Injected()
    )
    async with running(scanner) as watched:
        await watched.next()
        tree.file("/dev/acc0")
        await watched.next()
    assert len([r for r in caplog.records if "could not be used" in r.getMessage()]) == 1


# Watching the machine


def live(tree: Tree, *groups: Group, events: MachineEvents | None = None) -> Scanner:
    return Scanner(groups, tree.roots, rescan=NEVER, sources=events)


async def test_hot_plug_and_unplug_are_seen(tree: Tree) -> None:
    tree.at("/dev/crypto").mkdir()
    async with running(live(tree, group("a", include=["/dev/crypto/acc*"]))) as watched:
        assert await watched.next() == []
        place = tree.file("/dev/crypto/acc0")
        assert await watched.next() == ["crypto-acc0"]
        place.rename(tree.at("/dev/crypto/acc1"))
        await watched.until(["crypto-acc1"])
        tree.at("/dev/crypto/acc1").unlink()
        await watched.until([])


async def test_directories_that_come_later_are_watched_from_their_parents(tree: Tree) -> None:
    async with running(live(tree, group("a", include=["/dev/x/y/acc*"]))) as watched:
        assert await watched.next() == []
        tree.at("/dev/x").mkdir()
        tree.at("/dev/x/y").mkdir()
        tree.file("/dev/x/y/acc0")
        await watched.until(["x-y-acc0"])


async def test_a_watched_directory_may_go_and_come_back(tree: Tree) -> None:
    tree.file("/dev/crypto/acc0")
    async with running(live(tree, group("a", include=["/dev/crypto/acc*"]))) as watched:
        assert await watched.next() == ["crypto-acc0"]
        for i in range(1, 4):
            shutil.rmtree(tree.at("/dev/crypto"))
            tree.at("/dev/crypto").mkdir()
            tree.file(f"/dev/crypto/acc{i}")
            await watched.until([f"crypto-acc{i}"])
        tree.file("/dev/crypto/acc9")
        await watched.until(["crypto-acc3", "crypto-acc9"])


async def test_every_directory_of_a_pattern_is_watched(tree: Tree) -> None:
    async with running(live(tree, group("a", include=["/dev/card*/acc"]))) as watched:
        assert await watched.next() == []
        tree.file("/dev/card0/acc")
        await watched.until(["card0-acc"])
        tree.at("/dev/card1").mkdir()
        tree.file("/dev/card1/acc")
        await watched.until(["card0-acc", "card1-acc"])


async def test_from_mknod_to_inventory_it_takes_milliseconds(tree: Tree) -> None:
    tree.at("/dev/crypto").mkdir()
    took: list[float] = []
    async with running(live(tree, group("a", include=["/dev/crypto/acc*"]))) as watched:
        await watched.next()
        for i in range(20):
            started = time.perf_counter()
            tree.file(f"/dev/crypto/acc{i}")
            await watched.next()
            took.append(time.perf_counter() - started)
    assert sorted(took)[10] < 0.1, took


async def test_opening_and_writing_nodes_wakes_nobody(tree: Tree) -> None:
    node = tree.file("/dev/acc0")
    events = MachineEvents()
    woken: list[int] = []
    first = threading.Event()

    def wake() -> None:
        woken.append(1)
        first.set()

    events.start(wake, lambda: None)
    try:
        assert await asyncio.to_thread(events.watch, Watches(frozenset({"/dev"})), tree.roots)
        for _ in range(100):
            node.write_text("x")
            node.chmod(0o600)
        tree.file("/dev/acc1")
        assert await asyncio.to_thread(first.wait, LIMIT)
        assert len(woken) == 1
    finally:
        events.stop()


async def test_a_uevent_of_a_subsystem_of_interest_makes_a_scan(tree: Tree) -> None:
    tree.file(NODE)
    tree.at(CAPABILITIES).mkdir(parents=True)
    credit = tree.file(f"{CREDITS}/nr_total_credits", "20")
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    events = MachineEvents(lambda: UeventSocket(ours))
    with kernel:
        async with running(live(tree, group("nx", "nx-gzip"), events=events)) as watched:
            await watched.next()
            credit.write_text("40")
            kernel.send(b"add@/x\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=net\0SEQNUM=1\0")
            kernel.send(b"online@/c\0ACTION=online\0DEVPATH=/c\0SUBSYSTEM=cpu\0SEQNUM=2\0")
            await watched.next()


async def test_without_uevents_the_bridge_says_so_and_goes_on(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> UeventSocket:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    tree.file(NODE)
    tree.at(CAPABILITIES).mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        async with running(live(tree, group("nx", "nx-gzip"), events=MachineEvents(refused))) as watched:
            assert await watched.next() == ["nx-gzip"]
            tree.at(NODE).unlink()
            assert await watched.next() == ["nx-gzip"]
    assert len([r for r in caplog.records if "uevents are not available" in r.getMessage()]) == 1


async def test_without_inotify_the_bridge_says_so_and_rescans(
    tree: Tree, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(changed: Callable[[], None]) -> None:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr("bridge.devices.scanner.DirectoryWatch", refused)
    async with running(Scanner([group("a", include=["/dev/acc*"])], tree.roots, rescan=0.05)) as watched:
        assert await watched.next() == []
        tree.file("/dev/acc0")
        assert await watched.next() == ["acc0"]
    assert "inotify is not available" in caplog.text


async def test_the_end_leaves_no_thread_behind(tree: Tree) -> None:
    before = {thread for thread in threading.enumerate() if "asyncio" not in thread.name}
    async with running(live(tree, group("a", include=["/dev/acc*"]))) as watched:
        await watched.next()
        pending = asyncio.ensure_future(watched.next())
        await asyncio.sleep(0)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
    assert {thread for thread in threading.enumerate() if "asyncio" not in thread.name} == before
