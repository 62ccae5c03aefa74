"""The daemon dies at every point where it writes state or answers, and is started again: nothing is lost or doubled.

One test for each visit of `tests.crash.visits`: the real daemon in a process of its own, on the simulated node, killed
with SIGKILL at the point; then started again, the kubelet left to its retries, and `Scene.check` and the picture of a
node that never saw a crash are what must come out.
"""

from __future__ import annotations

import functools
import operator
import signal
from collections.abc import Iterator

import pytest

from bridge.ledger.holds import Plane
from dra_v1.points import Point
from tests.crash.mortal import Zygote
from tests.crash.scene import Groups, Scene, scene
from tests.crash.visits import BOTH, ON_ONE_PLANE, PLANES, VISITS, Visit

ASIDE = "k/plugins/device-bridge/ledger.db.damaged-"
"""A damaged ledger is evidence, and stays."""

_pictures: dict[tuple[str, str], dict[str, object]] = {}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


async def undisturbed(zygote: Zygote, groups: Groups, profile: str) -> dict[str, object]:
    """The picture of a node with this configuration on which nothing ever happened."""
    key = (repr(groups), profile)
    if key not in _pictures:
        async with scene(zygote, groups, profile) as quiet:
            await quiet.serve()
            await quiet.until(lambda: quiet.offers_all() and quiet.told(), "everything is offered, and told")
            _pictures[key] = quiet.picture()
    return _pictures[key]


async def becomes(scene: Scene, wanted: dict[str, object]) -> None:
    """Wait until the node looks so."""

    def differences() -> dict[str, tuple[object, object]]:
        seen = {name: what for name, what in scene.picture().items() if not name.startswith(ASIDE)}
        return {
            k: (seen.get(k), wanted.get(k))
            for k in seen.keys() | wanted.keys()
            if seen.get(k) != wanted.get(k)
        }

    try:
        await scene.until(lambda: not differences(), "the picture of an undisturbed node")
    except TimeoutError as error:
        raise AssertionError(f"(is, should be): {differences()}\n{error}") from error


@pytest.mark.parametrize("visit", VISITS, ids=str)
async def test_h15_a_death_there_loses_nothing_and_doubles_nothing(zygote: Zygote, visit: Visit) -> None:
    story = visit.story
    wanted = await undisturbed(zygote, story.groups, story.profile)
    async with scene(zygote, story.groups, story.profile) as stage:
        telling = story.tell(stage)
        await anext(telling)
        stage.daemon.dies_at(visit.point, visit.times)
        await anext(telling)
        try:
            code = await stage.daemon.ended()
        except TimeoutError:
            pytest.fail(f"{visit.point.name} was not reached; last: {stage.daemon.reached[-20:]}")
        assert code == -signal.SIGKILL, (
            f"{visit.point.name} was not reached before the daemon ended by itself: {code}"
        )
        assert stage.daemon.reached[-1] is visit.point
        await stage.hush()
        await stage.mourned()
        stage.check_dead()
        await stage.serve()
        await stage.check()
        async for _ in telling:
            raise AssertionError("a story has three parts")
        await stage.check()
        await stage.all_end()
        await becomes(stage, wanted)


@pytest.mark.parametrize("point", Point)
def test_every_point_is_visited_on_each_plane_where_it_lies(point: Point) -> None:
    planes: frozenset[Plane] = functools.reduce(
        operator.or_, (PLANES[visit.story] for visit in VISITS if visit.point is point), frozenset()
    )
    missing = ON_ONE_PLANE.get(point, BOTH) - planes
    assert not missing, f"no visit of {point.name} on {sorted(missing)}: add one to tests/crash/visits.py"
