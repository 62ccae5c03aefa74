"""What the sandbox saw: a typed, time-stamped log that a tour prints and a test waits on.

Nothing here decides anything; every part of the sandbox tells its observations here and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that happened.

    Attributes:
        at: seconds since the log began (monotonic).
        who: the part that saw it: `apiserver`, `kubelet`, `scheduler`, `controller`, `runtime`, `tree`.
        what: a constant name, such as `Allocated` or `PrepareFailed`.
        about: what it is about: `default/pod-1`, a resource name, a driver.
        facts: details, as plain values.
    """

    at: float
    who: str
    what: str
    about: str
    facts: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = " ".join(f"{key}={value}" for key, value in self.facts.items())
        return f"{self.at:8.3f} {self.who:<10} {self.what:<24} {self.about} {facts}".rstrip()


class Observations:
    """The log, with waiting."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seen: list[Observation] = []
        self._wakers: set[asyncio.Event] = set()
        self._listeners: list[Callable[[Observation], None]] = []

    def tell(self, who: str, what: str, about: str, **facts: object) -> None:
        """Record one observation now."""
        seen = Observation(time.monotonic() - self._start, who, what, about, facts)
        self._seen.append(seen)
        log.debug("observed", extra={"who": who, "what": what, "about": about, "facts": facts})
        for waker in self._wakers:
            waker.set()
        for listener in self._listeners:
            listener(seen)

    def listen(self, listener: Callable[[Observation], None]) -> None:
        """Call `listener` with every observation from now on, in order."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Observation]:
        return iter(tuple(self._seen))

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, what: str, about: str | None = None, since: int = 0) -> list[Observation]:
        """All observations named `what` (about `about`), from the `since`-th on."""
        return [o for o in self._seen[since:] if o.what == what and about in (None, o.about)]

    async def wait(
        self, what: str, about: str | None = None, *, since: int = 0, within: float = 20
    ) -> Observation:
        """Wait until `what` has been observed and return its first occurrence.

        Raises:
            TimeoutError: with the last observations, if it does not happen within `within` seconds.
        """
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            async with asyncio.timeout(within):
                while not (found := self.of(what, about, since)):
                    waker.clear()
                    await waker.wait()
                return found[0]
        except TimeoutError:
            tail = "\n".join(str(o) for o in self._seen[-15:])
            raise TimeoutError(
                f"no {what} about {about or 'anything'} in {within} s; last seen:\n{tail}"
            ) from None
        finally:
            self._wakers.discard(waker)
