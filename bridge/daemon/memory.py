"""What keeps the daemon small and its pauses short, apart from loading little. Every node of a cluster pays for it."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

_CERTIFICATE_FILE = "SSL_CERT_FILE"


@contextlib.contextmanager
def no_system_certificates() -> Iterator[None]:
    """Have TLS contexts made inside begin without the system's certificate authorities; for imports only.

    aiohttp makes two contexts with all of them (2 MiB) when it is imported, and uses them for requests that bring
    none. Ours bring their own, which trusts the cluster's authority; without it they would be refused.
    """
    before = os.environ.get(_CERTIFICATE_FILE)
    os.environ[_CERTIFICATE_FILE] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CERTIFICATE_FILE]
        else:
            os.environ[_CERTIFICATE_FILE] = before


def freeze() -> None:
    """Keep what start-up made out of later collections: walking it stops the event loop for milliseconds."""
    gc.collect()
    gc.freeze()
