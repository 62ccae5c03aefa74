"""How device plugins register: over kubelet.sock, and through the plugin watcher's folder (A.2)."""

from __future__ import annotations

import grpc
import pytest

from deviceplugin_v1beta1.api import deviceplugin_pb2_grpc as dp_grpc
from tests.protocol.suite.fleet import Plugins
from tests.protocol.suite.journal import Journal
from tests.protocol.suite.node import Node
from tests.protocol.suite.plan import device_container

BAD_NAMES = (
    "acc",
    "kubernetes.io/acc",
    "sub.kubernetes.io/acc",
    "mykubernetes.io/acc",
    "deviceclass.resource.kubernetes.io/acc",
    "requests.example.com/acc",
    "example.com/acc/more",
    "example.com/",
    "example.com/-acc",
    "Example.com/acc",
    f"example.com/{'a' * 64}",
)


async def test_over_kubelet_sock_the_options_are_asked_before_register_answers(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.serve()
    await plugin.register()
    assert journal.rpcs()[0] == "GetDevicePluginOptions"
    await journal.wait("ListAndWatch")
    assert journal.rpcs() == ["GetDevicePluginOptions", "ListAndWatch"]
    await node.offers(node.resource, 2)


async def test_an_unknown_version_is_refused(node: Node, plugins: Plugins, journal: Journal) -> None:
    plugin = plugins.device("a0")
    await plugin.serve()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plugin.register(version="v1alpha")
    assert refused.value.code() is grpc.StatusCode.UNKNOWN
    assert refused.value.details() == (
        'requested API version "v1alpha" is not supported by kubelet. Supported version is ["v1beta1"]'
    )
    assert journal.rpcs() == []


async def test_a_name_that_no_extended_resource_may_have_is_refused(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.serve()
    for name in BAD_NAMES:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await plugin.register(resource=name)
        assert refused.value.code() is grpc.StatusCode.UNKNOWN
        assert refused.value.details() == f'the ResourceName "{name}" is invalid'
    assert journal.rpcs() == []


async def test_a_later_registration_replaces_the_first(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    first = plugins.device("a0", "a1", who="first")
    await first.start()
    await first.hang_up()
    await node.offers(node.resource, 0, capacity=2)
    second = plugins.device("b0", "b1", "b2", who="second")
    await second.start()
    assert await node.healthy(node.resource) == {"b0", "b1", "b2"}


@pytest.mark.ci
async def test_the_watcher_asks_connects_and_tells(node: Node, plugins: Plugins, journal: Journal) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.serve()
    await plugin.registrar.start()
    told = await plugin.registrar.told()
    assert (told.plugin_registered, told.error) == (True, "")
    await journal.wait("ListAndWatch")
    assert [rpc for rpc in journal.rpcs() if rpc != "ListAndWatch"] == [
        "GetInfo",
        "GetDevicePluginOptions",
        "NotifyRegistrationStatus",
    ]
    assert len(journal.of("ListAndWatch")) == 1
    await node.offers(node.resource, 2)


async def test_without_an_endpoint_the_registration_socket_is_the_plugins(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    plugin.registrar.info.endpoint = ""
    await plugin.registrar.start(lambda server: dp_grpc.add_DevicePluginServicer_to_server(plugin, server))
    assert (await plugin.registrar.told()).plugin_registered
    await node.offers(node.resource, 1)


@pytest.mark.parametrize(
    ("kind", "name", "version", "error"),
    [
        (
            "DevicePlugin",
            "",
            "v1alpha",
            "RegisterPlugin error -- plugin validation failed with err: "
            "manager version, v1beta1, is not among plugin supported versions [v1alpha]",
        ),
        (
            "DevicePlugin",
            "acc",
            "v1beta1",
            "RegisterPlugin error -- plugin validation failed with err: "
            'invalid name of device plugin socket: the ResourceName "acc" is invalid',
        ),
        (
            "Surprise",
            "",
            "v1beta1",
            "RegisterPlugin error -- no handler registered for plugin type: Surprise at socket {socket}",
        ),
    ],
)
async def test_the_watcher_tells_why_it_refuses_and_tries_again(
    node: Node, plugins: Plugins, journal: Journal, kind: str, name: str, version: str, error: str
) -> None:
    plugin = plugins.device("a0")
    await plugin.serve()
    info = plugin.registrar.info
    info.type, info.name = kind, name or info.name
    info.supported_versions[:] = [version]
    await plugin.registrar.start()
    told = await plugin.registrar.told()
    assert not told.plugin_registered
    assert told.error == error.format(socket=node.inside(plugin.registrar.socket))
    await journal.wait("NotifyRegistrationStatus", count=2)
    assert journal.rpcs()[:4] == ["GetInfo", "NotifyRegistrationStatus"] * 2


async def test_the_watcher_tells_of_an_endpoint_where_nobody_serves_and_only_later_releases_come_again(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.registrar.start()
    told = await plugin.registrar.told()
    assert not told.plugin_registered
    assert told.error.startswith("RegisterPlugin error -- plugin registration failed with err: ")
    await plugin.serve()
    if node.version < (1, 35):
        other = plugins.device("b0", who="more", resource=node.other_resource)
        await other.serve()
        await other.registrar.start()
        await node.offers(node.other_resource, 1)
        assert journal.rpcs(plugin.who) == ["GetInfo", "NotifyRegistrationStatus"], "taken for registered"
        await plugin.registrar.stop()
        await plugin.registrar.start()
    await node.offers(node.resource, 1)


async def test_h17_the_end_of_a_replaced_plugin_ends_its_successor_in_earlier_releases(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    first, second = plugins.device("a0", who="first"), plugins.device("b0", "b1", who="second")
    for plugin in (first, second):
        await plugin.serve()
        await plugin.registrar.start()
        await node.offers(node.resource, len(plugin.devices))
    await first.registrar.stop()
    if node.version < (1, 35):
        await node.offers(node.resource, 0, capacity=2)
        await second.registrar.stop()
        await second.registrar.start()
        await node.offers(node.resource, 2)
    await node.create(device_container("p", {node.resource: 2}))
    await node.running("p")
    assert (first.allocated(), second.allocated()) == ([], [["b0", "b1"]])


async def test_a_second_registration_of_a_connected_socket_replaces_the_first_or_is_refused(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0")
    await plugin.start()
    if node.version < (1, 35):
        await plugin.register()
        await journal.wait("ListAndWatch", count=2)
        return
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plugin.register()
    assert refused.value.details() == f"device plugin already connected: {node.inside(plugin.socket)}"


async def test_a_registration_socket_that_goes_takes_the_devices_with_it(
    node: Node, plugins: Plugins, journal: Journal
) -> None:
    plugin = plugins.device("a0", "a1")
    await plugin.serve()
    await plugin.registrar.start()
    await node.offers(node.resource, 2)
    await plugin.registrar.stop()
    await node.offers(node.resource, 0, capacity=2)
    before = len(journal)
    await plugin.registrar.start()
    await node.offers(node.resource, 2)
    assert "GetDevicePluginOptions" in journal.rpcs(since=before)
