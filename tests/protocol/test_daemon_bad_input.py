"""Bad input: a clear error to the caller, a line in the log, and the rest goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

import grpc
import pytest

from bridge.daemon.run import StartError
from bridge.sandbox import make
from bridge.sandbox.daemon import DaemonProcess
from bridge.sandbox.kubelet.endpoint import EndpointError
from dra_v1.api import pluginregistration_pb2 as reg
from dra_v1.api.pluginregistration_pb2_grpc import RegistrationStub
from tests.protocol.stage import ACC, DRIVER, NX, NX_DRIVER, RESOURCE, Node, acc, stage
from tests.protocol.test_daemon_features import nx, nx_config


async def refusal(node: Node, claim: dict[str, Any], driver: str = DRIVER) -> str:
    """Prepare a claim that cannot be; the error."""
    uid = claim["metadata"]["uid"]
    answer = (await node.prepare(claim, driver=driver))[uid]
    assert answer.error and not answer.devices
    return str(answer.error)


async def still_serves(node: Node) -> None:
    """Both planes hand out as if nothing had been."""
    good = node.claim_on("good", acc(0))
    assert not (await node.prepare(good))[good["metadata"]["uid"]].error
    await node.allocate(acc(1))


async def test_unknown_ids_in_allocate() -> None:
    async with stage() as node:
        with pytest.raises(
            EndpointError, match=f"crypto-acc77 is no device of group {ACC['name']}, which has 2"
        ):
            await node.allocate(acc(1), "crypto-acc77")
        assert node.holds() == []
        assert (await node.log.wait("refused"))["why"].startswith("crypto-acc77 is no device")
        await still_serves(node)


async def test_a_claim_that_is_not_there() -> None:
    async with stage() as node:
        ghost = {"metadata": {"namespace": "default", "name": "ghost", "uid": "no-such-uid"}}
        assert "default/ghost" in await refusal(node, ghost)
        await still_serves(node)


async def test_a_claim_that_is_not_allocated() -> None:
    async with stage() as node:
        claim = node.box.create_claim("c", make.request("nobody"))
        assert "not allocated" in await refusal(node, claim)
        await still_serves(node)


async def test_an_allocation_that_names_an_unknown_device() -> None:
    async with stage() as node:
        error = await refusal(node, node.claim_on("c", "crypto-acc77"))
        assert "crypto-acc77 is no device of group acc" in error and "bridge devices" in error
        await still_serves(node)


async def test_an_allocation_from_another_nodes_pool() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0), pool="node-b")
        assert "pool node-b; this node's pool is node-a" in await refusal(node, claim)
        await still_serves(node)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"apiVersion": "device.power.ibm.com/v1alpha1", "kind": "NxConfig", "colour": "red"}, "colour"),
        (nx_config("Sometimes"), "sharing.timeSlicingConfig.interval"),
        ({"apiVersion": "device.power.ibm.com/v9", "kind": "NxConfig"}, "apiVersion"),
        ({}, "kind"),
    ],
    ids=["unknown-field", "bad-value", "bad-version", "empty"],
)
async def test_malformed_opaque_parameters(parameters: dict[str, Any], names: str) -> None:
    async with stage(NX, start=False) as node:
        await nx(node, 2)
        claim = node.claim_on("c", "nx-gzip--0", driver=NX_DRIVER)
        claim["status"]["allocation"]["devices"]["config"] = [
            {"source": "FromClaim", "requests": [], "opaque": {"driver": NX_DRIVER, "parameters": parameters}}
        ]
        claim = node.box.api.registry.replace("resourceclaims", claim, "status")
        error = await refusal(node, claim, NX_DRIVER)
        assert "configuration of request req is not valid" in error and names in error
        assert node.holds() == []


async def test_no_right_to_read_claims() -> None:
    async with stage() as node:
        node.box.api.forbid("get", "resourceclaims")
        claim = node.claim_on("c", acc(0))
        error = await refusal(node, claim)
        assert "default/c" in error and "forbidden" in error.lower()
        await node.run_pod("p", limits={RESOURCE: 1})
        node.box.api.allow("get", "resourceclaims")
        assert not (await node.prepare(claim))[claim["metadata"]["uid"]].error


async def test_no_right_to_publish_leaves_the_device_plugin_alone() -> None:
    async with stage(start=False) as node:
        node.box.api.forbid("*", "resourceslices")
        await node.box.observe.wait("KubeletSynced")
        await node.start()
        await node.run_pod("p", limits={RESOURCE: 1})
        assert node.box.slices() == []
        said = [str(vars(record)) for record in node.log.records if record.levelname in ("WARNING", "ERROR")]
        assert any("forbidden" in line.lower() for line in said), said


async def test_a_cluster_without_dra_is_served_by_the_device_plugin_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dra_v1.plugin.REGISTRATION_PATIENCE_S", 0.1)
    async with stage(profile="1.31") as node:
        assert await node.run_pod("p", limits={RESOURCE: 1}) == ["/dev/crypto/acc1"]
        node.box.tree.add("/dev/crypto/acc5")
        await node.lists({acc(0), acc(1), acc(5)}, set())
        told = await node.log.wait("DRA stays off")
        assert "resource.k8s.io" in told["error"]
        # The kubelet of that release knows no DRA plugins and keeps saying so.
        socket = node.box.paths.registry / f"{DRIVER}-reg.sock"
        async with grpc.aio.insecure_channel(f"unix://{socket}") as channel:
            stub: Any = RegistrationStub(channel)
            for _ in range(2):
                said = f"RegisterPlugin error -- no handler registered for plugin type: DRAPlugin at socket {socket}"
                await stub.NotifyRegistrationStatus(reg.RegistrationStatus(error=said))
        assert len(node.log.of("the kubelet refused the registration")) == 1
        assert len(node.log.of("DRA stays off")) == 1


async def test_h33_an_api_server_that_is_away_at_the_start_does_not_keep_the_device_plugin_waiting() -> None:
    async with stage(start=False) as node:
        await node.box.observe.wait("KubeletSynced")
        await node.box.wait_gone("pods", "none")
        await node.box.api.stop()
        await node.start()
        await node.allocate(acc(1))
        await node.box.api.start()
        await node.offers(acc(0))


async def test_a_folder_of_the_kubelet_that_is_missing() -> None:
    async with stage(start=False) as node:
        await node.box.kubelet.kill()
        await asyncio.to_thread(shutil.rmtree, node.box.paths.registry)
        with pytest.raises(
            StartError, match=r"the folder .*plugins_registry does not exist; it belongs to the kubelet"
        ):
            await node.start()
        assert node.box.slices() == []


async def test_a_folder_that_is_not_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(start=False) as node:
        may = os.access
        registry = node.box.paths.registry
        monkeypatch.setattr(
            "dra_v1.sockets.os.access", lambda path, mode: may(path, mode) and path != registry
        )
        with pytest.raises(StartError, match=r"user \d+ may not write to .*plugins_registry; run as root"):
            await node.start()


async def test_a_state_folder_that_cannot_be_made() -> None:
    async with stage(start=False, stateDir="/proc/device-bridge") as node:
        with pytest.raises(StartError, match="/proc/device-bridge"):
            await node.start()


async def test_a_device_that_vanished_before_allocate() -> None:
    async with stage() as node:
        node.box.tree.remove("/dev/crypto/acc1")
        with pytest.raises(EndpointError, match=f"{acc(1)}.*(does not exist|is gone|unplugged)"):
            await node.allocate(acc(1))
        assert node.holds() == []
        await node.allocate(acc(0))


async def test_a_device_that_vanished_before_prepare() -> None:
    async with stage() as node:
        claim = node.claim_on("c", acc(0))
        node.box.tree.remove("/dev/crypto/acc0")
        error = await refusal(node, claim)
        assert acc(0) in error and node.holds() == []
        node.box.tree.add("/dev/crypto/acc0")
        await node.lists({acc(0), acc(1)}, set())
        assert not (await node.prepare(claim))[claim["metadata"]["uid"]].error


@pytest.mark.parametrize(
    "taken",
    [
        "plugins_registry/acc.device-bridge.io-reg.sock",
        "plugins_registry/device-bridge.io_acc-reg.sock",
        "plugins/acc.device-bridge.io/dra.sock",
    ],
)
async def test_h19_a_socket_of_somebody_else_under_our_name(taken: str) -> None:
    async with stage(start=False) as node:
        await node.box.kubelet.kill()
        path = node.box.paths.kubelet / taken
        path.parent.mkdir(exist_ok=True)
        foreign = await asyncio.start_unix_server(lambda reader, writer: writer.close(), path)
        daemon = await DaemonProcess(node.box.paths, node.box.node, node.config).start()
        assert await daemon.ended() == 1
        said = await asyncio.to_thread(daemon.log.read_text)
        assert f"(process {os.getpid()}) serves there already" in said and str(path) in said
        assert path.is_socket() and foreign.is_serving(), "it was left alone"
        assert [p for p in node.box.paths.registry.iterdir() if p != path] == [], "nothing stays behind"
        foreign.close()
        await foreign.wait_closed()


async def test_h17_a_second_daemon_on_the_node_ends_and_the_first_goes_on() -> None:
    async with stage() as node:
        second = await DaemonProcess(node.box.paths, node.box.node, node.config).start()
        assert await second.ended() == 1
        said = await asyncio.to_thread(second.log.read_text)
        assert f"another daemon (process {os.getpid()}) has the ledger" in said
        await still_serves(node)


async def test_a_configuration_with_errors_starts_nothing_and_tells_all_of_them() -> None:
    async with stage(start=False) as node:
        node.config["groups"][0]["kind"] = "device-nod"
        node.config["mode"] = "both"
        daemon = await DaemonProcess(node.box.paths, node.box.node, node.config).start()
        assert await daemon.ended() == 2
        said = await asyncio.to_thread(daemon.log.read_text)
        assert "groups[0].kind" in said and "mode" in said
        assert not node.state.exists() and list(node.box.paths.registry.iterdir()) == []
