"""An engine with the image in it, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from testcontainers.core.config import testcontainers_config

from tests.image import built
from tests.image.engine import Engine


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    """The engine; testcontainers use it too."""
    archive = built.archive()
    with Engine() as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DOCKER_")]:
            patch.delenv(name)
        patch.setenv("DOCKER_HOST", running.address)
        # Its image would have to be pulled, and what it sweeps away ends with the engine.
        patch.setattr(testcontainers_config, "ryuk_disabled", True)
        running.run("load", "--input", archive)
        yield running
