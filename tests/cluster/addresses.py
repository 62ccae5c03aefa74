"""The addresses inside a node's network namespace; no two nodes share one, so they never clash."""

from __future__ import annotations

NODE_ADDRESS = "198.18.0.1"
API_PORT = 6443
API_URL = f"https://{NODE_ADDRESS}:{API_PORT}"
SERVICE_ADDRESS = "10.96.0.1"
SERVICE_RANGE = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
POD_RANGE = "10.244.0.0/24"
