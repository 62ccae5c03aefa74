"""Background tasks whose death is seen: a crash is an observation, and the sandbox's end raises it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from bridge.sandbox.observe import Observations

log = logging.getLogger(__name__)

CRASHED = "Crashed"


def spawn(observe: Observations, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` in the background; if it raises, tell `Crashed`, which no part of the sandbox may do."""
    task = asyncio.create_task(work, name=what)

    def ended(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("a part of the sandbox crashed", exc_info=error, extra={"part": what})
            observe.tell("sandbox", CRASHED, what, error=repr(error))

    task.add_done_callback(ended)
    return task
