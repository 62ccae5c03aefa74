"""How far a node is on its way to a mode. Pure: what its daemon says in, a verdict out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from bridge.cli.fleet.states import REFUSED, SETTLED, GroupState, State


class Standing(Enum):
    """Where a node is. REFUSED is the daemon's decision; WRONG may pass, as when a daemon restarts."""

    THERE = "there"
    UNDER_WAY = "under way"
    WRONG = "wrong"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a node is, and in words."""

    standing: Standing
    says: str = ""

    @property
    def there(self) -> bool:
        """Whether it has arrived."""
        return self.standing is Standing.THERE


NOT_CHECKED = "NotChecked"
"""The reason of a refusal that only says that the daemon could not look: it will look again."""

Judge = Callable[[State | None], Verdict]

_ABSENT = Verdict(Standing.WRONG, "there is no NodeBridge of this node: no daemon serves there")


def ready(state: State | None) -> Verdict:
    """Whether the daemon serves: asked before a node is touched."""
    if state is None:
        return _ABSENT
    return (
        Verdict(Standing.THERE) if state.ready else Verdict(Standing.WRONG, f"not Ready: {state.not_ready}")
    )


def towards(mode: str | None, group: str, governed_elsewhere: Collection[str]) -> Judge:
    """Judge how far a node is towards a mode.

    Args:
        mode: the mode; None: whatever its configuration file says, which only the daemon knows.
        group: the group that is switched; empty: every group that has no label of its own.
        governed_elsewhere: groups with a label of their own, which a switch of the node leaves alone.
    """

    def judge(state: State | None) -> Verdict:
        if state is None:
            return _ABSENT
        chosen = [one for one in state.groups if _chosen(one, group, governed_elsewhere)]
        if not state.ready:
            return Verdict(Standing.WRONG, f"not Ready: {state.not_ready}")
        if not chosen:
            has = ", ".join(one.name for one in state.groups) or "no group at all"
            return Verdict(
                Standing.WRONG, f"it has no group {group}; it has {has}" if group else f"it has {has}"
            )
        verdicts = [_of_group(one, mode) for one in chosen]
        worst = max(verdicts, key=lambda one: _ORDER.index(one.standing))
        said = "; ".join(one.says for one in verdicts if one.standing is worst.standing and one.says)
        return Verdict(worst.standing, said)

    return judge


_ORDER = (Standing.THERE, Standing.UNDER_WAY, Standing.WRONG, Standing.REFUSED)


def _chosen(one: GroupState, group: str, governed_elsewhere: Collection[str]) -> bool:
    return one.name == group if group else one.name not in governed_elsewhere


def _of_group(one: GroupState, mode: str | None) -> Verdict:
    wanted = mode or one.wanted
    if one.wanted != wanted:
        return Verdict(Standing.UNDER_WAY, f"{one.name}: its daemon has still to take up the label")
    if one.phase == REFUSED:
        why = ": ".join(filter(None, (one.reason, one.message)))
        standing = Standing.WRONG if one.reason == NOT_CHECKED else Standing.REFUSED
        return Verdict(standing, f"group {one.name} refuses {wanted}: {why}")
    if one.mode != wanted and one.phase == SETTLED:
        return Verdict(Standing.UNDER_WAY, f"{one.name}: its daemon has taken up the label, and begins")
    if one.mode != wanted or one.phase != SETTLED:
        return Verdict(Standing.UNDER_WAY, one.told)
    return Verdict(Standing.THERE)
