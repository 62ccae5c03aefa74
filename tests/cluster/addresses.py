"""The addresses inside a cluster's network namespaces; no two clusters share one, so they never clash."""

from __future__ import annotations

from dataclasses import dataclass

NODE_ADDRESS = "198.18.0.1"
"""The first node's, which the control plane runs on."""

API_PORT = 6443
API_URL = f"https://{NODE_ADDRESS}:{API_PORT}"
SERVICE_ADDRESS = "10.96.0.1"
SERVICE_RANGE = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
POD_RANGE = "10.244.0.0/16"
"""Of all nodes."""

MOST_NODES = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is in its cluster's network; the control plane is on the one with index 0."""

    index: int = 0

    @property
    def address(self) -> str:
        """The node's own."""
        return f"198.18.0.{self.index + 1}"

    @property
    def pods(self) -> str:
        """The range of its pods."""
        return f"10.244.{self.index}.0/24"
