"""What the daemon is told at its start, besides the configuration file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Settings:
    """One process's surroundings.

    Attributes:
        config: the configuration file.
        node_name: name of the Node object, and of the pool.
        kubeconfig: how to reach the API server; None means the pod's ServiceAccount.
        dev_root, sys_root: where to look for devices.
        log_format, log_level: how to log.
        pod_ip: the address of the daemon's pod, whose probes ask there; empty outside a pod.
        accept_empty_ledger: lift the quarantine that a damaged ledger left at an earlier start.
    """

    config: Path
    node_name: str
    kubeconfig: Path | None = None
    dev_root: Path = Path("/dev")
    sys_root: Path = Path("/sys")
    log_format: Literal["json", "text"] = "json"
    log_level: str = "info"
    pod_ip: str = ""
    accept_empty_ledger: bool = False

    def dump(self) -> str:
        """As one command line argument."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The same again. Raises ValueError or TypeError for anything else."""
        raw = json.loads(text)
        for name in ("config", "dev_root", "sys_root"):
            raw[name] = Path(raw[name])
        raw["kubeconfig"] = Path(raw["kubeconfig"]) if raw["kubeconfig"] else None
        return cls(**raw)
