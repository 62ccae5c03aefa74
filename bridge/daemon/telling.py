"""What the planes report, as log lines and as Kubernetes events; and quarantines, which nobody reports by himself."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from bridge.ledger.holds import ClaimHolder, Hold, PodHolder, Quarantine
from bridge.ledger.ledger import Ledger
from bridge.planes import report as told
from bridge.planes.report import Asker, Cause, News, Report
from bridge.platform.events import Events, ObjectRef, Reason, claim_ref, node_ref, pod_ref

log = logging.getLogger("bridge.hand-out")

_LINES: Mapping[type[News], tuple[int, str]] = {
    told.HandedOut: (logging.INFO, "handed out"),
    told.WasRefused: (logging.WARNING, "refused"),
    told.Unproven: (logging.WARNING, "handed out unproven"),
    told.Ended: (logging.INFO, "released"),
    told.Forced: (logging.WARNING, "released by force"),
    told.Kept: (logging.WARNING, "kept without an allocation"),
    told.Reserved: (logging.INFO, "reserved"),
    told.ConditionSet: (logging.INFO, "binding condition"),
    told.ReservationLost: (logging.WARNING, "reservation lost"),
    told.Healing: (logging.WARNING, "healing"),
    told.Healed: (logging.INFO, "healed"),
    told.ConflictStands: (logging.WARNING, "conflict stands"),
    told.ModeSwitched: (logging.INFO, "mode switched"),
    told.ModeRefused: (logging.WARNING, "mode refused"),
    told.ModeWaiting: (logging.WARNING, "mode waits"),
}
"""Of quarantines and of evidence, those who find them out say more than a line from here would."""


def log_news(news: News) -> None:
    """One line for each."""
    line = _LINES.get(type(news))
    if line is not None:
        log.log(*line, extra=_fields(news))


def _fields(news: News) -> dict[str, object]:
    """Its fields, in the words of the log."""
    out: dict[str, object] = {}
    for field in dataclasses.fields(news):
        value = getattr(news, field.name)
        match field.name:
            case "seconds":
                out["ms"] = round(value * 1000, 3)
            case "asker":
                out |= {"claim": str(value.claim)} if value else {}
            case "blockers" | "holders":
                out |= {"held_by": _names(value)} if value else {}
            case "devices":
                out["devices"] = list(value)
            case "cause":
                out["reason"] = str(value)
            case name:
                out[name] = str(value)
    return out


def _names(holds: Iterable[Hold]) -> list[str]:
    return list(dict.fromkeys(str(hold.holder) for hold in holds))


@dataclass(frozen=True, slots=True)
class Saying:
    """What an event says, and about what; nothing named means the Node, and it may be told there too."""

    reason: Reason
    text: str
    about: tuple[ObjectRef, ...] = ()
    warning: bool = True
    also_node: bool = False


class EventNews:
    """Posts what an owner of a pod or of the node should know.

    `node` is this node's name.
    """

    def __init__(self, events: Events, node: str) -> None:
        self._events = events
        self._node = node_ref(node)

    def __call__(self, news: News) -> None:
        """Post the event that the news is worth, if any."""
        saying = of_claims(news) or of_node(news)
        if saying is not None:
            for one in (*saying.about, self._node) if saying.also_node or not saying.about else saying.about:
                self._events.tell(one, saying.reason, saying.text, warning=saying.warning)


def of_claims(news: News) -> Saying | None:
    """What to say on a claim and its pods, if the news is about one. Pure."""
    match news:
        case told.WasRefused(asker=Asker() as asker):
            text = f"{news.why}.{advise(news.blockers, news.cause)}"
            return Saying(Reason.DEVICE_REFUSED, text, concerned(asker))
        case told.ReservationLost():
            text = (
                f"{news.why}. Where the cluster has binding conditions or device taints the pod is sent elsewhere; "
                f"where it is not, an event on it says what to delete."
            )
            return Saying(Reason.RESERVATION_LOST, text, concerned(news.asker))
        case told.Healing():
            return Saying(Reason.HEALING, _healing(news), concerned(news.asker))
        case told.Healed():
            text = f"the taint on {news.device} is taken back: {news.why}"
            return Saying(Reason.HEALED, text, concerned(Asker(news.asker.claim)), warning=False)
        case told.Kept():
            return Saying(Reason.KEPT, _kept(news), concerned(Asker(news.claim)), also_node=True)
        case told.ConflictStands():
            return Saying(Reason.NOT_HEALED, _stands(news), concerned(news.asker))
        case told.Idle():
            text = (
                f"{_listed(news.devices)} of group {news.group} stays with this claim, and no pod of this node names "
                f"it: delete the claim if it is not needed"
            )
            return Saying(Reason.IDLE, text, concerned(Asker(news.claim)))
        case _:
            return None


def of_node(news: News) -> Saying | None:
    """What to say on the Node. Pure."""
    match news:
        case told.WasRefused():
            return Saying(Reason.DEVICE_REFUSED, f"{news.why}.{_after_refusal(news.cause)}")
        case told.Forced():
            what = f"{_listed(news.devices)} of group {news.group}"
            text = f"{what} was taken from {news.holder} by {news.who}: {news.why}"
            return Saying(Reason.RELEASED_BY_FORCE, text)
        case told.TakenUp() | told.Unproven() | told.Orphaned():
            return _found(news)
        case told.Quarantined():
            text = f"{_what(news.group, news.device)} is not offered any more, on either plane: {news.why}"
            return Saying(Reason.QUARANTINED, text)
        case told.QuarantineLifted():
            text = f"{_what(news.group, news.device)} is offered again; it was in quarantine: {news.why}"
            return Saying(Reason.QUARANTINE_LIFTED, text, warning=False)
        case told.ProofDegraded():
            text = f"{news.source} does not answer ({news.trouble}): {news.effect}. See `bridge doctor`."
            return Saying(Reason.PROOF_DEGRADED, text)
        case told.ProofRestored():
            return Saying(Reason.PROOF_RESTORED, f"{news.source} answers again", warning=False)
        case _:
            return of_mode(news)


def of_mode(news: News) -> Saying | None:
    """What to say on the Node of a group's mode. Pure."""
    match news:
        case told.ModeSwitched():
            text = f"group {news.group} is in mode {news.mode} now; it was in {news.before}"
            return Saying(Reason.MODE_SWITCHED, text, warning=False)
        case told.ModeRefused():
            text = (
                f"group {news.group} stays in mode {news.mode} and does not go to {news.wanted}: {news.why}"
            )
            return Saying(Reason.MODE_REFUSED, text)
        case told.ModeWaiting():
            text = f"group {news.group} is on its way to mode {news.wanted} and waits: {news.why}"
            return Saying(Reason.MODE_WAITING, text)
        case _:
            return None


