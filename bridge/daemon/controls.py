"""What the control socket answers: holds with their evidence, explanations, releases, the sources' health.

What explains and releases is loaded by the first call that needs it; most daemons are never asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bridge.config import Config
from bridge.daemon.checks import Checks
from bridge.daemon.control import Call, Refusal
from bridge.daemon.rivals import Rivals
from bridge.daemon.sources import Sources
from bridge.ledger.ledger import Ledger
from bridge.ledger.reconcile import Reconciler
from bridge.ledger.store import LedgerError
from bridge.planes.early_word import EarlyWord
from bridge.planes.healing import Healing
from bridge.planes.report import Report
from bridge.planes.roster import Roster
from bridge.planes.rosters import Rosters
from bridge.platform.roots import Roots

if TYPE_CHECKING:
    from bridge.planes.explain import Target


@dataclass(frozen=True, slots=True)
class Controls:
    """The calls, over what the daemon has in memory."""

    config: Config
    ledger: Ledger
    rosters: Rosters
    reconciler: Reconciler
    sources: Sources
    healing: Healing
    report: Report
    checks: Checks
    roots: Roots
    rivals: Rivals
    early: EarlyWord | None

    def calls(self) -> Mapping[str, Call]:
        """By name."""
        return {
            "holds": self._holds,
            "explain": self._explain,
            "release": self._release,
            "health": self._health,
        }

    async def _holds(self, request: Mapping[str, Any]) -> object:
        from bridge.planes.explain import rows

        return rows(self.ledger.account, self.reconciler.evidence)

    async def _explain(self, request: Mapping[str, Any]) -> object:
        from bridge.planes.explain import NotFound, explained

        name = str(request.get("device") or "")
        try:
            return explained(name, self._rosters(), self.ledger.account, self.healing.moving)
        except NotFound as error:
            raise Refusal(str(error)) from error

    async def _release(self, request: Mapping[str, Any]) -> object:
        from bridge.planes.release import StillUsed, as_row, release, witnesses

        target = self._target(request)
        async with witnesses(
            self.config.daemon, self.roots, self._rosters(), self._pods_of, lambda: self.rivals.found
        ) as seen:
            try:
                done = await release(
                    target,
                    self.ledger,
                    seen.look,
                    self.report,
                    who=str(request.get("who") or "unknown"),
                    why=str(request.get("why") or "no reason given"),
                    force=request.get("force") is True,
                )
            except (StillUsed, LookupError, LedgerError) as error:
                raise Refusal(str(error)) from error
        return as_row(target, done)

    async def _health(self, request: Mapping[str, Any]) -> object:
        return {
            "sources": [asdict(one) for one in self.sources.health()],
            "wrong": self.checks.ready(),
        }

    def _pods_of(self, uid: str) -> Collection[tuple[str, str]] | None:
        if self.early is None or not self.early.listed:
            return None
        return [(pod.namespace, pod.name) for pod in self.early.pods_of(uid)]

    def _rosters(self) -> Collection[Roster]:
        return [self.rosters.of(group.name) for group in self.config.groups]

    def _target(self, request: Mapping[str, Any]) -> Target:
        from bridge.planes.explain import NotFound, find

        try:
            return find(str(request.get("device") or ""), self._rosters(), self.ledger.account)
        except NotFound as error:
            raise Refusal(str(error)) from error
