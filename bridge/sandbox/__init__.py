"""A node and its cluster in one process: simulated kubelet, API server, scheduler, generated device tree.

For `bridge sandbox`, the tour and the protocol tests. Everything lives in one temporary folder, on unix
sockets and loopback TCP; no root is needed. Where it differs from a real kubelet, the sandbox is wrong.
"""
