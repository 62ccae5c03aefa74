"""The control socket: what is only in the daemon's memory, for the command line on the same node.

`<stateDir>/control.sock`, for the owner alone; one JSON object a line, `{"do": …, …}` answered by `{"ok": true,
"result": …}` or `{"ok": false, "error": …}`. Nothing depends on it: a daemon that cannot serve it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dra_v1 import points
from dra_v1.sockets import taking

log = logging.getLogger(__name__)

NAME = "control.sock"

LINE = 64 * 1024
"""Longest request; answers may be longer."""

Call = Callable[[Mapping[str, Any]], Awaitable[object]]
"""Does what a request asks; raises Refusal for what it will not do."""


class Refusal(Exception):
    """A request that is not carried out; the text says why and what to do."""


class ControlSocket:
    """Serves calls by name while the context lasts."""

    def __init__(self, folder: Path, calls: Mapping[str, Call]) -> None:
        self.path = folder / NAME
        self._calls = dict(calls)
        self._server: asyncio.Server | None = None
        self._busy: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Serve; a socket that cannot be made is told and done without."""
        try:
            self._server = await self._listen()
        except OSError as error:
            log.warning(
                "no control socket, the command line reads the ledger only",
                extra={"path": str(self.path), "error": str(error)},
            )
        return self

    async def _listen(self) -> asyncio.Server:
        """Bind, for the owner alone; the ledger's lock says that nobody else serves here."""
        points.reached(points.Point.CONTROL_BINDING)
        with taking(self.path) as hidden:
            return await asyncio.start_unix_server(self._connected, hidden, limit=LINE)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in list(self._busy):
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)
        points.reached(points.Point.CONTROL_REMOVING)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        points.reached(points.Point.CONTROL_REMOVED)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="control")
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = json.dumps(await self._answer(line), default=str).encode() + b"\n"
                points.reached(points.Point.CONTROL_ANSWER)
                writer.write(answer)
                await writer.drain()
                points.reached(points.Point.CONTROL_ANSWERED)
        except (OSError, ValueError):  # it went away, or sent a line without end
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            call = self._calls[request["do"]]
        except (ValueError, TypeError, KeyError):
            known = ", ".join(sorted(self._calls))
            return {"ok": False, "error": f"not a request; there are {known}"}
        try:
            return {"ok": True, "result": await call(request)}
        except Refusal as refusal:
            return {"ok": False, "error": str(refusal)}
        except Exception as error:
            # One call that nobody foresaw must not end the daemon.
            log.exception("a control call broke", extra={"call": request["do"], "pid": os.getpid()})
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}
