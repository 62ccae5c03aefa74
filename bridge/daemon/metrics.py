"""Prometheus metrics of the daemon; of what the planes report, failures beside successes.

Every path that reports is counted in one place, so that none is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bridge.config import Mode
from bridge.ledger.holds import Plane
from bridge.planes import report as told
from bridge.planes.counts import PLANE_OF, Counts
from bridge.planes.modes import GroupMode, Phase
from bridge.platform.budget import Budget

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """All series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._silent: set[str] = set()
        self.hand_outs = Counter(
            "device_bridge_hand_outs", "Devices handed out.", ["plane", "group"], registry=self.registry
        )
        self.refusals = Counter(
            "device_bridge_refusals",
            "Requests refused, by reason: held, quarantined, unavailable, moving, in-use, ledger, cdi, other.",
            ["plane", "group", "reason"],
            registry=self.registry,
        )
        self.reserved = Counter(
            "device_bridge_reservations",
            "Devices reserved before the kubelet asked.",
            ["group"],
            registry=self.registry,
        )
        self.conditions = Counter(
            "device_bridge_binding_conditions",
            "What the scheduler was told of a claim: reserved, held-elsewhere; failed: it could not be told yet.",
            ["group", "outcome"],
            registry=self.registry,
        )
        self.binding = Gauge(
            "device_bridge_two_phase_binding",
            "Whether pods of a group are bound only after their devices are reserved.",
            ["group"],
            registry=self.registry,
        )
        self.early_word = Gauge(
            "device_bridge_early_word",
            "Whether the daemon hears of pods before the kubelet asks; by whose pods.",
            ["pods"],
            registry=self.registry,
        )
        self.watches = Gauge(
            "device_bridge_claim_watches", "Watches on single claims now.", registry=self.registry
        )
        self.budgeted = Gauge(
            "device_bridge_budgeted_requests",
            "Requests to the API server within the budget so far: all, and those that had to wait for it.",
            ["which"],
            registry=self.registry,
        )
        self.lost = Counter(
            "device_bridge_reservations_lost",
            "Claims allocated what somebody else has.",
            ["group"],
            registry=self.registry,
        )
        self.unproven = Counter(
            "device_bridge_unproven_hand_outs",
            "Devices handed out again without a word of the runtime on their last pod.",
            ["plane", "group"],
            registry=self.registry,
        )
        self.taken_up = Counter(
            "device_bridge_taken_up",
            "Devices that pods were found to have past the ledger, or from before it.",
            ["plane", "group"],
            registry=self.registry,
        )
        self.orphans = Counter(
            "device_bridge_orphans",
            "Claims without anybody: idle (allocated, no pod names it), freed (gone, never unprepared).",
            ["group", "result"],
            registry=self.registry,
        )
        self.releases = Counter(
            "device_bridge_releases",
            "Holds ended, by why: proof (no source shows a use), deallocated (the claim), forced (by an operator).",
            ["plane", "group", "why"],
            registry=self.registry,
        )
        self.forced = Counter(
            "device_bridge_forced_releases",
            "Holds that an operator ended without proof.",
            ["plane", "group"],
            registry=self.registry,
        )
        self.kept = Counter(
            "device_bridge_kept_without_allocation",
            "Shares found kept for a claim that has no device any longer and that the kubelet does not unprepare.",
            ["group"],
            registry=self.registry,
        )
        self.quarantines = Counter(
            "device_bridge_quarantines",
            "Quarantines that began; what is quarantined now is a state of device_bridge_devices.",
            ["group"],
            registry=self.registry,
        )
        self.healings = Counter(
            "device_bridge_healings",
            "Claims that lost a device and were (moved) or were not (left) moved by a taint.",
            ["group", "result"],
            registry=self.registry,
        )
        self.events = Counter(
            "device_bridge_events",
            "Kubernetes events: posted, repeated, same (within ten minutes), dropped (too many), failed.",
            ["result"],
            registry=self.registry,
        )
        self.degraded = Gauge(
            "device_bridge_proof_degraded",
            "Whether a source of evidence does not answer, so that releases wait.",
            registry=self.registry,
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
            "Shares of devices by state. With a plane: reserved, prepared, releasing (DRA), granted, held (device "
            "plugin). Without: free, unhealthy, quarantined. They add up to all; tainted ones count twice.",
            ["group", "plane", "state"],
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
        self.mode = Gauge(
            "device_bridge_mode",
            "1 for the mode that a group was last wholly in.",
            ["group", "mode"],
            registry=self.registry,
        )
        self.wanted = Gauge(
            "device_bridge_mode_wanted",
            "1 for the mode that is wanted of a group.",
            ["group", "mode"],
            registry=self.registry,
        )
        self.phase = Gauge(
            "device_bridge_mode_phase",
            "1 for where a group is on its way between modes: Settled, Opening, Closing, Waiting, Refused.",
            ["group", "phase"],
            registry=self.registry,
        )
        self.phase_since = Gauge(
            "device_bridge_mode_phase_seconds",
            "For how long it has been there.",
            ["group"],
            registry=self.registry,
        )
        self.evidence = Gauge(
            "device_bridge_evidence_available",
            "Whether a source of evidence on device plugin holds answers.",
            ["source"],
            registry=self.registry,
        )

    def show(self, group: str, counts: Counts, tainted: int) -> None:
        """The counts of a group as they are now, and how many of its devices are tainted."""
        for (plane, state), count in states(counts).items():
            self.devices.labels(group, plane, state).set(count)
        self.devices.labels(group, Plane.DRA, "tainted").set(tainted)

    def follow_budget(self, budget: Budget) -> None:
        """Show how the budget of requests was used."""
        self.budgeted.labels("all").set_function(lambda: budget.taken)
        self.budgeted.labels("waited").set_function(lambda: budget.waited)

    def mode_of(self, now: GroupMode, seconds: Callable[[], float]) -> None:
        """Show a group's mode; `seconds`: for how long it has been in its phase."""
        for mode in Mode:
            self.mode.labels(now.group, mode).set(mode is now.mode)
            self.wanted.labels(now.group, mode).set(mode is now.wanted)
        for phase in Phase:
            self.phase.labels(now.group, phase).set(phase is now.phase)
        self.phase_since.labels(now.group).set_function(seconds)

    def event(self, result: str) -> None:
        """Count what became of an event."""
        self.events.labels(result).inc()

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self.requests.labels(verb, resource, code).inc()

    def source_answers(self, source: str, yes: bool) -> None:
        """Note whether a source of evidence answered."""
        self.evidence.labels(source).set(yes)

    def count(self, news: told.News) -> None:
        """Count what the planes report."""
        match news:
            case told.HandedOut():
                self.hand_outs.labels(news.plane, news.group).inc(len(news.devices))
                self.seconds.labels(news.plane).observe(news.seconds)
            case told.WasRefused():
                self.refusals.labels(news.plane, news.group, news.cause).inc()
            case told.Ended():
                why = "deallocated" if news.plane is Plane.DRA else "proof"
                self.releases.labels(news.plane, news.group, why).inc(len(news.devices))
            case told.Forced():
                self.releases.labels(news.plane, news.group, "forced").inc(len(news.devices))
                self.forced.labels(news.plane, news.group).inc(len(news.devices))
            case told.Kept():
                self.kept.labels(news.group).inc(len(news.devices))
            case told.TakenUp() | told.Unproven() | told.Idle() | told.Orphaned():
                self._count_found(news)
            case _:
                self._count_trouble(news)

    def _count_found(self, news: told.TakenUp | told.Unproven | told.Idle | told.Orphaned) -> None:
        match news:
            case told.TakenUp():
                self.taken_up.labels(news.plane, news.group).inc(len(news.devices))
            case told.Unproven():
                self.unproven.labels(news.plane, news.group).inc(len(news.devices))
            case told.Idle():
                self.orphans.labels(news.group, "idle").inc()
            case told.Orphaned():
                self.orphans.labels(news.group, "freed").inc()

    def _count_trouble(self, news: told.News) -> None:
        match news:
            case told.Reserved():
                self.reserved.labels(news.group).inc(len(news.devices))
            case told.ConditionSet():
                self.conditions.labels(news.group, news.outcome).inc()
            case told.ReservationLost():
                self.lost.labels(news.group).inc()
            case told.Quarantined():
                self.quarantines.labels(news.group).inc()
            case told.Healed():
                self.healings.labels(news.group, "moved").inc()
            case told.ConflictStands():
                self.healings.labels(news.group, "left").inc()
            case told.ProofDegraded():
                self._silent.add(news.source)
            case told.ProofRestored():
                self._silent.discard(news.source)
            case _:
                pass  # the end of a quarantine and the begin of a healing: their counterparts are counted
        self.degraded.set(bool(self._silent))


def states(counts: Counts) -> dict[tuple[str, str], int]:
    """The counts by (plane, state), as `device_bridge_devices` is labelled. Pure."""
    held = {(str(PLANE_OF[phase]), str(phase)): count for phase, count in counts.held.items()}
    free = {"free": counts.free, "unhealthy": counts.unhealthy, "quarantined": counts.quarantined}
    return held | {("", state): count for state, count in free.items()}
