'''Write a Kubernetes device plugin in Python: the v1beta1 protocol, and nothing about any device.

What an author writes is a class with `devices()`, which yields complete lists, and `allocate()`, which says what a
container gets. The library serves it, registers it through the plugin watcher or through kubelet.sock, keeps it
registered when the kubelet restarts or a socket is deleted, sends a list only when it differs, and turns exceptions
into messages that reach the pod's status. `preferred()` and `pre_start()` are offered to the kubelet if they exist.

    import asyncio
    from deviceplugin_v1beta1 import ContainerResponse, Device, DevicePluginServer, DeviceSpec

    class Null:
        """Offers /dev/null twice."""

        async def devices(self):
            yield [Device("null-0"), Device("null-1")]
            await asyncio.Event().wait()  # no news: wait, do not return

        async def allocate(self, containers):
            spec = DeviceSpec("/dev/null", "/dev/my-null")
            return [ContainerResponse(devices=[spec]) for ids in containers]

    async def main():
        await DevicePluginServer(Null(), "example.com/null").run()  # until SIGTERM; raises what devices() raises

    asyncio.run(main())

Several servers in one program: `async with DevicePluginServer(...) as server`, and `await server.wait()`.

A pod asks for it with `resources: {limits: {example.com/null: 1}}`. The process needs the kubelet's folders
(/var/lib/kubelet/plugins and plugins_registry; device-plugins for `registration="legacy"`) and one instance per
resource and node. `samples/deviceplugin_driver.py` is a complete driver for device nodes.
'''

from deviceplugin_v1beta1.names import ResourceNameError, resource_name_problem
from deviceplugin_v1beta1.plugin import (
    AllocationRefused,
    ContainerResponse,
    Device,
    DeviceListError,
    DevicePlugin,
    DevicesEnded,
    DeviceSpec,
    Mount,
    Preferring,
    PreStarting,
)
from deviceplugin_v1beta1.server import DevicePluginServer
from dra_v1.registration import RegistrationStatus
from dra_v1.sockets import SocketError, SocketInUse

__all__ = [
    "AllocationRefused",
    "ContainerResponse",
    "Device",
    "DeviceListError",
    "DevicePlugin",
    "DevicePluginServer",
    "DeviceSpec",
    "DevicesEnded",
    "Mount",
    "PreStarting",
    "Preferring",
    "RegistrationStatus",
    "ResourceNameError",
    "SocketError",
    "SocketInUse",
    "resource_name_problem",
]
