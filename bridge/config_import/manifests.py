"""What stands around power-device-plugin's configuration in its manifests: environment and scheduling. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config_import.notes import Note

_ENVIRONMENT = {
    "GHW_CHROOT": "no counterpart: the DaemonSet of the bridge shows it the node's /dev.",
    "GOMEMLIMIT": "no counterpart: it is of Go. The bridge's memory is in kustomize/base/daemonset.yaml.",
    "GOMAXPROCS": "no counterpart: it is of Go, and the bridge uses one processor.",
    "GRPC_GO_LOG_VERBOSITY_LEVEL": "no counterpart: it is of Go. For more in the log: bridge run --log-level debug.",
    "GRPC_GO_LOG_SEVERITY_LEVEL": "no counterpart: it is of Go. For more in the log: bridge run --log-level debug.",
}

_NODES = "where the daemon runs is no part of its configuration: kustomize/components/power-device-plugin"


def around(environment: Mapping[str, str], scheduling: Mapping[str, Any]) -> Iterator[Note]:
    """What became of it."""
    for name, value in environment.items():
        yield Note(
            f"env {name}", _ENVIRONMENT.get(name, f"{value!r} is not taken up: the plugin does not read it.")
        )
    for name in scheduling:
        yield Note(
            name, f"{_NODES} has what the plugin's manifests say; what is more, say in a patch of your own."
        )
