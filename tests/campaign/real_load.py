"""Pods of both planes that come and go: what each is to do is decided when it is made, and seen to here.

A pod ends by itself, or is deleted while it runs or before, or fails once and is started again by the kubelet. One
that was refused at admission is deleted, as its controller would do, and another comes in its place.
"""

from __future__ import annotations

import datetime
import enum
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.campaign.journal import DEVICE_PLUGIN, DRA, ENDED
from tests.campaign.real_bed import Bed, template
from tests.cluster import PROBE, ApiError
from tests.e2e.objects import JOURNAL_FOLDER, Manifest
from tests.e2e.stage import Group

TICK_S = 0.25
GRACE_S = 20
"""Termination grace of pods: longer than anything that lingers, so that no probe is killed before it notes its end."""

BAD_ENDS = {3: "its device was busy", 4: "it had no device, or could not open it"}
"""What the probe's statuses mean."""


class Fate(enum.Enum):
    """How a pod is to end."""

    ENDS = "ends by itself"
    DELETED = "is deleted"
    RESTARTED = "fails once and is started again"
    LINGERS = "does not hear that it shall end"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pod is to do.

    Attributes:
        name: of the pod; tells the plane.
        plane: by which it asks for devices.
        group: of which devices.
        count: how many.
        fate: how it ends.
        seconds: how long it holds its devices; for one that is deleted, its age then.
        claim: the template of its claim; for so many of the group by default.
        pattern: the glob of what it opens; the group's by default.
    """

    name: str
    plane: str
    group: Group
    count: int
    fate: Fate
    seconds: float
    claim: str = ""
    pattern: str = ""

    def manifest(self, journal: str) -> Manifest:
        """The pod."""
        asks = self.plane == DEVICE_PLUGIN
        amount = {self.group.resource: str(self.count)} if asks else {}
        variables = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid"}
        container: Manifest = {
            "name": "main",
            "image": PROBE,
            "command": self._command(journal),
            "env": [{"name": n, "valueFrom": {"fieldRef": {"fieldPath": p}}} for n, p in variables.items()],
            "volumeMounts": [{"name": "journal", "mountPath": "/journal"}],
            "resources": {"limits": amount, "claims": [] if asks else [{"name": "devices"}]},
        }
        of_claim = self.claim or template(self.group, self.count)
        claim = {"name": "devices", "resourceClaimTemplateName": of_claim}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"plane": self.plane}},
            "spec": {
                "restartPolicy": "OnFailure" if self.fate is Fate.RESTARTED else "Never",
                "terminationGracePeriodSeconds": GRACE_S,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "containers": [container],
                "resourceClaims": [] if asks else [claim],
                "volumes": [{"name": "journal", "hostPath": {"path": JOURNAL_FOLDER}}],
            },
        }

    def _command(self, journal: str) -> list[str]:
        hold = [
            "/probe",
            "hold",
            "--glob",
            self.pattern or self.group.pattern,
            "--excl",
            "--journal",
            journal,
            "--id",
        ]
        timed = ["--seconds", f"{self.seconds:.2f}"]
        match self.fate:
            case Fate.ENDS:
                return [*hold, "$(POD_UID)", *timed]
            case Fate.DELETED:
                return [*hold, "$(POD_UID)"]
            case Fate.LINGERS:
                return _shell(f"trap '' TERM; {' '.join([*hold, '$POD_UID', *timed])} & wait")
            case Fate.RESTARTED:
                # What is busy must not come right by a second try, so its status is kept.
                once = f"/journal/once-{self.name}"
                again = f"test -e {once} || {{ touch {once}; exit 1; }}"
                return _shell(f"{' '.join([*hold, '$POD_UID', *timed])} || exit $?; {again}")


def _shell(script: str) -> list[str]:
    return ["sh", "-c", script]


class Load:
    """Keeps so many pods going until it is told to stop.

    Attributes:
        made, refused: pods made, and pods that failed at admission, by plane.
        reasons: why pods failed, with how often.
        plans: of every pod that was made, by its name.
        broken: pods whose container did not find its devices as it should, for people.
    """

    def __init__(self, bed: Bed, groups: Sequence[Group], rng: random.Random, at_once: int) -> None:
        self.made: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.broken: list[str] = []
        self._bed = bed
        self._groups = groups
        self._rng = rng
        self._at_once = at_once
        self.plans: dict[str, Plan] = {}
        self._deleted: set[str] = set()
        self._told: set[str] = set()
        self._open = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._open.set()
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Stop making and ending pods, and wait for the thread to notice."""
        self._end.set()
        self._thread.join(timeout)

    def drain(self, limit: float) -> None:
        """Make no more pods, delete those there are, and wait until they are gone."""
        self._open.clear()
        self._bed.wait_for(lambda: not self._pods(), limit, "the node to be drained")

    def resume(self) -> None:
        """Make pods again."""
        self._open.set()

    def _run(self) -> None:
        while not self._end.wait(TICK_S):
            try:
                self._tick()
            except (ApiError, OSError):
                continue  # the API server is away, which is one of the disturbances
            except RuntimeError:
                return  # the node is gone: the campaign was broken off

    def _tick(self) -> None:
        alive = 0
        for pod in self._pods():
            name, phase = pod["metadata"]["name"], pod["status"].get("phase")
            plan = self.plans.get(name)
            if plan is None:
                continue  # somebody else's
            if phase in ENDED:
                self._over(plan, pod)
                self._delete(name)
            elif name in self._deleted:
                continue
            elif not self._open.is_set() or self._due(plan, pod):
                self._delete(name)
            else:
                alive += 1
        # A few at a time: how they arrive is part of the history.
        for _ in range(min(self._at_once - alive, self._rng.randint(0, 3)) if self._open.is_set() else 0):
            self._make()

    def _pods(self) -> list[dict[str, Any]]:
        return self._bed.cluster.list("Pod", self._bed.namespace)

    def _due(self, plan: Plan, pod: dict[str, Any]) -> bool:
        if plan.fate is not Fate.DELETED:
            return False
        born = _seconds(pod["metadata"]["creationTimestamp"])
        return time.time() - born > plan.seconds

    def _make(self) -> None:
        rng = self._rng
        plane = rng.choice((DEVICE_PLUGIN, DRA))
        fate = rng.choices((Fate.ENDS, Fate.DELETED, Fate.RESTARTED), (60, 30, 10))[0]
        # One that is deleted may be so before its container began.
        seconds = rng.uniform(0.2, 8) if fate is Fate.DELETED else rng.uniform(0.2, 5)
        number = sum(self.made.values())
        plan = Plan(
            f"{plane}-{number}", plane, rng.choice(self._groups), rng.choice((1, 1, 1, 2)), fate, seconds
        )
        self.plans[plan.name] = plan
        self.made[plane] += 1
        self._bed.apply(plan.manifest(self._bed.journal_file))

    def _delete(self, name: str) -> None:
        if name not in self._deleted:
            self._bed.cluster.delete("Pod", name, self._bed.namespace, wait=None)
            self._deleted.add(name)

    def _over(self, plan: Plan, pod: dict[str, Any]) -> None:
        if plan.name in self._deleted | self._told:
            return
        self._told.add(plan.name)
        status = pod["status"]
        if status["phase"] == "Failed":
            ended = [c["state"].get("terminated") or {} for c in status.get("containerStatuses") or ()]
            codes = [int(t["exitCode"]) for t in ended if t.get("containerID")]
            if not codes:
                self.refused[plan.plane] += 1
            elif set(codes) & BAD_ENDS.keys():
                text = ", ".join(BAD_ENDS.get(code, f"ended with {code}") for code in codes)
                self.broken.append(f"pod {plan.name}: {text}")
            self.reasons[str(status.get("reason") or f"exit {codes}")] += 1


def _seconds(stamp: str) -> float:
    return datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