def _found(news: told.TakenUp | told.Unproven | told.Orphaned) -> Saying:
    """What to say of what others did, or left undone."""
    what = f"{_listed(news.devices)} of group {news.group}"
    match news:
        case told.TakenUp():
            text = f"the kubelet shows {what} with {news.holder}, and not through this daemon: it is held from now on"
            return Saying(Reason.TAKEN_UP, text)
        case told.Unproven():
            text = f"{what} was given out again, and nobody could say whether its last pod still has it: {news.why}"
            return Saying(Reason.UNPROVEN, text)
        case told.Orphaned():
            text = (
                f"{what} is freed: {news.holder} is gone, no pod uses it, and the kubelet never unprepared it"
            )
            return Saying(Reason.ORPHANED, text)


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


def _after_refusal(cause: Cause) -> str:
    return " The pod that asked has failed; its controller makes a new one." if cause is Cause.HELD else ""


def _healing(news: told.Healing) -> str:
    return (
        f"{news.device} was allocated to this claim, but {_listed(_names(news.holders))} has it already through the "
        f"device plugin API: the device is tainted, so that the cluster deletes this claim's pod and its controller "
        f"makes another, which gets another device"
    )


def _kept(news: told.Kept) -> str:
    devices = [f"{news.group}/{device}" for device in news.devices]
    commands = " and ".join(f"`bridge release {device} --yes-i-know`" for device in devices)
    return (
        f"{news.claim} is not allocated any longer, but {_listed(devices)} is kept for it: the kubelet of this "
        f"node has not unprepared it, and does not list it for any pod. Nobody else gets it until then. Make sure "
        f"that nothing on the node uses it, then {commands}; deleting the claim frees it too, once that is proven"
    )


def _stands(news: told.ConflictStands) -> str:
    holders = _listed(_names(news.holders)) or "somebody else"
    return (
        f"{news.device} was allocated to this claim, but {holders} has it, and the pod is not moved by itself: "
        f"{news.why}.{advise(news.holders, Cause.HELD)}"
    )


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
