"""Waiting for something to become true, with an error that says how far it came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from tests.cluster.api import ApiError
from tests.cluster.node import CommandError

T = TypeVar("T")

_NOT_YET = (ApiError, OSError, KeyError, IndexError, CommandError)


class NotInTime(AssertionError):
    """What a test waited for did not happen; the message shows the last state and recent events."""


def wait_for(
    predicate: Callable[[], T], timeout: float, what: str, interval: float, state: Callable[[], str]
) -> T:
    """Call `predicate` until it gives something true, and return that.

    Args:
        predicate: an error of the API, the system or a program in it, and a missing key, count as "not yet".
        timeout: seconds.
        what: completes the sentence "waited for".
        interval: seconds between two calls.
        state: describes the surroundings for the error's message.

    Raises:
        NotInTime: nothing true came in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            if last := predicate():
                return last
        except _NOT_YET as error:
            last = error
        if time.monotonic() > deadline:
            raise NotInTime(f"waited {timeout} s for {what}\nlast: {_shown(last)}\n{state()}")
        time.sleep(interval)


def retry(action: Callable[[], None], timeout: float = 10) -> None:
    """Repeat until it works: the kernel takes its time to let go of a dead tree's mounts and cgroups."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return action()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _shown(value: object) -> str:
    if isinstance(value, BaseException):
        return repr(value)[:4000]
    return json.dumps(value, default=str, indent=1)[:4000]
