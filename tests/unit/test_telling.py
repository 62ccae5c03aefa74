"""What is found out and nobody asked for: each is told as an event and counted, not only logged."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from bridge.daemon.metrics import Metrics
from bridge.daemon.telling import EventNews
from bridge.ledger.holds import ClaimHolder, Plane
from bridge.planes.report import Idle, News, Orphaned, Report, TakenUp, Unproven
from bridge.platform.events import Events, ObjectRef, Reason

CLAIM = ClaimHolder("default", "c", "uid-c")
DP = Plane.DEVICE_PLUGIN


class Noted(Events):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def tell(self, about: ObjectRef, reason: Reason, message: str, *, warning: bool = True) -> None:
        assert warning
        self.told.append((f"{about.kind}/{about.name}", reason, message))


FOUND: list[tuple[News, str, str, str, str]] = [
    (
        TakenUp(DP, "acc", ("acc0",), "pod default/p"),
        "Node/n",
        "DeviceTakenUp",
        "acc0 of group acc with pod default/p",
        'taken_up_total{group="acc",plane="device-plugin"}',
    ),
    (
        Unproven(DP, "acc", ("acc0",), "no runtime answers"),
        "Node/n",
        "DeviceHandedOutUnproven",
        "nobody could say whether its last pod still has it: no runtime answers",
        'unproven_hand_outs_total{group="acc",plane="device-plugin"}',
    ),
    (
        Orphaned("acc", ("acc0",), str(CLAIM)),
        "Node/n",
        "DeviceClaimOrphaned",
        "acc0 of group acc is freed: claim default/c is gone",
        'orphans_total{group="acc",result="freed"}',
    ),
    (
        Idle("acc", ("acc0",), CLAIM),
        "ResourceClaim/c",
        "DeviceClaimUnused",
        "acc0 of group acc stays with this claim",
        'orphans_total{group="acc",result="idle"}',
    ),
]


@pytest.mark.parametrize(("news", "about", "reason", "text", "series"), FOUND)
def test_what_was_found_is_told_and_counted(
    news: News, about: str, reason: str, text: str, series: str
) -> None:
    events, metrics = Noted(), Metrics()
    Report(EventNews(events, "n"), metrics.count).tell(news)
    ((where, why, message),) = events.told
    assert (where, why) == (about, reason) and text in message
    assert f"device_bridge_{series} 1.0" in generate_latest(metrics.registry).decode()
