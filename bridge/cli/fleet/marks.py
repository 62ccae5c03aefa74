"""What people say of a node: the labels and annotations by which a mode is wanted, and the patches that change them.

Pure. A switch keeps what was there before in an annotation of the same patch, so that it can be undone; each patch
carries the version of the Node that it was made for, so that two operators cannot overwrite each other unseen.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Object = dict[str, Any]

DOMAIN = "device-bridge.io"
MODE = f"{DOMAIN}/mode"
PREVIOUS = f"{DOMAIN}/previous-mode"
WAIT_FOR_HOLDERS = f"{DOMAIN}/wait-for-holders"
STRANDED = f"{DOMAIN}/accept-stranded-pods"
EVERY_GROUP = "*"


@dataclass(frozen=True, slots=True)
class Previous:
    """What a switch found, and when it was made.

    Attributes:
        mode: the label's value; None: there was no label, the node's configuration file decided.
        was: the mode that was wanted then, by whichever of them; empty where it was not known.
        at: in UTC, of the operator's clock; orders the nodes of one rollout.
    """

    mode: str | None
    wait: str | None
    stranded: str | None
    at: str
    was: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is said of one group of a node, or of all of them; None where nothing is.

    Attributes:
        mode: value of the label.
        wait, stranded: the options of switches, which belong to the whole node.
        previous: before the last switch.
    """

    mode: str | None
    wait: str | None
    stranded: str | None
    previous: Previous | None

    @property
    def options(self) -> tuple[str | None, str | None]:
        """What goes with a switch."""
        return self.wait, self.stranded


@dataclass(frozen=True, slots=True)
class Ask:
    """What a switch asks for, apart from the mode."""

    wait_for_holders: bool = False
    accept_stranded_pods: bool = False


def key(name: str, group: str) -> str:
    """A label or annotation of one group; of the node where no group is given."""
    return f"{name}.{group}" if group else name


def marks(node: Mapping[str, Any], group: str) -> Marks:
    """What a Node says of a group (empty: of the node)."""
    meta = node.get("metadata") or {}
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    return Marks(
        labels.get(key(MODE, group)),
        notes.get(WAIT_FOR_HOLDERS),
        notes.get(STRANDED),
        _read(notes.get(key(PREVIOUS, group))),
    )


def of_groups(node: Mapping[str, Any]) -> dict[str, str]:
    """The modes that single groups of a node are asked to have, by group."""
    labels = (node.get("metadata") or {}).get("labels") or {}
    start = f"{MODE}."
    return {name.removeprefix(start): value for name, value in labels.items() if name.startswith(start)}


def switched(now: Marks, mode: str, ask: Ask, group: str, at: datetime.datetime, was: str = "") -> Marks:
    """What is to be said for a mode; what was said before is kept where the mode changes."""
    wait, stranded = _options(now, ask, group)
    if now.mode == mode:
        return Marks(mode, wait, stranded, now.previous)
    return Marks(mode, wait, stranded, Previous(now.mode, now.wait, now.stranded, at.isoformat(), was))


def _options(now: Marks, ask: Ask, group: str) -> tuple[str | None, str | None]:
    """The options belong to the node: a switch of one group adds its own and takes no other group's away."""
    if not group:
        return "true" if ask.wait_for_holders else None, EVERY_GROUP if ask.accept_stranded_pods else None
    wait = "true" if ask.wait_for_holders else now.wait
    accepted = [one.strip() for one in (now.stranded or "").split(",") if one.strip()]
    if EVERY_GROUP in accepted:
        return wait, now.stranded
    others = [one for one in accepted if one != group]
    return wait, ",".join([*others, group] if ask.accept_stranded_pods else others) or None


def undone(now: Marks) -> Marks | None:
    """What was said before the last switch; None where no switch is noted.

    The note stays: it goes once the node is back, so that an undo that stopped half-way goes on where it was.
    """
    before = now.previous
    return None if before is None else Marks(before.mode, before.wait, before.stranded, before)


def forgotten(now: Marks) -> Marks:
    """The same, without the note of what was before."""
    return Marks(now.mode, now.wait, now.stranded, None)


def patch(node: Mapping[str, Any], group: str, wanted: Marks) -> Object | None:
    """The merge patch that makes a Node say `wanted`; None where it does."""
    now = marks(node, group)
    if now == wanted:
        return None
    labels = {} if now.mode == wanted.mode else {key(MODE, group): wanted.mode}
    said = {
        WAIT_FOR_HOLDERS: (now.wait, wanted.wait),
        STRANDED: (now.stranded, wanted.stranded),
        key(PREVIOUS, group): (_written(now.previous), _written(wanted.previous)),
    }
    annotations = {name: new for name, (old, new) in said.items() if old != new}
    meta: Object = {"resourceVersion": node["metadata"]["resourceVersion"]}
    for name, changed in (("labels", labels), ("annotations", annotations)):
        if changed:
            meta[name] = changed
    return {"metadata": meta}


def _written(previous: Previous | None) -> str | None:
    return None if previous is None else json.dumps(asdict(previous))


def _read(text: str | None) -> Previous | None:
    """What another version, or a person, wrote there and cannot be read is no note."""
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    said = [found.get(name) for name in ("mode", "wait", "stranded")]
    mode, wait, stranded = (one if isinstance(one, str) else None for one in said)
    return Previous(mode, wait, stranded, str(found.get("at", "")), str(found.get("was", "")))
