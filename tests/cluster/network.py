"""Sockets that live in a node's network namespace, opened from outside it.

A socket belongs for good to the namespace in which it was made, and only the calling thread changes
namespace, so a test process reaches the node's addresses without a forwarder in between.
"""

from __future__ import annotations

import ctypes
import os
import socket
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
