"""What the NodeBridge of this node says, gathered from where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge import __version__
from bridge.config import Group
from bridge.daemon.checks import Checks
from bridge.daemon.counting import Counting
from bridge.daemon.node_bridge import NodeBridge
from bridge.daemon.sources import Sources
from bridge.daemon.switching import Switching
from bridge.planes.report import Report
from bridge.planes.status import Facts, GroupState, Refusal, Silent
from bridge.platform.budget import Budget
from dra_v1.kube import KubeApi

_YOUNG = "kubelet"
"""A source that is silent for a while after each start of the kubelet; where it stays away, others are silent too."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How this node stands.

    Attributes:
        groups: of the configuration.
        switching: how each of them is switched.
        counting: what they have free and held.
        checks: what keeps the node from serving.
        sources: of evidence.
    """

    groups: Sequence[Group]
    switching: Switching
    counting: Counting
    checks: Checks
    sources: Sources

    def facts(self, refusal: Refusal | None) -> Facts:
        """As it is now; `refusal` is the last one."""
        modes = {mode.group: mode for mode in self.switching.snapshot()}
        groups = [GroupState(one, modes[one.name], self.counting.latest[one.name]) for one in self.groups]
        silent = [
            Silent(one.name, one.error, one.without)
            for one in self.sources.health()
            if one.available is False and one.name != _YOUNG
        ]
        return Facts(__version__, groups, self.checks.ready(), silent, refusal)

    def written(self, api: KubeApi, node: str, budget: Budget, report: Report) -> NodeBridge:
        """Who writes it to the cluster, told of everything that may change it."""
        made = NodeBridge(api, node, self.facts, budget)
        report.add(made.heard)
        self.counting.subscribe(made.wake)
        self.checks.subscribe(made.wake)
        self.switching.subscribe(made.wake)
        return made
