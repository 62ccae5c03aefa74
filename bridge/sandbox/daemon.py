"""The real daemon as a process of its own, beside the sandbox: started, killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Self

import yaml

from bridge.daemon.settings import Settings
from bridge.sandbox.paths import Paths


def config_for(paths: Paths, groups: list[dict[str, object]], mode: str = "dual") -> dict[str, object]:
    """A configuration whose daemon lives in the sandbox's folders."""
    return {
        "apiVersion": "device-bridge.io/v1alpha1",
        "kind": "BridgeConfig",
        "mode": mode,
        "groups": groups,
        "daemon": {
            "kubeletRoot": str(paths.kubelet),
            "cdi": {"staticDir": str(paths.cdi_static), "dynamicDir": str(paths.cdi_dynamic)},
            "criSocket": str(paths.cri_socket),
            "metricsAddress": "",
        },
    }


class DaemonProcess:
    """`bridge run` on the sandbox's node.

    Attributes:
        log: file with everything it says.
    """

    def __init__(self, paths: Paths, node: str, config: dict[str, object]) -> None:
        self.config = paths.base / "bridge.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.log = paths.base / "bridge.log"
        self._settings = Settings(
            config=self.config,
            node_name=node,
            kubeconfig=paths.kubeconfig,
            dev_root=paths.root / "dev",
            sys_root=paths.root / "sys",
            log_format="text",
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def state_dir(self) -> Path:
        """Where its ledger is."""
        config = yaml.safe_load(self.config.read_text())
        return Path(config["daemon"]["kubeletRoot"]) / "plugins" / "device-bridge"

    async def start(self) -> Self:
        """Start it; whether it serves is for the kubelet to see."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bridge.daemon",
                self._settings.dump(),
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        """`kill -9`: no good-bye."""
        await self._end(signal.SIGKILL)

    async def stop(self, within: float = 15) -> int:
        """SIGTERM; the exit code. Raises TimeoutError if it does not end."""
        return await self._end(signal.SIGTERM, within)

    async def _end(self, number: signal.Signals, within: float = 15) -> int:
        process = self._process
        if process is None:
            return 0
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(within):
            return await process.wait()

    async def ended(self, within: float = 15) -> int:
        """Wait until it ends by itself; the exit code. Raises TimeoutError if it does not."""
        assert self._process is not None, "it was never started"
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            try:
                await self.stop()
            except TimeoutError:
                await self.kill()
