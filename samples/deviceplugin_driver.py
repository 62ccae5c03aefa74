"""A device plugin for device nodes, with the library alone.

Run with --resource-name example.com/acc --glob '/dev/acc*': a pod that asks for one gets a node under its path.
"""

import argparse
import asyncio
import glob
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from deviceplugin_v1beta1 import AllocationRefused, ContainerResponse, Device, DevicePluginServer, DeviceSpec


class NodePlugin:
    """Offers the device nodes that match a pattern; an id is the node's path, so it survives reboots."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.nodes: dict[str, str] = {}

    async def devices(self) -> AsyncIterator[Sequence[Device]]:
        """Look again every few seconds; the library sends a list only when it differs."""
        while True:
            found = await asyncio.to_thread(glob.glob, self.pattern)
            self.nodes = {path.strip("/").replace("/", "-"): path for path in sorted(found)}
            yield [Device(name) for name in self.nodes]
            await asyncio.sleep(5)

    async def allocate(self, containers: Sequence[Sequence[str]]) -> Sequence[ContainerResponse]:
        """Give the nodes, all of them or none."""
        gone = [name for ids in containers for name in ids if name not in self.nodes]
        if gone:
            raise AllocationRefused(f"no node matches {self.pattern} any more for: {', '.join(gone)}")
        specs = [[DeviceSpec(self.nodes[name], self.nodes[name]) for name in ids] for ids in containers]
        return [ContainerResponse(devices=nodes) for nodes in specs]


async def main() -> None:
    """Serve until stopped. A failure of devices() ends the process, and its DaemonSet starts another."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--resource-name", required=True, help="for example example.com/acc")
    options.add_argument("--glob", required=True, help="pattern of device nodes")
    options.add_argument("--kubelet-root", type=Path, default=Path("/var/lib/kubelet"))
    options.add_argument("--registration", choices=["watcher", "legacy"], default="watcher")
    given = options.parse_args()
    await DevicePluginServer(
        NodePlugin(given.glob),
        given.resource_name,
        registration=given.registration,
        plugins_dir=given.kubelet_root / "device-plugins",
        registry_dir=given.kubelet_root / "plugins_registry",
        socket_dir=given.kubelet_root / "plugins" / given.resource_name.replace("/", "_"),
    ).run()


logging.basicConfig(level=logging.INFO)
asyncio.run(main())
