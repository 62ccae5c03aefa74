"""Kubernetes events: what is posted, what is told once, and that nothing ever waits or fails for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest

from bridge.platform.events import (
    BURST,
    QUEUE,
    SAME_S,
    WITHOUT_RIGHT_S,
    Events,
    Reason,
    claim_ref,
    node_ref,
    pod_ref,
)
from dra_v1.kube import KubeApi, PatchKind
from dra_v1.kube_errors import ApiError, Forbidden, Json, NotFound, Unreachable

POD = pod_ref("default", "train-0", "uid-1")


class Server(KubeApi):
    """Takes events, or fails as told."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.created: list[tuple[str, Json]] = []
        self.patched: list[tuple[str, Json]] = []
        self.errors: list[ApiError] = []
        self.asked = 0
        self.news = asyncio.Event()

    def _answer(self) -> None:
        self.asked += 1
        self.news.set()
        if self.errors:
            raise self.errors.pop(0)

    async def create(self, path: str, body: Json, *, timeout_s: float | None = None) -> Json:
        self._answer()
        self.created.append((path, body))
        return body

    async def patch(
        self,
        path: str,
        body: Json | list[Json],
        *,
        kind: PatchKind = "merge",
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        self._answer()
        assert isinstance(body, dict)
        self.patched.append((path, body))
        return body


class Post:
    """Events, their server, a clock that is moved by hand, and what was counted."""

    def __init__(self) -> None:
        self.server, self.now, self.counts = Server(), 0.0, Counter[str]()
        self.events = Events(self.server, "node-a", self._count, clock=lambda: self.now)
        self._counted = asyncio.Event()

    def _count(self, result: str) -> None:
        self.counts[result] += 1
        self._counted.set()

    async def until(self, **counts: int) -> None:
        async with asyncio.timeout(20):
            while any(self.counts[name] < count for name, count in counts.items()):
                self._counted.clear()
                await self._counted.wait()


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    made = Post()
    task = asyncio.create_task(made.events.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_an_event_says_what_kubectl_describe_shows(post: Post) -> None:
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    await post.until(posted=1)
    ((path, body),) = post.server.created
    assert path == "/api/v1/namespaces/default/events"
    assert body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "train-0",
        "namespace": "default",
        "uid": "uid-1",
    }
    assert (body["reason"], body["message"], body["type"]) == ("DeviceRefused", "acc0 is held", "Warning")
    assert body["source"] == {"component": "device-bridge", "host": "node-a"} and body["count"] == 1
    assert body["metadata"]["name"].startswith("train-0.")


async def test_events_on_a_node_are_in_the_default_namespace_under_the_uid_of_the_kubelets_own(
    post: Post,
) -> None:
    post.events.tell(node_ref("node-a"), Reason.QUARANTINED, "acc0 is in doubt", warning=False)
    await post.until(posted=1)
    ((path, body),) = post.server.created
    assert path == "/api/v1/namespaces/default/events" and body["type"] == "Normal"
    assert body["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a"}


async def test_the_same_text_is_posted_once_and_counted_in_the_next(post: Post) -> None:
    for _ in range(5):
        post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc1 is held")
    await post.until(posted=2, same=4)
    post.now += SAME_S
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    await post.until(repeated=1)
    ((path, news),) = post.server.patched
    assert path.endswith(post.server.created[0][1]["metadata"]["name"]) and news["count"] == 6
    assert len(post.server.created) == 2


async def test_an_event_that_the_server_has_forgotten_is_made_anew(post: Post) -> None:
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    await post.until(posted=1)
    post.now += SAME_S
    post.server.errors = [NotFound(404, "NotFound", "gone", "patch", "/x")]
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    await post.until(posted=2)
    assert post.server.created[1][1]["count"] == 2


async def test_without_the_right_to_post_it_is_said_once_and_counted(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = Forbidden(403, "Forbidden", "no", "create", "/api/v1/namespaces/default/events")
    post.server.errors = [refusal, refusal]
    for number in range(5):
        post.events.tell(POD, Reason.DEVICE_REFUSED, f"acc{number} is held")
    await post.until(failed=5)
    assert post.server.asked == 1, "the others are not even tried"
    post.now += WITHOUT_RIGHT_S
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc9 is held")
    await post.until(failed=6)
    assert [r.getMessage() for r in caplog.records].count(
        "an event could not be posted; further ones are only counted"
    ) == 1
    post.now += WITHOUT_RIGHT_S
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc8 is held")
    await post.until(posted=1)


async def test_a_namespace_that_ends_is_no_missing_right(
    post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    ends = "unable to create new content in namespace a because it is being terminated"
    post.server.errors = [Forbidden(403, "Forbidden", ends, "create", "/x")]
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc1 is held")
    await post.until(failed=1, posted=1)
    assert not caplog.records


async def test_a_server_that_does_not_answer_is_asked_again(post: Post) -> None:
    post.server.errors = [Unreachable(0, "Timeout", "no answer", "create", "/x")] * 2
    post.events.tell(POD, Reason.DEVICE_REFUSED, "acc0 is held")
    await post.until(posted=1)
    assert post.server.asked == 3


async def test_telling_never_waits_and_never_grows() -> None:
    counts = Counter[str]()

    def count(result: str) -> None:
        counts[result] += 1

    events = Events(Server(), "node-a", count)
    for number in range(QUEUE + 50):
        events.tell(claim_ref("default", "c", "u"), Reason.DEVICE_REFUSED, f"text {number}")
    assert counts == {"dropped": 50}


async def test_a_burst_is_posted_and_the_rest_waits_for_its_budget(post: Post) -> None:
    for number in range(int(BURST) + 1):
        post.events.tell(POD, Reason.DEVICE_REFUSED, f"text {number}")
    await post.until(posted=BURST)
    assert post.counts["posted"] == BURST


async def test_a_long_text_is_cut_where_the_api_would_refuse_it(post: Post) -> None:
    post.events.tell(POD, Reason.DEVICE_REFUSED, "x" * 5000)
    await post.until(posted=1)
    assert len(post.server.created[0][1]["message"]) == 1024


async def test_without_an_api_server_nothing_is_told() -> None:
    events = Events(None, "node-a")
    for number in range(QUEUE + 1):
        events.tell(POD, Reason.DEVICE_REFUSED, f"text {number}")
