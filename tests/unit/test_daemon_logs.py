"""What the daemon's log leaves out: words of a library about nothing that is wrong."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify import logger as watchdog_log

from bridge.daemon.logs import set_up


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The log of a daemon; logging is as before in the end."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level, filters = root.handlers[:], root.level, watchdog_log.filters[:]
    set_up("json", "info", stream)
    yield stream
    root.handlers[:], watchdog_log.filters[:] = before, filters
    root.setLevel(level)


def test_a_change_while_a_watch_is_taken_back_is_no_trouble(stream: io.StringIO) -> None:
    emitter = InotifyEmitter.__new__(InotifyEmitter)
    vars(emitter)["_lock"], vars(emitter)["_inotify"] = threading.Lock(), None
    emitter.queue_events(1.0)
    watchdog_log.error("the queue is full")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["the queue is full"]
