"""The device bridge: one node daemon, two kubelet device APIs, one durable ledger."""

__version__ = "0.1.0"
