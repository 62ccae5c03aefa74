"""Kernel uevents: the only news of sysfs there is, since the kernel raises no inotify events for it.

Netlink NETLINK_KOBJECT_UEVENT, multicast group 1 (the kernel's own; udevd's group 2 comes later and
reordered). No privilege is needed. Uevents reach every network namespace, so no host network is needed
either.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_RECEIVE_BUFFER = 1 << 20
_LARGEST = 1 << 16
_SO_RCVBUFFORCE = 33

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent; `properties` holds every key, the three named ones included."""

    action: str
    devpath: str
    subsystem: str
    properties: Mapping[str, str] = field(default_factory=dict)


class EventsLost(Exception):
    """The kernel dropped uevents (ENOBUFS): what was missed is unknown, so everything is to be read again."""


def parse(payload: bytes) -> Uevent | None:
    """One datagram of the kernel: `ACTION@DEVPATH`, then `KEY=value`, each ended by a NUL.

    Returns None for what is none (udevd's own messages begin with `libudev`; a truncated one lacks a key).
    """
    header, *lines = payload.rstrip(b"\0").split(b"\0")
    if b"@" not in header:
        return None
    properties: dict[str, str] = {}
    for line in lines:
        key, separator, value = line.decode(errors="surrogateescape").partition("=")
        if separator:
            properties[key] = value
    try:
        return Uevent(properties["ACTION"], properties["DEVPATH"], properties["SUBSYSTEM"], properties)
    except KeyError:
        return None


class UeventSocket:
    """A non-blocking source of kernel uevents.

    Raises:
        OSError: the socket could not be opened (a seccomp profile, or a user namespace without netlink).
    """

    def __init__(self, channel: socket.socket | None = None) -> None:
        self._socket = channel if channel is not None else _open()
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()

    def receive(self) -> list[Uevent]:
        """Everything that has arrived; empty when nothing has.

        Only the kernel is believed: a datagram of another sender (its port id is not 0) is passed over.

        Raises:
            EventsLost: the kernel dropped some.
            OSError: the socket is broken.
        """
        events: list[Uevent] = []
        while True:
            try:
                payload, sender = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                return events
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise EventsLost from error
                raise
            if isinstance(sender, tuple) and sender[0] != 0:
                log.debug("uevent of another sender passed over", extra={"sender": sender[0]})
                continue
            event = parse(payload)
            if event is not None:
                events.append(event)


def _open() -> socket.socket:
    channel = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT
    )
    try:
        # A burst (hundreds of virtual functions at once) must fit; beyond the usual limit if we may.
        option = _SO_RCVBUFFORCE if os.geteuid() == 0 else socket.SO_RCVBUF
        try:
            channel.setsockopt(socket.SOL_SOCKET, option, _RECEIVE_BUFFER)
        except PermissionError:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        channel.bind((0, _KERNEL_GROUP))
    except OSError:
        channel.close()
        raise
    return channel
