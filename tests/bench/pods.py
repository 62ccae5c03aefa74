"""Whole pods, scheduler and controllers running: from made to running on each plane, from their end to the device on
offer again on both planes, and requests for each hand-out."""

from __future__ import annotations

import asyncio
import statistics
import time

from dra_v1.kube import Json, KubeApi, NotFound
from tests.bench.claims import COLLECTION, NAMESPACE
from tests.bench.figures import Figure
from tests.bench.scale import Scale
from tests.bench.stage import LIMIT_S, Stage
from tests.bench.views import Views, views
from tests.cluster import PROBE

GROUP = "pods"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"
COMPONENTS = ("kube-scheduler", "kube-controller-manager")

DEVICES = 8

RELEASED_S = 2.0
"""The longest from the end of a pod to its device on offer on both planes."""

_WATCHES = ("watch ", "list ")
"""Begun anew every few minutes, whatever is handed out."""

_ARMS = {
    "device plugin": ("off", 30.0, 4.0),
    "DRA, bound at once": ("off", 30.0, 8.0),
    "DRA, bound in two phases": ("auto", 30.0, 10.0),
}
"""By name: binding, the longest that a pod may take, the most requests that it may cost."""


async def measure(stage: Stage, scale: Scale) -> list[Figure]:
    """A few pods after each other in each arm, each in a fresh daemon."""
    for i in range(DEVICES):
        stage.plug(f"{GROUP}-{i}")
    for name in COMPONENTS:
        stage.cluster.start_component(name)
    try:
        async with stage.admin() as api:
            selector = f"device.driver == '{GROUP}.device-bridge.io'"
            body = {"metadata": {"name": GROUP}, "spec": {"selectors": [{"cel": {"expression": selector}}]}}
            await api.create(CLASSES, body)
            return [figure for name in _ARMS for figure in await _arm(stage, api, scale, name)]
    finally:
        for name in COMPONENTS:
            stage.cluster.stop_component(name)


async def _arm(stage: Stage, api: KubeApi, scale: Scale, name: str) -> list[Figure]:
    binding, longest, most = _ARMS[name]
    dra = name.startswith("DRA")
    await stage.delete_slices()
    config = stage.configure(GROUP, binding=binding)
    async with stage.running(config, DEVICES) as daemon, views(stage, daemon) as seen:
        # Until its lists are whole nothing ends that the kubelet has out: the first release shows that they are.
        await _run(api, seen, "warm-up", dra)
        before = daemon.requests()
        took = [await _run(api, seen, f"pod-{i}", dra) for i in range(scale.pods)]
        after = daemon.requests()
    asked = {what: count - before.get(what, 0.0) for what, count in after.items()}
    cost = sum(count for what, count in asked.items() if not what.startswith(_WATCHES)) / scale.pods
    return [
        Figure(
            f"pod made to running, {name}, median", statistics.median(ran for ran, _ in took), "s", longest
        ),
        Figure(
            f"pod gone to offered on both planes, {name}, worst",
            max(free for _, free in took),
            "s",
            RELEASED_S,
        ),
        Figure(f"requests per hand-out, {name}", cost, "", most),
    ]


async def _run(api: KubeApi, seen: Views, name: str, dra: bool) -> tuple[float, float]:
    """Seconds until a pod runs, and from its end until both planes offer everything again."""
    if dra:
        request = {"name": "d", "exactly": {"deviceClassName": GROUP}}
        claim = {"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}
        await api.create(COLLECTION, claim)
    started = time.perf_counter()
    await api.create(PODS, _pod(name, dra))
    while (status := (await api.get(f"{PODS}/{name}"))["status"]).get("phase") != "Running":
        if time.perf_counter() - started > LIMIT_S:
            raise TimeoutError(f"pod {name} does not run: {status}")
        await asyncio.sleep(0.02)
    took = time.perf_counter() - started
    for path in (f"{PODS}/{name}", *([f"{COLLECTION}/{name}"] if dra else [])):
        await api.delete(path)
        await _gone(api, path)
    gone = time.perf_counter()
    return took, max(0.0, await seen.both(lambda names: len(names) >= DEVICES) - gone)


async def _gone(api: KubeApi, path: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        try:
            while await api.get(path):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        except NotFound:
            return


def _pod(name: str, dra: bool) -> Json:
    container: Json = {"name": "main", "image": PROBE, "command": ["sleep", "1000"]}
    # Without any grace its object would go before its container does, and its device would rightly be refused (H9).
    spec: Json = {"containers": [container], "terminationGracePeriodSeconds": 1, "restartPolicy": "Never"}
    if dra:
        container["resources"] = {"claims": [{"name": "d"}]}
        spec["resourceClaims"] = [{"name": "d", "resourceClaimName": name}]
    else:
        amount = {f"device-bridge.io/{GROUP}": "1"}
        container["resources"] = {"limits": amount, "requests": amount}
    return {"metadata": {"name": name}, "spec": spec}
