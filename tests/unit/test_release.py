"""Break-glass: what is looked at before a hold is ended or a quarantine lifted, and that nothing else is ended."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge.ledger.doubts import FENCE
from bridge.ledger.holds import ClaimHolder, Hold, Phase, Pick, Plane, PodHolder, Quarantine, Use
from bridge.ledger.ledger import Ledger
from bridge.planes import release
from bridge.planes.explain import Target
from bridge.planes.release import StillUsed, Witnesses
from bridge.planes.report import News, Report
from bridge.platform.cri import CriClient, RuntimeView, Sandbox
from bridge.platform.endpoint import Unavailable
from bridge.platform.podresources import (
    ClaimDevice,
    ClaimUse,
    DeviceUse,
    PodRef,
    PodResources,
    PodResourcesClient,
)
from tests.unit.rosters import account, device, group, hold, inventory, roster

ACC0, ACC1 = device("acc0"), device("acc1")
RESOURCE, DRIVER = "device-bridge.io/acc", "acc.device-bridge.io"
TARGET, ALL = Target("acc", "acc0"), Target("acc", "*")
FENCED = Quarantine("acc", "acc0", f"{FENCE}both planes seem to have it", 0.0)
CLOSED = Quarantine("acc", "*", f"{FENCE}a foreign ID", 0.0)
HELD = hold(1, Plane.DEVICE_PLUGIN, ACC0)
OTHER = PodRef("default", "other")
QUIET, IDLE = PodResources(frozenset(), (), ()), RuntimeView((), ())


class Kubelet(PodResourcesClient):
    def __init__(self, answer: PodResources | Unavailable) -> None:
        self.answer = answer

    async def list(self) -> PodResources | Unavailable:
        return self.answer


class Runtime(CriClient):
    def __init__(self, answer: RuntimeView | Unavailable) -> None:
        self.answer = answer

    async def view(self) -> RuntimeView | Unavailable:
        return self.answer


def shows(*ids: str, resource: str = RESOURCE) -> PodResources:
    return PodResources(frozenset({OTHER}), (DeviceUse(OTHER, "main", resource, frozenset(ids)),), ())


def claims(name: str, driver: str = DRIVER) -> PodResources:
    one = ClaimDevice(driver, "node", name, None, ())
    return PodResources(frozenset({OTHER}), (), (ClaimUse(OTHER, "main", "default", "c", (one,)),))


def runs(uid: str) -> RuntimeView:
    return RuntimeView((Sandbox("s", uid, "default", "other", True),), ())


def notes(*ids: str, uid: str = "uid-other") -> str:
    entry = {"PodUID": uid, "ContainerName": "main", "ResourceName": RESOURCE, "DeviceIDs": {"-1": list(ids)}}
    return json.dumps({"Data": {"PodDeviceEntries": [entry], "RegisteredDevices": {}}, "Checksum": 1})


async def look(
    folder: Path,
    target: Target = TARGET,
    holds: Collection[Hold] = (HELD,),
    quarantine: Quarantine | None = None,
    *,
    listed: PodResources | Unavailable = QUIET,
    noted: str = "",
    runtime: RuntimeView | Unavailable = IDLE,
    rivals: Mapping[str, str] | None = None,
) -> release.Use:
    (folder / "proc").mkdir()
    if noted:
        (folder / "checkpoint").write_text(noted)
    groups = {"acc": roster(group(), inventory(ACC0, ACC1), account([]))}
    return await Witnesses(
        Kubelet(listed),
        Runtime(runtime),
        folder / "checkpoint",
        groups,
        Path,
        lambda uid: [],
        lambda: rivals or {},
        folder / "proc",
    ).look(target, holds, quarantine)


async def test_a_device_that_nobody_names_is_not_in_use(tmp_path: Path) -> None:
    use = await look(tmp_path, listed=shows("acc1"), noted=notes("acc1"), runtime=runs("uid-other"))
    assert (use.found, use.unknown) == ((), ())


SHOWN: list[tuple[str, dict[str, Any], str]] = [
    ("podresources has its ID with another pod", {"listed": shows("acc0")}, "with pod default/other"),
    (
        "podresources has it in a claim",
        {"listed": claims("acc0")},
        "shows acc0 with pod default/other, through claim default/c",
    ),
    (
        "the checkpoint has it with a pod that runs",
        {"noted": notes("acc0"), "runtime": runs("uid-other")},
        "checkpoint has acc0 with pod default/other, which runs",
    ),
]


@pytest.mark.parametrize(("what", "world", "said"), SHOWN, ids=[row[0] for row in SHOWN])
@pytest.mark.parametrize("fenced", [False, True], ids=["held", "in quarantine"])
async def test_what_the_kubelet_still_shows_is_in_use(
    tmp_path: Path, what: str, world: dict[str, Any], said: str, fenced: bool
) -> None:
    """A quarantine that the evidence made is examined like a hold."""
    use = await look(
        tmp_path, holds=() if fenced else (HELD,), quarantine=FENCED if fenced else None, **world
    )
    assert len(use.found) == 1 and said in use.found[0], what


UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    ("podresources does not answer", {"listed": Unavailable("no socket")}, "the kubelet: no socket"),
    ("the checkpoint cannot be read", {"noted": "junk"}, "checkpoint"),
    (
        "the checkpoint has it with a pod that does not run",
        {"noted": notes("acc0")},
        "of UID uid-other, which may be about to start",
    ),
    (
        "the checkpoint has it and the runtime does not answer",
        {"noted": notes("acc0"), "runtime": Unavailable("gone")},
        "of UID uid-other",
    ),
    (
        "its pod is not known",
        {"holds": [Hold(1, Plane.DEVICE_PLUGIN, Phase.GRANTED, "acc", "acc0", "acc0", PodHolder(), (), 0.0)]},
        "nobody knows yet which pod acc0 was given to",
    ),
    (
        "its group is not configured",
        {
            "target": Target("old", "acc0"),
            "holds": [
                Hold(1, Plane.DRA, Phase.PREPARED, "old", "acc0", "acc0", ClaimHolder("d", "c", "u"), (), 0.0)
            ],
        },
        "group old is not configured",
    ),
]


@pytest.mark.parametrize(("what", "world", "said"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
async def test_where_nobody_can_tell_that_is_said(
    tmp_path: Path, what: str, world: dict[str, Any], said: str
) -> None:
    use = await look(tmp_path, **world)
    assert not use.found and any(said in text for text in use.unknown), what


async def test_the_quarantine_of_a_group_stands_while_an_id_that_nobody_knows_is_shown(
    tmp_path: Path,
) -> None:
    use = await look(tmp_path, ALL, (), CLOSED, listed=shows("of-old-7"))
    assert use.found == ("the kubelet shows of-old-7 with pod default/other",)


async def test_the_quarantine_of_a_group_stands_while_its_rival_does(tmp_path: Path) -> None:
    use = await look(tmp_path, ALL, (), CLOSED, rivals={"acc": "another serves", "nx": "not ours"})
    assert use.found == ("another serves",)


def pick(name: str) -> Pick:
    return Pick("acc", name, name, (Use(f"/dev/{name}", 1, 1),))


CLAIM = ClaimHolder("default", "c", "uid-c")
Change = Callable[[Ledger], Awaitable[object]]


async def _granted_anew(ledger: Ledger) -> None:
    await ledger.grant([pick("acc0")])


async def _matched(ledger: Ledger) -> None:
    (one,) = ledger.account
    await ledger.attribute(one.id, PodHolder("default", "p", "main", "uid-p"))


async def _fenced(ledger: Ledger) -> None:
    await ledger.quarantine("acc", "acc0", f"{FENCE}it is somebody else's")


@pytest.mark.parametrize("change", [_granted_anew, _matched, _fenced])
@pytest.mark.parametrize("force", [False, True])
async def test_what_changed_while_it_was_looked_at_is_not_ended(
    tmp_path: Path, change: Change, force: bool
) -> None:
    told: list[News] = []
    ledger = await Ledger.open(tmp_path)
    try:
        await ledger.grant([pick("acc0")])

        async def looked(*_: object) -> release.Use:
            await change(ledger)
            return release.Use()

        with pytest.raises(StillUsed, match="changed hands while it was looked at"):
            await release.release(
                TARGET, ledger, looked, Report(told.append), who="me", why="test", force=force
            )
        assert len(ledger.account) == 1 and told == []
        assert len(ledger.account.quarantines()) == (change is _fenced)
    finally:
        await ledger.close()


async def test_a_claim_that_was_prepared_again_while_it_was_looked_at_keeps_its_device(
    tmp_path: Path,
) -> None:
    ledger = await Ledger.open(tmp_path)
    try:
        await ledger.prepare("acc", CLAIM, [pick("acc0")], "{}")

        async def looked(*_: object) -> release.Use:
            await ledger.unprepare("acc", CLAIM.uid)
            await ledger.prepare("acc", CLAIM, [pick("acc0")], "{}")
            return release.Use()

        with pytest.raises(StillUsed, match="changed hands"):
            await release.release(TARGET, ledger, looked, Report(), who="me", why="test", force=False)
        assert len(ledger.account) == 1
    finally:
        await ledger.close()


async def test_a_quarantine_that_was_made_during_the_release_stays(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    try:
        await ledger.grant([pick("acc0")])

        async def looked(*_: object) -> release.Use:
            return release.Use()

        ends = ledger.force_release

        async def ended(*args: Any) -> tuple[Hold, ...]:
            done = await ends(*args)
            await _fenced(ledger)
            return done

        ledger.force_release = ended  # type: ignore[method-assign]
        done = await release.release(TARGET, ledger, looked, Report(), who="me", why="test", force=False)
        assert len(done.holds) == 1 and done.quarantine is None
        assert "was put into quarantine meanwhile" in done.notes[-1]
        assert len(ledger.account.quarantines()) == 1
    finally:
        await ledger.close()
