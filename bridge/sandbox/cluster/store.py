"""The API server's memory: objects by resource, one revision counter, and the history that watches replay.

Knows no schema. Each write is one step of the event loop, so that a reader never sees half of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bridge.sandbox.cluster.objects import ApiProblem, Object, clone, meta, name_of, namespace_of
from bridge.sandbox.cluster.resources import Resource

Key = tuple[str, str]
"""Namespace (empty for cluster-scoped) and name."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `before` is None for a creation, `after` for a removal (`before` then has its revision)."""

    revision: int
    resource: Resource
    before: Object | None
    after: Object | None

    @property
    def object(self) -> Object:
        """The object that an event of this change shows."""
        shown = self.after if self.after is not None else self.before
        assert shown is not None
        return shown


class Watcher:
    """One consumer of changes to one resource."""

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.queue: asyncio.Queue[Change | None] = asyncio.Queue()

    def close(self) -> None:
        """End the watch from the server's side."""
        self.queue.put_nowait(None)


class Store:
    """Objects and history.

    Attributes:
        revision: of the latest write; every object's resourceVersion is the revision that wrote it.
    """

    def __init__(self, history: int = 20000) -> None:
        self.revision = 1000
        self._objects: dict[tuple[str, str], dict[Key, Object]] = {}
        self._history: deque[Change] = deque(maxlen=history)
        self._forgotten = self.revision
        self._watchers: set[Watcher] = set()
        self._listeners: list[Callable[[Change], None]] = []

    def _of(self, resource: Resource) -> dict[Key, Object]:
        return self._objects.setdefault((resource.group, resource.plural), {})

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return a copy of one object, or None."""
        found = self._of(resource).get((namespace, name))
        return clone(found) if found is not None else None

    def all(self, resource: Resource, namespace: str | None = None) -> Iterator[Object]:
        """Yield all objects (of one namespace) as they are stored: to be read, or cloned and then changed.

        Ordered by namespace and name, as etcd does.
        """
        for (at, _), obj in sorted(self._of(resource).items(), key=lambda item: item[0]):
            if namespace in (None, at):
                yield obj

    def write(self, resource: Resource, obj: Object) -> Object:
        """Store an object under a new revision and tell the watchers; return a copy of what is stored."""
        self.revision += 1
        stored = clone(obj)
        meta(stored)["resourceVersion"] = str(self.revision)
        key = (namespace_of(stored), name_of(stored))
        before = self._of(resource).get(key)
        self._of(resource)[key] = stored
        self._tell(Change(self.revision, resource, before, stored))
        return clone(stored)

    def remove(self, resource: Resource, namespace: str, name: str) -> Object:
        """Remove an object that is there; return its last state with the revision of the removal."""
        self.revision += 1
        last = clone(self._of(resource).pop((namespace, name)))
        meta(last)["resourceVersion"] = str(self.revision)
        self._tell(Change(self.revision, resource, last, None))
        return last

    def _tell(self, change: Change) -> None:
        if len(self._history) == self._history.maxlen:
            self._forgotten = self._history[0].revision
        self._history.append(change)
        for watcher in self._watchers:
            if watcher.resource == change.resource:
                watcher.queue.put_nowait(change)
        for listener in self._listeners:
            listener(change)

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` in the same step as each write; return what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def watch(self, resource: Resource, since: int) -> Watcher:
        """Start a watch of all changes after revision `since`; `unwatch` ends it.

        Raises:
            ApiProblem: 410 if changes after `since` have been forgotten.
        """
        if since < self._forgotten:
            message = f"too old resource version: {since} ({self._forgotten})"
            raise ApiProblem(410, "Expired", message)
        watcher = Watcher(resource)
        for change in self._history:
            if change.revision > since and change.resource == resource:
                watcher.queue.put_nowait(change)
        self._watchers.add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """End a watch from the client's side."""
        self._watchers.discard(watcher)

    def drop_watches(self) -> int:
        """End every watch from the server's side; return how many there were."""
        dropped = list(self._watchers)
        for watcher in dropped:
            watcher.close()
        return len(dropped)

    def compact(self) -> None:
        """Forget the history: watches and lists from before now answer 410."""
        self._history.clear()
        self._forgotten = self.revision
