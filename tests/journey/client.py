"""A client that asks a Service twenty times a second, each question once, and keeps account of the answers.

There is no kube-proxy on the test bed: the client does what one does. It follows the Service's EndpointSlices and goes
round over the endpoints that are ready; each request is a connection of its own, made in the network of a node.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.cluster import ApiError, Cluster, Member

PER_SECOND = 20
WORKERS = 4
ANSWER_S = 5.0
"""For one answer. A machine that does many things at once is slow; who has gone answers never."""

_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
_OF = "kubernetes.io/service-name={}"
_WATCH_S = 30.0


class Endpoints:
    """The addresses of a Service that are ready, as a proxy of the cluster has them."""

    def __init__(self, cluster: Cluster, namespace: str, service: str) -> None:
        self._cluster = cluster
        self._path = _SLICES.format(namespace)
        self._selector = _OF.format(service)
        self._slices: dict[str, tuple[str, ...]] = {}
        self.ready: tuple[str, ...] = ()

    def follow(self, ended: threading.Event) -> None:
        """Keep them true until the end; what a watch loses the next list brings."""
        while not ended.is_set():
            listed = self._cluster.api.get(self._path, labelSelector=self._selector)
            self._slices.clear()
            for one in listed["items"]:
                self._take("ADDED", one)
            since = listed["metadata"]["resourceVersion"]
            changes = self._cluster.api.watch(
                self._path, timeout=_WATCH_S, labelSelector=self._selector, resourceVersion=since
            )
            for change in changes:
                if change["type"] == "ERROR":
                    break
                self._take(change["type"], change["object"])
                if ended.is_set():
                    break

    def _take(self, kind: str, one: dict[str, Any]) -> None:
        name = one["metadata"]["name"]
        if kind == "DELETED":
            self._slices.pop(name, None)
        else:
            found = (e for e in one.get("endpoints") or () if e["conditions"].get("ready"))
            self._slices[name] = tuple(address for endpoint in found for address in endpoint["addresses"])
        self.ready = tuple(sorted(itertools.chain.from_iterable(self._slices.values())))


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was not answered as it should be."""

    at: float
    address: str
    why: str


class Client:
    """Asks, and counts.

    Attributes:
        answers: how many came, by who gave them.
        failures: the requests that failed, with why.
        slowest: seconds that an answer took at most.
    """

    def __init__(self, node: Member, endpoints: Endpoints, port: int) -> None:
        self._node, self._endpoints, self._port = node, endpoints, port
        self._ended = threading.Event()
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._begun = 0.0
        self.answers: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self.slowest = 0.0
        self.problems: list[BaseException] = []

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for the length of a `with` block."""
        follower = threading.Thread(target=self._run, args=(self._follow,), daemon=True)
        follower.start()
        while not self._endpoints.ready and not self.problems:
            time.sleep(0.01)
        self._begun = time.monotonic()
        workers = [
            threading.Thread(target=self._run, args=(lambda first=n: self._work(first),))
            for n in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._ended.set()
            for worker in workers:
                worker.join()
            follower.join(1)  # its watch ends with the cluster at the latest

    @property
    def asked(self) -> int:
        """How many requests were made."""
        return self.answers.total() + len(self.failures)

    def due(self) -> int:
        """How many should have been made by now; a moment's worth may be under way."""
        return int((time.monotonic() - self._begun) * PER_SECOND)

    def _follow(self) -> None:
        try:
            self._endpoints.follow(self._ended)
        except (ApiError, OSError):
            if not self._ended.is_set():
                raise

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by who waits for the thread
            self.problems.append(error)

    def _work(self, first: int) -> None:
        """Each so-manieth request at its time; one that was late is made up for, not left out."""
        for number in itertools.count(first, WORKERS):
            if self._ended.wait(max(0.0, self._begun + number / PER_SECOND - time.monotonic())):
                return
            self._ask()

    def _ask(self) -> None:
        ready = self._endpoints.ready
        address = ready[next(self._turn) % len(ready)] if ready else ""
        begun = time.monotonic()
        try:
            who, why = self._answer(address), ""
        except (OSError, http.client.HTTPException) as error:
            who, why = "", repr(error)
        took = time.monotonic() - begun
        with self._lock:
            self.slowest = max(self.slowest, took)
            if why:
                self.failures.append(Failure(begun, address, why))
            else:
                self.answers[who] += 1

    def _answer(self, address: str) -> str:
        if not address:
            raise ConnectionError("no endpoint is ready")
        connection = http.client.HTTPConnection(address, self._port, timeout=ANSWER_S)
        connection.sock = self._node.connect((address, self._port), ANSWER_S)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        if response.status != http.client.OK:
            raise ConnectionError(f"status {response.status}")
        return body.split()[0]
