"""Prometheus metrics of the daemon, and the report of the planes that feeds them and the log.

Failures are counted in the same place as successes, so that no path is left out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bridge.ledger.account import Account
from bridge.ledger.holds import Plane
from bridge.ledger.ledger import Ledger
from bridge.planes.projection import free_units, units_of
from bridge.planes.roster import Roster
from bridge.planes.rosters import Rosters

log = logging.getLogger("bridge.hand-out")

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """All series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.hand_outs = Counter(
            "device_bridge_hand_outs", "Devices handed out.", ["plane", "group"], registry=self.registry
        )
        self.refusals = Counter(
            "device_bridge_refusals", "Requests refused.", ["plane", "group"], registry=self.registry
        )
        self.unproven = Counter(
            "device_bridge_unproven_hand_outs",
            "Devices handed out again without a word of the runtime on their last pod.",
            ["plane", "group"],
            registry=self.registry,
        )
        self.releases = Counter(
            "device_bridge_releases", "Holds ended on proof.", ["plane", "group"], registry=self.registry
        )
        self.seconds = Histogram(
            "device_bridge_hand_out_seconds",
            "From the call to the durable answer, without reading the claim.",
            ["plane"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.devices = Gauge(
            "device_bridge_devices",
            "Shares of devices by state: free, held by a plane, unhealthy, quarantined.",
            ["group", "state"],
            registry=self.registry,
        )
        self.published = Gauge(
            "device_bridge_slices_published_timestamp_seconds",
            "When the ResourceSlices of a group were last found to be as they should, Unix time.",
            ["group"],
            registry=self.registry,
        )
        self.registered = Gauge(
            "device_bridge_registered",
            "Whether the kubelet has the plane registered.",
            ["plane", "group"],
            registry=self.registry,
        )
        self.requests = Counter(
            "device_bridge_api_requests",
            "Requests to the API server.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.evidence = Gauge(
            "device_bridge_evidence_available",
            "Whether a source of evidence on device plugin holds answers.",
            ["source"],
            registry=self.registry,
        )

    async def follow(self, rosters: Rosters, ledger: Ledger) -> None:
        """Keep the counts of devices current, until cancelled; a burst of changes costs one count a second.

        Counted here and not when scraped: that is another thread, and the account belongs to the event loop.
        """
        with rosters.any.listen() as changes:
            while True:
                for group in rosters.pulses:
                    for state, count in count_by_state(rosters.of(group), ledger.account).items():
                        self.devices.labels(group, state).set(count)
                await changes.wait()
                await asyncio.sleep(1)

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, resource, code).inc()

    def source_answers(self, source: str, yes: bool) -> None:
        """Note whether a source of evidence answered."""
        self.evidence.labels(source).set(yes)


def count_by_state(roster: Roster, account: Account) -> dict[str, int]:
    """How many shares of a group are free, held by each plane, unhealthy, quarantined. Pure.

    A held share of an unhealthy or quarantined device counts as held, so a quarantine of held devices shows here
    only when they are given back. Silicon that another group holds counts there, and here as nothing.
    """
    counts = dict.fromkeys(("free", *Plane, "unhealthy", "quarantined"), 0)
    for plane in Plane:
        counts[plane] = sum(units_of(hold, roster) for hold in account.of_group(plane, roster.group.name))
    for device in roster.devices:
        room = free_units(roster, account, device)
        if account.quarantine_of(device.group, device.name) is not None:
            counts["quarantined"] += room
        elif not device.health.ok:
            counts["unhealthy"] += room
        else:
            counts["free"] += room
    return counts


class MetricsReport:
    """The report of the planes: one log line for each hand-out, refusal and release, and the counters."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def handed_out(
        self, plane: Plane, group: str, devices: Sequence[str], holder: str, seconds: float
    ) -> None:
        """Devices were handed out, durably."""
        self._metrics.hand_outs.labels(plane, group).inc(len(devices))
        self._metrics.seconds.labels(plane).observe(seconds)
        log.info(
            "handed out", extra=_fields(plane, group, devices, holder) | {"ms": round(seconds * 1000, 3)}
        )

    def refused(self, plane: Plane, group: str, devices: Sequence[str], holder: str, why: str) -> None:
        """A request was refused."""
        self._metrics.refusals.labels(plane, group).inc()
        log.warning("refused", extra=_fields(plane, group, devices, holder) | {"why": why})

    def unproven(self, plane: Plane, group: str, devices: Sequence[str], why: str) -> None:
        """Devices were handed out on less proof than there should be."""
        self._metrics.unproven.labels(plane, group).inc(len(devices))
        extra = {"plane": str(plane), "group": group, "devices": list(devices), "why": why}
        log.warning("handed out unproven", extra=extra)

    def ended(self, plane: Plane, group: str, devices: Sequence[str], holder: str, why: str) -> None:
        """Holds ended."""
        self._metrics.releases.labels(plane, group).inc(len(devices))
        log.info("released", extra=_fields(plane, group, devices, holder) | {"why": why})


def _fields(plane: Plane, group: str, devices: Sequence[str], holder: str) -> dict[str, object]:
    return {"plane": str(plane), "group": group, "devices": list(devices), "holder": holder}
