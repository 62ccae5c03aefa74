"""Sockets that live in a node's network namespace, opened from outside it.

A socket belongs for good to the namespace in which it was made, and only the calling thread changes
namespace, so a test process reaches the node's addresses without a forwarder in between.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(pid: int) -> Iterator[None]:
    """Let this thread make sockets in the network namespace of a process, until the block ends."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_namespace(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _set_namespace(home)
    finally:
        os.close(home)


def connect(pid: int, address: tuple[str, int], timeout: float | None) -> socket.socket:
    """Open a TCP connection from inside the network namespace of a process."""
    with entered(pid):
        return socket.create_connection(address, timeout)


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")


def cable(first: int, second: int, name: str) -> None:
    """Join the bridges of two nodes, named by a process of each; the cable goes when one of the nodes goes.

    Args:
        first: a process of the one node.
        second: a process of the other.
        name: of the end at the first node.

    Raises:
        CalledProcessError: it cannot be laid.
    """
    _ip(first, "link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", str(second))
    for pid, end in ((first, name), (second, "uplink")):
        _ip(pid, "link", "set", end, "master", "nodes", "up")


def route(pid: int, to: str, via: str) -> None:
    """Send what goes to a range of addresses by a neighbour of the node that this is a process of."""
    _ip(pid, "route", "add", to, "via", via)


def _ip(pid: int, *arguments: str) -> None:
    command = ["nsenter", f"--target={pid}", "--net", "--", "ip", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
