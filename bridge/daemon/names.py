"""The names that groups last ran under, kept beside the ledger, and why new ones may have to wait.

The kubelet knows what it was given by resource and driver name. Under another name nobody asks for the release of
what is held, nobody proves its end, and pods hang in Terminating: so names change only while nothing is held.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bridge.config import Group
from bridge.daemon.errors import StartError
from bridge.ledger.account import Account
from bridge.ledger.holds import Plane
from dra_v1 import points

FILE = "names.json"

_SHOWN = 8
"""Holds named in a text; the rest are counted."""

_WAY_OUT = "let the pods that have them end (draining the node does it), then change it"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a group was called on the two planes when it last ran."""

    resource: str
    driver: str


def settle(folder: Path, groups: Iterable[Group], account: Account) -> None:
    """Let the groups run under their names, and remember those. Blocks for one small file.

    Raises StartError, with every hold that stands in the way of a name and what to do.
    """
    now = {group.name: Ran(group.resource_name, group.driver_name) for group in groups}
    held = _held(account)
    before = _read(folder / FILE, needed=bool(held))
    if reasons := list(_in_the_way(held, before, now)):
        raise StartError("; ".join(reasons))
    if before != now:
        _write(folder / FILE, now)


def _held(account: Account) -> dict[tuple[str, Plane], list[str]]:
    """What is handed out by group and plane, for people; claims that hold nothing have to be unprepared too."""
    held: dict[tuple[str, Plane], list[str]] = {}
    for hold in account:
        held.setdefault((hold.group, hold.plane), []).append(f"{hold.share} by {hold.holder}")
    for claim in account.prepared_claims():
        if not account.of_claim(claim.group, claim.holder.uid):
            held.setdefault((claim.group, Plane.DRA), []).append(f"admin access by {claim.holder}")
    return held


def _in_the_way(
    held: Mapping[tuple[str, Plane], list[str]], before: Mapping[str, Ran], now: Mapping[str, Ran]
) -> Iterator[str]:
    for (group, plane), what in held.items():
        devices = f"devices of it are held ({_listed(what)})"
        was, to_be = before.get(group), now.get(group)
        if to_be is None:
            under = f", resourceName {was.resource}, driverName {was.driver}" if was else ""
            yield (
                f"group {group} is no longer in the configuration, but {devices}: put it back under that name"
                f"{under}; {_WAY_OUT}"
            )
        elif was is not None and plane is Plane.DEVICE_PLUGIN and was.resource != to_be.resource:
            yield (
                f"resourceName of group {group} is {to_be.resource} and was {was.resource}, under which {devices}: "
                f"put the old name back; {_WAY_OUT}"
            )
        elif was is not None and plane is Plane.DRA and was.driver != to_be.driver:
            yield (
                f"driverName of group {group} is {to_be.driver} and was {was.driver}, under which {devices}: "
                f"put the old name back; {_WAY_OUT}"
            )


def _listed(what: list[str]) -> str:
    more = len(what) - _SHOWN
    return ", ".join(what[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path, *, needed: bool) -> dict[str, Ran]:
    """The names of last time; none before the first start. Damage counts only while something is held."""
    try:
        written = json.loads(path.read_bytes())
        return {group: Ran(**names) for group, names in written.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if not needed:
            return {}
        raise StartError(
            f"cannot read {path}, the names under which the held devices were given out: {error}; if the names in "
            "the configuration are still the same, remove the file"
        ) from error


def _write(path: Path, names: Mapping[str, Ran]) -> None:
    """Replace the file, on disk before anything is handed out under the new names."""
    aside = path.with_name(f".{path.name}.tmp")
    content = json.dumps({group: asdict(ran) for group, ran in names.items()}, indent=1).encode()
    points.reached(points.Point.NAMES_WRITING)
    try:
        with aside.open("wb") as file:
            points.reached(points.Point.NAMES_OPENED_ASIDE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        points.reached(points.Point.NAMES_WRITTEN_ASIDE)
        aside.replace(path)
        points.reached(points.Point.NAMES_IN_PLACE)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StartError(
            f"cannot write {path}: {error.strerror}; free disk space or make the folder writable"
        ) from error
