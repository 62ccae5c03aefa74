"""Serving on a unix socket so that a stopped server leaves its file, as a killed kubelet does.

gRPC removes the path that it was given when a server is destroyed, which may be after the next one has bound it:
so it is given a path of its own, and the real one is a second link to that socket.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import grpc

_numbers = itertools.count()


async def serve(server: grpc.aio.Server, path: Path, base: Path) -> None:
    """Start `server` on `path`; whatever is there is replaced. `base` is a short folder on the same file system."""
    own = base / f"s{next(_numbers)}"
    server.add_insecure_port(f"unix://{own}")
    await server.start()
    path.unlink(missing_ok=True)
    os.link(own, path)  # a link, so that watchers see a creation and not a move
    own.unlink()
