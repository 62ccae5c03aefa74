"""Every RPC that a kubelet made, with its content, in the order in which the calls came in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from google.protobuf.message import Message

LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC.

    Attributes:
        who: the plugin that got it.
        rpc: the method's name, such as `Allocate`.
        request: what it carried.
    """

    who: str
    rpc: str
    request: Message

    def __str__(self) -> str:
        return f"{self.who}: {self.rpc} {str(self.request)!r}"


class Journal:
    """All RPCs of one scenario."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._wakers: set[asyncio.Event] = set()

    def note(self, who: str, rpc: str, request: Message) -> None:
        """Write down a call."""
        self._calls.append(Call(who, rpc, request))
        for waker in self._wakers:
            waker.set()

    def __len__(self) -> int:
        return len(self._calls)

    def rpcs(self, who: str = "", since: int = 0) -> list[str]:
        """Return the names of the calls of one plugin or of all, in order, from the `since`-th on."""
        return [call.rpc for call in self._calls[since:] if who in ("", call.who)]

    def of(self, rpc: str, who: str = "", since: int = 0) -> list[Call]:
        """Return the calls of one method."""
        return [call for call in self._calls[since:] if call.rpc == rpc and who in ("", call.who)]

    async def wait(self, rpc: str, who: str = "", *, count: int = 1, since: int = 0) -> list[Call]:
        """Wait until a method has been called `count` times, and return these calls.

        Raises:
            TimeoutError: with all calls there were.
        """
        waker = asyncio.Event()
        self._wakers.add(waker)
        try:
            async with asyncio.timeout(LIMIT_S):
                while len(found := self.of(rpc, who, since)) < count:
                    waker.clear()
                    await waker.wait()
                return found
        except TimeoutError:
            seen = "\n".join(map(str, self._calls))
            raise TimeoutError(
                f"not {count} of {rpc} for {who or 'anybody'} in {LIMIT_S} s:\n{seen}"
            ) from None
        finally:
            self._wakers.discard(waker)
