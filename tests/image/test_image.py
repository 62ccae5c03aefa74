"""The image, built here and run: on an engine that is there for nothing else."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer

from bridge.config import schema
from tests.cluster.network import entered
from tests.image import bases, built
from tests.image.built import IMAGE
from tests.image.engine import Engine
from tests.protocol.stage import RESOURCE, serves, stage

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(900)]

MOST_BYTES = 150 << 20
NOBODY = 1001


def said(*command: str, program: str | None = None) -> str:
    """What one run of the image prints, as anybody who is not root, nothing to write to and no network."""
    more: dict[str, Any] = {"read_only": True, "network_mode": "none", "cap_drop": ["ALL"]}
    if program is not None:
        more["entrypoint"] = [program]
    with DockerContainer(IMAGE).with_kwargs(**more).with_command(list(command)) as container:
        one = container.get_wrapped_container()
        status = one.wait()["StatusCode"]
        output: str = one.logs(stderr=False).decode()
        assert status == 0, one.logs().decode()
    return output


def inspected(engine: Engine, image: str = IMAGE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.run("image", "inspect", image))[0]
    return found


@pytest.fixture(scope="module")
def with_base(engine: Engine) -> Engine:
    """With the bases by their names, too."""
    for name, path in ((bases.BASE, bases.base()), (bases.BUILDER, bases.builder())):
        engine.run("import", path, name)
    return engine


def test_it_says_its_version_and_its_schema(engine: Engine) -> None:
    assert said("version") == f"{importlib.metadata.version('device-bridge')}\n"
    assert json.loads(said("config", "schema")) == schema()


def test_the_python_of_the_path_has_everything_and_no_tools(engine: Engine) -> None:
    assert said("-c", "import bridge.daemon.run, os; print(os.getuid())", program="python3") == f"{NOBODY}\n"
    tools = "gcc cc c++ g++ ld as make pip pip3"
    found = said("-c", f"for one in {tools}; do command -v $one; done; python3 -m pip || true", program="sh")
    assert found == ""


def test_nobody_but_root_may_write_to_it(engine: Engine) -> None:
    look = (
        "import os, pathlib\n"
        "for path in pathlib.Path('/opt/device-bridge').rglob('*'):\n"
        "    found = path.lstat()\n"
        "    assert (found.st_uid, found.st_gid) == (0, 0) and not found.st_mode & 0o022, path\n"
    )
    assert said("-c", look, program="python3") == ""


def test_every_module_is_compiled_as_the_daemon_runs_it(engine: Engine) -> None:
    look = (
        "import importlib.util, pathlib\n"
        "for path in pathlib.Path('/opt/device-bridge/lib').rglob('*.py'):\n"
        "    for level in ('', 2):\n"
        "        made = importlib.util.cache_from_source(str(path), optimization=level)\n"
        "        if not pathlib.Path(made).exists(): print(made)\n"
    )
    assert said("-c", look, program="python3") == ""


def test_it_is_small(with_base: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    added = inspected(with_base)["Size"] - inspected(with_base, bases.BASE)["Size"]
    with capsys.disabled():
        print(f"\nthe image adds {added / (1 << 20):.1f} MiB to its base")
    assert added < MOST_BYTES


def test_it_is_the_same_each_time_and_from_either_builder(with_base: Engine, tmp_path: Path) -> None:
    source = built.copy_source(tmp_path / "source")
    made = []
    for buildkit in (False, True):
        image = f"device-bridge-test/again:{buildkit:d}"
        built.build(with_base, source, image, "--no-cache", buildkit=buildkit)
        made.append(built.layers(with_base, image))
    assert made[0] == made[1]
    assert made[0][:-1] == built.layers(with_base, bases.BASE), "one layer and no more"


def test_its_bill_of_materials_is_what_is_in_it(engine: Engine) -> None:
    path = inspected(engine)["Config"]["Labels"]["io.device-bridge.sbom"]
    bill = json.loads(said(path, program="cat"))
    listed = {
        f"{one['name']} {one['version']}" for one in (*bill["components"], bill["metadata"]["component"])
    }
    look = (
        "from importlib.metadata import distributions\n"
        "for one in distributions(path=['/opt/device-bridge/lib']): print(one.metadata['Name'], one.version)\n"
    )
    assert listed == set(said("-c", look, program="python3").splitlines())
    assert all(one["licenses"] for one in bill["components"])


def test_nothing_of_the_build_is_in_it(engine: Engine) -> None:
    config = json.dumps(inspected(engine)["Config"]) + engine.run("history", "--no-trunc", IMAGE)
    told = {value for name, value in os.environ.items() if name.startswith("PIP_") and len(value) > 4}
    assert not [value for value in told if value in config]
    assert (
        said("-c", "grep -rlE '/tmp/(source|image|tools|wheel)' /opt/device-bridge; true", program="sh") == ""
    )


@pytest.fixture
def in_its_network(engine: Engine) -> Iterator[None]:
    """Whatever listens in this test, the containers can reach."""
    with entered(engine.node.pid):
        yield


async def test_the_daemon_in_it_is_killed_and_knows_its_holds(in_its_network: None) -> None:
    async with stage(start=False) as node:
        paths = node.box.paths
        config = paths.base / "bridge.yaml"
        config.write_text(json.dumps(node.config))
        for path in (paths.base, *paths.base.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        where = (
            "--kubeconfig",
            paths.kubeconfig,
            "--dev-root",
            paths.root / "dev",
            "--sys-root",
            paths.root / "sys",
        )
        command = ["run", "--config", config, "--node-name", node.box.node, *where]
        container = (
            DockerContainer(IMAGE)
            .with_command([str(word) for word in command])
            .with_volume_mapping(str(paths.base), str(paths.base), "rw")
            .with_kwargs(
                read_only=True, network_mode="host", cap_drop=["ALL"], security_opt=["no-new-privileges"]
            )
        )
        with container:
            daemon = container.get_wrapped_container()
            await serves(node, 0)
            await node.run_pod("old", limits={RESOURCE: 1})
            before = node.ledger()
            assert len(before) == 1
            since = len(node.box.observe)
            await asyncio.to_thread(daemon.kill)
            assert (await asyncio.to_thread(daemon.wait))["StatusCode"] == 137
            await asyncio.to_thread(daemon.start)
            await serves(node, since)
            await node.run_pod("new", limits={RESOURCE: 1})
            after = node.ledger()
            assert len(after) == 2 and after.keys() > before.keys()
            await asyncio.to_thread(daemon.stop)
            await asyncio.to_thread(daemon.reload)
            assert daemon.attrs["State"]["ExitCode"] == 0, daemon.logs().decode()
