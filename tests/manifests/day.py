"""A day of the daemon on a real node, in which it does everything that it has rights for.

What it asked of the API server is read from the audit log, what it complains of from wherever an operator would look:
its log, events, and its NodeBridge.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.daemon.settings import Settings
from bridge.planes.modes import LABEL
from dra_v1.slice_plan import slice_name
from tests.cluster import ApiError, Cluster, audit
from tests.e2e import journal
from tests.e2e.daemon import Daemon
from tests.e2e.objects import Container, Manifest, PodClaim, Request, pod
from tests.e2e.stage import Group, Stage
from tests.manifests.rights import USER, Pair, Rights

DEVICES = 2
LIMIT_S = 40.0
"""For each step; the longest waits for a kubelet to look again at a pod."""

BINDS = (1, 36)
"""The release from which binding conditions, and resource names of classes, are there without a gate."""

BRIDGES = "device-bridge.io/v1alpha1"
NONSENSE = ("yesterday", "tomorrow", "yesterday")
"""Modes that there are not; the last is told again."""

PROVOKED = {"mode refused", "mode waits"}


@dataclass(frozen=True, slots=True)
class Saying:
    """Something that the daemon says of itself.

    Attributes:
        where: what an operator would look at.
        text: what is said.
    """

    where: str
    text: str


class Noticed(Exception):
    """Somebody who looks would know by now which right is missing.

    Attributes:
        said: what tells it.
    """

    def __init__(self, said: Saying) -> None:
        super().__init__(f"{said.where}: {said.text}")
        self.said = said


class ImpatientDaemon(Daemon):
    """Started without waiting for it to be ready; see `tests.manifests.impatient`."""

    def start(self) -> None:
        self.launch()

    def command(self) -> list[str | Path]:
        settings = Settings(self.config, self._cluster.node_name, self._kubeconfig)
        return [sys.executable, "-m", "tests.manifests.impatient", settings.dump()]


class Day(Stage):
    """One day: `live` goes through all of it.

    Attributes:
        rights: what the daemon may do.
        lacks: what it may not do at the moment; any wait ends when that is said.
        unheard: what is said with these words does not count.
    """

    def __init__(self, cluster: Cluster, kubeconfig: Path, folder: Path, audit_log: Path) -> None:
        super().__init__(cluster, kubeconfig, folder)
        self.dual, self.moved = self.group("acc"), self.group("own")
        self.rights = Rights(cluster, [self.dual.driver, self.moved.driver])
        self.lacks: Pair | None = None
        self.unheard = ""
        self._audit_log = audit_log
        self._heard_before = len(list(audit.entries(audit_log)))

    # Life

    def open(self) -> None:
        """A node on which this daemon has never been, and where others have left something in its way."""
        super().open()
        try:
            self.cluster.delete("NodeBridge", self.cluster.node_name, api_version=BRIDGES)
        except ApiError as error:
            if error.code != 404:
                raise
        driver, node = self.dual.driver, self.cluster.node_name
        # A name that it would take, and a pool of its own that it no longer has.
        self._slice(slice_name(0, driver, node), "other.example", "elsewhere")
        self._slice(f"left-{driver}", driver, node)
        for group in (self.dual, self.moved):
            for index in range(DEVICES):
                self.plug(group.path(index))

    def close(self) -> None:
        """Give the rights back, so that everything can end in order."""
        if self.lacks is not None:
            self.provoked.add("slices cannot be published now")
            self.lacks = None
        self.rights.give()
        self._label(self.dual, None)
        self._label(self.moved, None)
        super().close()
        name = slice_name(0, self.dual.driver, self.cluster.node_name)
        self.cluster.api.delete(f"{self._slices_path()}/{name}")

    def make_daemon(self, config: Path, arguments: Any) -> Daemon:
        assert not arguments
        return ImpatientDaemon(self.cluster, self._kubeconfig, config, f"bridge-{self.number}")

    def _allow(self, drivers: Any) -> None:
        """The rights are what the test is about."""

    def _slice(self, name: str, driver: str, node: str) -> None:
        version = f"resource.k8s.io/{self.dra.version}"
        pool = {"name": f"left-{self.number}", "generation": 1, "resourceSliceCount": 1}
        spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": []}
        body = {"apiVersion": version, "kind": "ResourceSlice", "metadata": {"name": name}, "spec": spec}
        self.cluster.api.create(self._slices_path(), body)

    def _slices_path(self) -> str:
        return self.cluster.api.path(f"resource.k8s.io/{self.dra.version}", "ResourceSlice")

    # What is done

    @property
    def binds(self) -> bool:
        """Whether this release has binding conditions."""
        return self.cluster.release.major_minor >= BINDS

    def live(self) -> None:
        """All of it. Raises Noticed as soon as it is said that a right is missing, NotInTime if something fails."""
        self.begin()
        self.slices_are_repaired()
        self.a_refusal_is_told_again()
        self.pods_come_and_go()
        self.a_group_is_moved()

    def begin(self) -> None:
        """Start it, and wait until all it has is published."""
        carries = self.moved.resource if self.binds else ""
        self.make_class(self.moved, self.moved.driver, extended_resource=carries)
        self.start(
            self.dual.config(binding="auto" if self.binds else "off"),
            self.moved.config(keepResourceName=True, mode="device-plugin"),
        )
        self.until(self.daemon.ready, "the daemon to be ready")
        self.until(lambda: self.allocatable(self.dual) == DEVICES, "the devices to be allocatable")
        self.until(lambda: len(self.published(self.dual)) == DEVICES, "the devices to be published")
        self.until(self._is_ready, "the NodeBridge to say that the node is ready")
        if self.binds:
            self.until(self.waiting, "the devices to wait for the daemon")

    def slices_are_repaired(self) -> None:
        """What was left is gone, and what somebody deletes comes back."""
        before = self._slice_uids()
        left = f"left-{self.dual.driver}"
        self.until(lambda: left not in before and left not in self._slice_uids(), "what was left to be gone")
        for name in before:
            self.cluster.api.delete(f"{self._slices_path()}/{name}")
        gone = set(before.values())
        self.until(
            lambda: (now := set(self._slice_uids().values())) and not now & gone, "the slices to be back"
        )

    def a_refusal_is_told_again(self) -> None:
        """An event is made, and counted where the same is to be told again."""
        for number, mode in enumerate(NONSENSE, start=1):
            self._label(self.dual, mode)
            self.until(lambda n=number: self._refusals() == n, f"refusal {number}")  # type: ignore[misc]
        self.until(lambda: 2 in [e["count"] for e in self._events()], "a refusal to be counted")
        self._label(self.dual, None)

    def pods_come_and_go(self) -> None:
        """A device is taken on each plane, and both are free again."""
        holds = self.holding(self.dual.pattern, excl=False)
        self.apply(pod("old", Container(holds, resources={self.dual.resource: 1})))
        self.until(lambda: self._ready("old"), "the pod of the device plugin API to run")
        self.until(lambda: len(self.published(self.dual)) == DEVICES - 1, "its device to be withdrawn")
        self.a_claim_is_bound("new")
        self.until(lambda: self._ready("new"), "the pod with a claim to run")
        for name in ("old", "new"):
            self.cluster.delete("Pod", name, self.namespace, wait=None)
        self.cluster.delete("ResourceClaim", "new", self.namespace, wait=None)
        self.until(lambda: self._released() == {"device-plugin", "dra"}, "both devices to be released")
        self.until(lambda: len(self.published(self.dual)) == DEVICES, "both devices to be offered again")

    def a_claim_is_bound(self, name: str) -> None:
        """A pod that the kubelet cannot start yet, until its claim is watched; then it can."""
        self.apply(self.dra.claim(name, Request("device", self.dual.name)))
        made = pod(
            name,
            Container(self.holding(self.dual.pattern, excl=False), claims=("device",)),
            claims=[PodClaim("device", claim=name)],
        )
        made["spec"]["volumes"].append({"name": "late", "configMap": {"name": "late"}})
        made["spec"]["containers"][0]["volumeMounts"].append({"name": "late", "mountPath": "/late"})
        self.apply(made)
        self.until(lambda: "watch resourceclaims" in map(str, self.asked()), "the claim to be watched")
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": {}})

    def a_group_is_moved(self) -> None:
        """A group goes on under its name, or is told why it cannot."""
        self._label(self.moved, "dra")
        if self.binds:
            self.until(lambda: self._mode(self.moved) == ("dra", "Settled"), "the group to be in mode dra")
        else:
            self.until(lambda: self._mode(self.moved)[1] == "Refused", "the group to be refused")

    # What is seen

    def until(self, predicate: Callable[[], Any], what: str) -> None:
        """Wait for something, or for the missing right to be named. Raises NotInTime, Noticed."""

        def look() -> Any:
            self._listen()
            done = predicate()
            self._listen()  # what is waited for may be what it leads to
            return done

        self.wait_for(look, LIMIT_S, what)

    def _listen(self) -> None:
        """Raise Noticed where the right that is missing now is named."""
        if self.lacks is None:
            return
        said = (one for one in self.sayings() if not self.unheard or self.unheard not in one.text)
        for one in said:
            if self.lacks.is_named_in(one.text):
                raise Noticed(one)

    def sayings(self) -> Iterator[Saying]:
        """All that an operator is told: warnings of the log, events, and what the NodeBridge says."""
        for record in journal.records(self.daemon.log()) if self._daemon is not None else ():
            if record["level"] not in ("debug", "info"):
                more = {k: v for k, v in record.items() if k not in ("level", "time", "logger", "message")}
                yield Saying(
                    f"log, {record['level']}, {record['message']!r}", " ".join(map(str, more.values()))
                )
        for event in self._events():
            yield Saying(f"event {event['reason']}", str(event["message"]))
        status = self._node_bridge()
        for one in (*status.get("conditions", ()), *status.get("groups", ())):
            yield Saying(f"NodeBridge, {one.get('type') or one.get('name')}", str(one.get("message", "")))

    def complaints(self) -> list[str]:
        """Warnings and worse, other than what is provoked on every day."""
        records = journal.records(self.daemon.log())
        return [
            json.dumps(r)
            for r in records
            if r["level"] not in ("debug", "info") and r["message"] not in PROVOKED
        ]

    def asked(self) -> set[Pair]:
        """What the daemon has asked for of resources, since this day began, granted or not."""
        found = set()
        for entry in list(audit.entries(self._audit_log))[self._heard_before :]:
            of = entry.get("objectRef") or {}
            if entry["user"]["username"] == USER and "resource" in of:
                resource = "/".join(filter(None, (of["resource"], of.get("subresource"))))
                found.add(Pair("", of.get("apiGroup", ""), resource, entry["verb"], False))
        return found

    def waiting(self) -> bool:
        """Whether the devices carry binding conditions."""
        devices = [
            d.get("basic") or d for s in self.slices(self.dual) for d in s["spec"].get("devices") or ()
        ]
        return bool(devices) and all("bindingConditions" in device for device in devices)

    def _slice_uids(self) -> dict[str, str]:
        found = self.cluster.list("ResourceSlice", fieldSelector=f"spec.driver={self.dual.driver}")
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

    def _events(self) -> list[Manifest]:
        """Of this test's objects, and of the Node where they are about this test's groups."""
        found = self.cluster.list("Event", self.namespace)
        of_node = self.cluster.list("Event", "default", fieldSelector="involvedObject.kind=Node")
        names = (f"group {group.name} " for group in (self.dual, self.moved))
        prefixes = tuple(names)
        return [*found, *(event for event in of_node if event["message"].startswith(prefixes))]

    def _refusals(self) -> int:
        said = [r for r in journal.records(self.daemon.log()) if r["message"] == "mode refused"]
        return len([r for r in said if r["group"] == self.dual.name])

    def _released(self) -> set[str]:
        return {entry.plane for entry in self.daemon.entries() if entry.message == journal.ENDED}

    def _node_bridge(self) -> Manifest:
        try:
            path = self.cluster.api.path(BRIDGES, "NodeBridge", name=self.cluster.node_name)
            status: Manifest = self.cluster.api.get(path).get("status") or {}
        except ApiError as error:
            if error.code != 404:
                raise
            return {}
        return status

    def _is_ready(self) -> bool:
        conditions = {one["type"]: one["status"] for one in self._node_bridge().get("conditions", ())}
        return conditions.get("Ready") == "True"

    def _mode(self, group: Group) -> tuple[str, str]:
        groups = {one["name"]: one for one in self._node_bridge().get("groups", ())}
        mine = groups.get(group.name, {})
        return mine.get("mode", ""), mine.get("phase", "")

    def _label(self, group: Group, mode: str | None) -> None:
        labels = {f"{LABEL}.{group.name}": mode}
        self.cluster.api.patch(f"/api/v1/nodes/{self.cluster.node_name}", {"metadata": {"labels": labels}})
