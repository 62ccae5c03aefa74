import errno
import selectors
import socket
from collections.abc import Iterator

import pytest

from bridge.platform.uevents import EventsLost, Uevent, UeventSocket, parse

CPU = (
    b"online@/devices/system/cpu/cpu7\0ACTION=online\0DEVPATH=/devices/system/cpu/cpu7\0SUBSYSTEM=cpu\0"
    b"DRIVER=processor\0SEQNUM=4711\0"
)
VF = (
    b"add@/devices/pci0000:00/0000:00:03.0\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:03.0\0SUBSYSTEM=pci\0"
    b"PCI_CLASS=20000\0PCI_ID=8086:10CA\0PCI_SLOT_NAME=0000:00:03.0\0MODALIAS=pci:v00008086d000010CA\0SEQNUM=9\0"
)


class Channel:
    """Stands for the netlink socket: hands out what a test wants to arrive."""

    def __init__(self, *arrivals: tuple[bytes, object] | OSError) -> None:
        self.arrivals = list(arrivals)

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def recvfrom(self, size: int) -> tuple[bytes, object]:
        if not self.arrivals:
            raise BlockingIOError
        arrival = self.arrivals.pop(0)
        if isinstance(arrival, OSError):
            raise arrival
        return arrival


def receiver(*arrivals: tuple[bytes, object] | OSError) -> UeventSocket:
    return UeventSocket(Channel(*arrivals))  # type: ignore[arg-type]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, UeventSocket]]:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    events = UeventSocket(ours)
    yield kernel, events
    events.close()
    kernel.close()


def test_a_recorded_event_is_read_whole() -> None:
    event = parse(VF)
    assert isinstance(event, Uevent)
    assert (event.action, event.subsystem) == ("add", "pci")
    assert event.devpath == "/devices/pci0000:00/0000:00:03.0"
    assert event.properties["PCI_SLOT_NAME"] == "0000:00:03.0"
    assert event.properties["MODALIAS"] == "pci:v00008086d000010CA"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0",
        b"libudev\0\xfe\xed\xca\xfe" + b"\0" * 32,
        b"add@/devices/x\0ACTION=add\0",
        CPU[:30],
        b"noise",
    ],
)
def test_what_is_no_event_of_the_kernel_is_passed_over(payload: bytes) -> None:
    assert parse(payload) is None


def test_everything_that_arrived_is_received_at_once(pair: tuple[socket.socket, UeventSocket]) -> None:
    kernel, events = pair
    assert events.receive() == []
    kernel.send(CPU)
    kernel.send(b"noise")
    kernel.send(VF)
    assert [event.subsystem for event in events.receive()] == ["cpu", "pci"]
    assert events.receive() == []


def test_only_the_kernel_is_believed() -> None:
    events = receiver((CPU, (4242, 1)), (VF, (0, 1)))
    assert [event.subsystem for event in events.receive()] == ["pci"]


def test_lost_events_are_told() -> None:
    events = receiver(OSError(errno.ENOBUFS, "No buffer space available"))
    with pytest.raises(EventsLost):
        events.receive()


def test_a_broken_socket_is_told() -> None:
    with pytest.raises(OSError, match="broken"):
        receiver(OSError(errno.EIO, "broken")).receive()


def test_the_real_socket_opens_and_has_nothing_of_others_to_say() -> None:
    try:
        events = UeventSocket()
    except PermissionError as error:
        pytest.skip(f"netlink is not permitted here: {error}")
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
    assert all(event.properties["SEQNUM"].isdigit() for event in events.receive())
    events.close()
