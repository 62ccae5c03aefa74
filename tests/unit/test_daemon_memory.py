import os
import subprocess
import sys

import pytest

from bridge.daemon.memory import no_system_certificates

LOADED = """
import runpy, ssl, sys
from unittest import mock
expected = ssl.create_default_context().cert_store_stats()
sys.argv = ["daemon", "not settings"]
try:
    runpy.run_module("bridge.daemon", run_name="__main__")
except ValueError:
    pass
import aiohttp.connector
assert aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"] == 0
assert ssl.create_default_context().cert_store_stats() == expected
print(" ".join({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_daemon_loads_neither_certificates_nor_what_the_command_line_needs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"kubernetes", "pydantic", "typer", "rich", "click"} & set(done.stdout.split())


@pytest.mark.parametrize("before", [None, "/somewhere.pem"])
def test_the_certificates_that_the_environment_names_are_only_set_aside(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if before is not None:
        monkeypatch.setenv("SSL_CERT_FILE", before)
    with no_system_certificates():
        assert os.environ["SSL_CERT_FILE"] == os.devnull
    assert os.environ.get("SSL_CERT_FILE") == before
