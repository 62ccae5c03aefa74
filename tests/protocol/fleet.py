"""A simulated cluster for the command line: Nodes, NodeBridges, and daemons that do as the labels say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from click.testing import Result
from typer.testing import CliRunner

from bridge.cli import app
from bridge.sandbox.cluster.apiserver import ApiServer
from bridge.sandbox.cluster.objects import Object, clone, meta, name_of
from bridge.sandbox.cluster.registry import Registry
from bridge.sandbox.cluster.resources import NODE_BRIDGES, PROFILES
from bridge.sandbox.cluster.store import Change, Store
from bridge.sandbox.observe import Observations

MODE = "device-bridge.io/mode"
BRIDGES = NODE_BRIDGES.plural


class Fleet:
    """The cluster, and `bridge` as an operator runs it there.

    Attributes:
        server: the API server; `registry` its inside.
        refuse, deaf: nodes whose daemons refuse each mode `dra`, or take up no label at all.
        order: nodes in the order in which their labels changed, with the new value.
    """

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server, self.registry = server, server.registry
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(kubeconfig(server.url))
        self.refuse: set[str] = set()
        self.deaf: set[str] = set()
        self.order: list[tuple[str, str | None]] = []
        self.heard: Callable[[str], None] = lambda node: None

    async def bridge(self, *arguments: str) -> Result:
        """Run a command; the server goes on meanwhile."""
        command = [*arguments, "--kubeconfig", str(self.kubeconfig)]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    async def json(self, *arguments: str) -> Any:
        """What a command that succeeds says to programs."""
        done = await self.bridge(*arguments, "-o", "json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def node(
        self,
        name: str,
        mode: str = "dual",
        *,
        ready: bool = True,
        groups: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        held: int = 0,
    ) -> None:
        """Add a node and what its daemon tells: groups are names and resources."""
        node = {"metadata": {"name": name, "labels": dict(labels or {})}}
        self.registry.create("nodes", node)
        stored = self.registry.get("nodes", name)
        stored["status"] = {"nodeInfo": {"kubeletVersion": self.registry.profile.git_version}}
        self.registry.replace("nodes", stored, "status")
        self.registry.create(BRIDGES, {"metadata": {"name": name}})
        told = [group_state(g, mode, r) for g, r in (groups or {"acc": "device-bridge.io/acc"}).items()]
        self.tell(name, status(mode, told, ready=ready, held=held))

    def tell(self, node: str, status: Object) -> None:
        """Write what a node's daemon says."""
        stored = self.registry.get(BRIDGES, node)
        stored["status"] = status
        self.registry.replace(BRIDGES, stored, "status")

    def said(self, node: str) -> Object:
        """What a node's daemon said last."""
        found: Object = self.registry.get(BRIDGES, node)["status"]
        return found

    def labels(self, node: str) -> Object:
        """The labels of a Node."""
        return dict(meta(self.registry.get("nodes", node)).get("labels") or {})

    def notes(self, node: str) -> Object:
        """The annotations of a Node."""
        return dict(meta(self.registry.get("nodes", node)).get("annotations") or {})

    def take_up(self, change: Change) -> None:
        """What the daemons do about a write."""
        if change.resource.plural != "nodes" or change.after is None:
            return
        before, after = _spoken(change.before), _spoken(change.after)
        node = name_of(change.after)
        if before == after:
            return
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        self.order += [(node, after.get(name)) for name in sorted(changed) if name.startswith(MODE)]
        asyncio.get_running_loop().call_soon(self._follow, node)

    def _follow(self, node: str) -> None:
        """Begin a switch, then end it, as two writes that a watch can tell apart."""
        self.heard(node)
        if node in self.deaf or self.registry.find_one(BRIDGES, node) is None:
            return
        now = self.said(node)
        wanted = {one["name"]: self._wanted(node, one) for one in now["groups"]}
        accepted = self.notes(node).get("device-bridge.io/accept-stranded-pods")
        if node in self.refuse and "dra" in wanted.values() and not accepted:
            self.tell(node, self._moved(now, wanted, "Refused"))
            return
        self.tell(node, self._moved(now, wanted, "Closing"))
        self.tell(node, self._moved(now, wanted, "Settled"))

    def _wanted(self, node: str, group: Object) -> str:
        labels = self.labels(node)
        return str(labels.get(f"{MODE}.{group['name']}") or labels.get(MODE) or "dual")

    def _moved(self, now: Object, wanted: Mapping[str, str], phase: str) -> Object:
        moved = clone(now)
        for one in moved["groups"]:
            to = wanted[one["name"]]
            done = phase == "Settled"
            one |= {"wanted": to, "mode": to if done else one["mode"], "phase": phase}
            if phase == "Refused":
                one |= {"reason": "NameNotCarried", "message": "the DeviceClass has no extendedResourceName"}
        return {**moved, **_whole(moved["groups"])}


def _spoken(node: Object | None) -> dict[str, str]:
    """Labels and annotations of a Node, which is what its daemon listens to."""
    of_node = (node or {}).get("metadata", {})
    return {**(of_node.get("labels") or {}), **(of_node.get("annotations") or {})}


def _whole(groups: list[Object]) -> Object:
    def one(field: str) -> str:
        found = {str(group[field]) for group in groups}
        return found.pop() if len(found) == 1 else "mixed"

    return {"wanted": one("wanted"), "mode": one("mode"), "phase": one("phase")}


def group_state(name: str, mode: str, resource: str) -> Object:
    """A group that is settled in a mode."""
    driver = f"{name}.device-bridge.io"
    return {
        "name": name,
        "resourceName": resource,
        "driverName": driver,
        "deviceClassName": driver,
        "wanted": mode,
        "mode": mode,
        "phase": "Settled",
    }


def status(mode: str, groups: list[Object], *, ready: bool = True, held: int = 0) -> Object:
    """The status of a NodeBridge that is settled."""
    why = {} if ready else {"reason": "NotServed", "message": "group acc is not registered"}
    return {
        "version": "0.1.0",
        "wanted": mode,
        "mode": mode,
        "phase": "Settled",
        "free": {"devicePlugin": 3, "dra": 3},
        "held": {"devicePlugin": held, "dra": 0},
        "groups": groups,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False", **why}],
    }


def kubeconfig(url: str) -> str:
    """A kubeconfig of a server that asks nobody who he is."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sandbox",
            "clusters": [{"name": "sandbox", "cluster": {"server": url}}],
            "users": [{"name": "operator", "user": {"token": "operator"}}],
            "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "operator"}}],
        }
    )


@asynccontextmanager
async def running(folder: Path, profile: str = "1.37", *, crd: bool = True) -> AsyncIterator[Fleet]:
    """A cluster without nodes."""
    server = await ApiServer(Registry(Store(), PROFILES[profile]), Observations()).start()
    if not crd:
        server.registry.withdraw(NODE_BRIDGES)
    fleet = Fleet(server, folder)
    unlisten = server.registry.store.listen(fleet.take_up)
    try:
        yield fleet
    finally:
        unlisten()
        await server.stop()
