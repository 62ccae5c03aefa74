"""What the planes report, as log lines and as Kubernetes events; and quarantines, which nobody reports by himself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from bridge.ledger.holds import ClaimHolder, Hold, PodHolder, Quarantine
from bridge.ledger.ledger import Ledger
from bridge.planes import report as told
from bridge.planes.report import Asker, Cause, News, Report
from bridge.platform.events import Events, ObjectRef, Reason, claim_ref, node_ref, pod_ref

log = logging.getLogger("bridge.hand-out")


def log_news(news: News) -> None:
    """One line for each."""
    match news:
        case told.HandedOut():
            log.info("handed out", extra=_fields(news) | {"ms": round(news.seconds * 1000, 3)})
        case told.WasRefused():
            log.warning("refused", extra=_fields(news) | {"why": news.why, "reason": str(news.cause)})
        case told.Unproven():
            extra = {"plane": str(news.plane), "group": news.group, "devices": list(news.devices)}
            log.warning("handed out unproven", extra=extra | {"why": news.why})
        case told.Ended():
            log.info("released", extra=_fields(news) | {"why": news.why})
        case told.Forced():
            log.warning("released by force", extra=_fields(news) | {"who": news.who, "why": news.why})
        case told.ReservationLost():
            extra = {"group": news.group, "devices": list(news.devices), "holder": str(news.asker.claim)}
            log.warning("reservation lost", extra=extra | {"why": news.why})
        case told.Healing():
            log.warning("healing", extra=_conflict(news) | {"held_by": _names(news.holders)})
        case told.Healed():
            log.info("healed", extra=_conflict(news) | {"why": news.why})
        case told.ConflictStands():
            extra = _conflict(news) | {"held_by": _names(news.holders), "why": news.why}
            log.warning("conflict stands", extra=extra)
        case told.Quarantined() | told.QuarantineLifted() | told.ProofDegraded() | told.ProofRestored():
            pass  # who finds it out says more than this would


def _fields(news: told.HandedOut | told.WasRefused | told.Ended | told.Forced) -> dict[str, object]:
    return {
        "plane": str(news.plane),
        "group": news.group,
        "devices": list(news.devices),
        "holder": news.holder,
    }


def _conflict(news: told.Healing | told.Healed | told.ConflictStands) -> dict[str, object]:
    return {"group": news.group, "device": news.device, "claim": str(news.asker.claim)}


def _names(holds: Iterable[Hold]) -> list[str]:
    return list(dict.fromkeys(str(hold.holder) for hold in holds))


class EventNews:
    """Posts what an owner of a pod or of the node should know.

    `node` is this node's name.
    """

    def __init__(self, events: Events, node: str) -> None:
        self._events = events
        self._node = node_ref(node)

    def __call__(self, news: News) -> None:
        """Post the event that the news is worth, if any."""
        match news:
            case told.WasRefused(asker=None):
                self._tell([self._node], Reason.DEVICE_REFUSED, f"{news.why}.{_on_node(news)}")
            case told.WasRefused(asker=Asker() as asker):
                advice = advise(news.blockers, news.cause)
                self._tell(concerned(asker), Reason.DEVICE_REFUSED, f"{news.why}.{advice}")
            case told.ReservationLost():
                text = f"{news.why}.{advise(news.blockers, Cause.HELD)}"
                self._tell(concerned(news.asker), Reason.RESERVATION_LOST, text)
            case told.Forced():
                text = f"{_listed(news.devices)} of group {news.group} taken from {news.holder} by {news.who}: {news.why}"
                self._tell([self._node], Reason.RELEASED_BY_FORCE, text)
            case told.Healing():
                self._tell(concerned(news.asker), Reason.HEALING, _healing(news))
            case told.Healed():
                text = f"the taint on {news.device} is taken back: {news.why}"
                self._tell(concerned(Asker(news.asker.claim)), Reason.HEALED, text, warning=False)
            case told.ConflictStands():
                self._tell(concerned(news.asker), Reason.NOT_HEALED, _stands(news))
            case told.Quarantined():
                self._tell([self._node], Reason.QUARANTINED, _quarantine(news.group, news.device, news.why))
            case told.QuarantineLifted():
                text = f"{_what(news.group, news.device)} is offered again; it was in quarantine: {news.why}"
                self._tell([self._node], Reason.QUARANTINE_LIFTED, text, warning=False)
            case told.ProofDegraded():
                text = f"{news.source} does not answer ({news.trouble}): {news.effect}. See `bridge doctor`."
                self._tell([self._node], Reason.PROOF_DEGRADED, text)
            case told.ProofRestored():
                text = f"{news.source} answers again"
                self._tell([self._node], Reason.PROOF_RESTORED, text, warning=False)
            case told.HandedOut() | told.Ended() | told.Unproven():
                pass  # everyday, or the log's

    def _tell(self, about: Iterable[ObjectRef], reason: Reason, text: str, *, warning: bool = True) -> None:
        for one in about:
            self._events.tell(one, reason, text, warning=warning)


def concerned(asker: Asker) -> tuple[ObjectRef, ...]:
    """The claim that asked, and its pods."""
    claim = asker.claim
    pods = (pod_ref(pod.namespace, pod.name, pod.uid) for pod in asker.pods)
    return (claim_ref(claim.namespace, claim.name, claim.uid), *pods)


def advise(blockers: Iterable[Hold], cause: Cause) -> str:
    """What the owner of a claim can do about a refusal; empty where the reason says it. Pure."""
    if cause is Cause.QUARANTINED:
        return " `bridge explain` on the node says what to do."
    names = _names(blockers)
    if cause is not Cause.HELD or not names:
        return ""
    return (
        f" To have another device, delete this claim's pod: its controller makes a new one. To have this one, "
        f"delete {deletable(blockers)}."
    )


def deletable(holds: Iterable[Hold]) -> str:
    """What to delete so that holds end, for people. Pure."""
    found = dict.fromkeys(_deletable(hold) for hold in holds)
    return " and ".join(found)


def _deletable(hold: Hold) -> str:
    match hold.holder:
        case PodHolder() as pod if pod.known:
            return str(pod)
        case PodHolder():
            return "the pod that has it, which `bridge holds` on the node names once it is known"
        case ClaimHolder() as claim:
            return f"the pods of {claim}"


def _on_node(news: told.WasRefused) -> str:
    if news.cause is Cause.HELD:
        return " The pod that asked has failed; its controller makes a new one."
    return ""


def _healing(news: told.Healing) -> str:
    return (
        f"{news.device} was allocated to this claim, but {_listed(_names(news.holders))} has it already through the "
        f"device plugin API: the device is tainted, so that the cluster deletes this claim's pod and its controller "
        f"makes another, which gets another device"
    )


def _stands(news: told.ConflictStands) -> str:
    holders = _listed(_names(news.holders)) or "somebody else"
    return (
        f"{news.device} was allocated to this claim, but {holders} has it, and the pod is not moved by itself: "
        f"{news.why}.{advise(news.holders, Cause.HELD)}"
    )


def _quarantine(group: str, device: str, why: str) -> str:
    return f"{_what(group, device)} is not offered any more, on either plane: {why}"


def _what(group: str, device: str) -> str:
    if group == "*":
        return "every device of this node"
    return f"every device of group {group}" if device == "*" else f"{device} of group {group}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


class QuarantineNews:
    """Reports the quarantines that began and ended, whoever made them; the ledger is the one place where they are."""

    def __init__(self, ledger: Ledger, report: Report) -> None:
        self._ledger = ledger
        self._report = report
        self._known: dict[tuple[str, str], Quarantine] = {}
        self._look()
        ledger.subscribe(lambda parts: None if parts else self._look())

    def _look(self) -> None:
        now = {(q.group, q.device): q for q in self._ledger.account.quarantines()}
        before, self._known = self._known, now
        for where, quarantine in now.items():
            if where not in before:
                self._report.tell(told.Quarantined(*where, quarantine.reason))
        for where, quarantine in before.items():
            if where not in now:
                self._report.tell(told.QuarantineLifted(*where, quarantine.reason))


def source_news(
    report: Report, describe: Callable[[str], tuple[str, str]], also: Callable[[str, bool], None]
) -> Callable[[str, bool], None]:
    """Told of each source whether it answers: reports it, and passes it on.

    `describe` gives a source's trouble and what its absence does.
    """

    def answered(source: str, yes: bool) -> None:
        also(source, yes)
        if source == "kubelet":
            return  # new after each start; where it is away, podresources does not answer either
        if not yes:
            report.tell(told.ProofDegraded(source, *describe(source)))
        elif source in silent:
            report.tell(told.ProofRestored(source))
        (silent.discard if yes else silent.add)(source)

    silent: set[str] = set()
    return answered
