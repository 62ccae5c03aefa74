"""A whole driver: served before it is registered, published, and gone in the right order."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dra_v1.api import dra_v1_pb2 as v1
from dra_v1.api import dra_v1_pb2_grpc as v1_grpc
from dra_v1.claims import Claim, ClaimRef
from dra_v1.driver import PreparedClaim
from dra_v1.kube import KubeApi
from dra_v1.plugin import DraPlugin, plugin_sockets
from dra_v1.slices import SliceDevice
from dra_v1.sockets import SUN_PATH_LIMIT, SocketError
from tests.unit.fake_api import FakeApi, serving, slice_devices
from tests.unit.kubelet_peer import LIMIT, dial, kubelet_at, short_folder

DRIVER, NODE = "acc.example.com", "node1"
REPOSITORY = Path(__file__).parents[2]
CLAIM = {
    "metadata": {"namespace": "ns", "name": "c", "uid": "u"},
    "status": {
        "allocation": {
            "devices": {"results": [{"request": "r", "driver": DRIVER, "pool": NODE, "device": "acc0"}]}
        }
    },
}


class NoDevices:
    async def prepare(self, claims: Sequence[Claim]) -> Mapping[str, PreparedClaim]:
        return {claim.ref.uid: PreparedClaim(()) for claim in claims}

    async def unprepare(self, claims: Sequence[ClaimRef]) -> Mapping[str, None]:
        return {claim.uid: None for claim in claims}


async def test_a_plugin_serves_registers_and_publishes_and_leaves_only_its_slices() -> None:
    async with serving(FakeApi()) as fake, KubeApi(fake.url) as kube:
        with short_folder() as root:
            async with kubelet_at(root) as kubelet:
                plugin = DraPlugin(
                    driver_name=DRIVER, node_name=NODE, driver=NoDevices(), kube=kube, kubelet_root=root
                )
                async with asyncio.timeout(LIMIT), plugin:
                    info = await kubelet.see(plugin.sockets.registration)
                    await plugin.wait_registered()
                    await plugin.publish([SliceDevice("acc0")])
                    assert plugin.registration.registered
                    assert plugin.publication.stored
                    assert (info.type, info.name, info.endpoint) == (
                        "DRAPlugin",
                        DRIVER,
                        str(root / "plugins" / DRIVER / "dra.sock"),
                    )
                    assert list(info.supported_versions) == ["v1.DRAPlugin", "v1beta1.DRAPlugin"]
                assert not plugin.sockets.registration.exists()
                assert not plugin.sockets.endpoint.exists()
    assert list(slice_devices(fake).values()) == [["acc0"]]


async def test_nothing_is_published_before_the_kubelet_has_registered_the_driver() -> None:
    async with serving(FakeApi()) as fake, KubeApi(fake.url) as kube:
        with short_folder() as root:
            async with kubelet_at(root) as kubelet:
                plugin = DraPlugin(
                    driver_name=DRIVER, node_name=NODE, driver=NoDevices(), kube=kube, kubelet_root=root
                )
                async with asyncio.timeout(LIMIT), plugin:
                    publishing = asyncio.create_task(plugin.publish([SliceDevice("acc0")]))
                    kubelet.refusal = "not yet"
                    await kubelet.see(plugin.sockets.registration)
                    assert fake.requests == []
                    kubelet.refusal = ""
                    await kubelet.see(plugin.sockets.registration)
                    await publishing
    assert list(slice_devices(fake).values()) == [["acc0"]]


async def test_a_plugin_that_cannot_register_leaves_nothing_behind() -> None:
    async with serving(FakeApi()) as fake, KubeApi(fake.url) as kube:
        with short_folder() as root:  # there is no plugins_registry in it
            plugin = DraPlugin(
                driver_name=DRIVER, node_name=NODE, driver=NoDevices(), kube=kube, kubelet_root=root
            )
            with pytest.raises(SocketError, match="plugins_registry does not exist"):
                await plugin.start()
            assert not plugin.sockets.endpoint.exists()


def test_two_instances_side_by_side_have_sockets_of_their_own() -> None:
    one, two = (plugin_sockets(DRIVER, pod_uid=uid) for uid in ("uid-1", "uid-2"))
    assert str(one.registration) == f"/var/lib/kubelet/plugins_registry/{DRIVER}-uid-1-reg.sock"
    assert str(one.endpoint) == f"/var/lib/kubelet/plugins/{DRIVER}/dra-uid-1.sock"
    assert {one.registration, one.endpoint}.isdisjoint({two.registration, two.endpoint})


@pytest.mark.parametrize("length", [10, 40, 63])
@pytest.mark.parametrize("uid", [None, "0123456789ab-0123-4567-89ab-cdef01234567"])
def test_every_driver_name_fits_into_a_socket_path(length: int, uid: str | None) -> None:
    sockets = plugin_sockets("d" * length, pod_uid=uid)
    assert max(len(str(sockets.registration)), len(str(sockets.endpoint))) <= SUN_PATH_LIMIT


def test_registration_alone_loads_no_http_client() -> None:
    code = "import sys, dra_v1.registration, dra_v1.sockets; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there() -> None:
    import dra_v1

    assert [name for name in dra_v1.__all__ if getattr(dra_v1, name).__name__ != name] == []


async def test_the_sample_driver_serves_a_claim() -> None:
    fake = FakeApi()
    fake.claims["c"] = CLAIM
    async with serving(fake):
        with short_folder() as root:
            (root / "dev").mkdir()
            (root / "dev" / "acc0").touch()
            config = {
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": fake.url}}],
            }
            (root / "kubeconfig").write_text(json.dumps(config))
            options = {
                "--driver-name": DRIVER,
                "--node-name": NODE,
                "--glob": f"{root}/dev/*",
                "--kubeconfig": root / "kubeconfig",
                "--kubelet-root": root,
                "--cdi-dir": root / "cdi",
            }
            words = [str(word) for option in options.items() for word in option]
            async with kubelet_at(root) as kubelet:
                sample = await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(REPOSITORY / "samples" / "dra_driver.py"),
                    *words,
                    env={"PYTHONPATH": str(REPOSITORY)},
                    # As a shell starts a program in the background: SIGTERM has to end it all the same.
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
                )
                try:
                    info = await kubelet.see(plugin_sockets(DRIVER, root).registration)
                    await fake.until(lambda: bool(fake.slices))
                    async with dial(Path(info.endpoint)) as channel:
                        asked = v1.NodePrepareResourcesRequest(
                            claims=[v1.Claim(namespace="ns", name="c", uid="u")]
                        )
                        response = await v1_grpc.DRAPluginStub(channel).NodePrepareResources(
                            asked, timeout=LIMIT
                        )
                finally:
                    sample.terminate()
                    code = await asyncio.wait_for(sample.wait(), LIMIT)
                left = [path.name for path in (root / "plugins_registry").iterdir()]
            spec = json.loads(next((root / "cdi").iterdir()).read_text())
    (device,) = response.claims["u"].devices
    assert list(device.cdi_device_ids) == [f"{DRIVER}/node=acc0"]
    assert spec["kind"] == f"{DRIVER}/node"
    assert [entry["name"] for entry in spec["devices"]] == ["acc0"]
    assert list(slice_devices(fake).values()) == [["acc0"]]
    assert (code, left) == (0, [])
