"""Which device nodes power-device-plugin's patterns mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.config import ConfigError
from bridge.config_import.fields import EXCLUDE, INCLUDE
from bridge.config_import.patterns import pattern
from bridge.devices.kinds.node_options import DeviceNodeOptions
from bridge.devices.kinds.nx_gzip import NODE as NX_GZIP
from bridge.devices.nodes import matches
from bridge.devices.schema import Invalid, decode

_OF_THE_KERNEL = re.compile(r"/dev/(dm-|sd|vd|xvd|nvme|dasd|md|crypto/)[^/]*")
"""Patterns that match no links: the kernel names its nodes like this."""


def all_of_a_node() -> list[str]:
    """What the plugin takes where no pattern names anything: every disk."""
    return ["/dev/*"]


@dataclass(slots=True)
class Paths:
    """What is meant.

    Attributes:
        include: patterns of what is offered, the accelerator's own path left out; empty: every disk.
        exclude: patterns of what is not.
        nx_gzip: whether the accelerator is offered.
        only_nx_gzip: whether nothing else is.
        nx_was_lost: whether the plugin would not have offered it, though it was switched on.
        matches_nx_gzip: whether a pattern that is wider matches the accelerator too.
        nothing_left: whether nothing is offered at all.
        errors: patterns that cannot be meant.
    """

    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    nx_gzip: bool = False
    only_nx_gzip: bool = False
    nx_was_lost: bool = False
    matches_nx_gzip: bool = False
    nothing_left: bool = False
    errors: list[ConfigError] = field(default_factory=list)

    @property
    def may_be_links(self) -> bool:
        """Whether patterns may match links, which the plugin gave under their own names."""
        return not all(_OF_THE_KERNEL.fullmatch(one) for one in self.include)


def chosen(include: Sequence[str], exclude: Sequence[str], nx_gzip: bool) -> Paths:
    """Read the patterns. Blank ones count for nothing, there as here."""
    found = Paths()
    named = _patterns(INCLUDE, include, found.errors)
    found.exclude = _patterns(EXCLUDE, exclude, found.errors)
    found.include = [one for one in named if one != NX_GZIP]
    excluded = any(matches(NX_GZIP, one) for one in found.exclude)
    wide = any(matches(NX_GZIP, one) for one in found.include)
    found.nx_gzip = (nx_gzip or NX_GZIP in named) and not excluded
    found.nx_was_lost = found.nx_gzip and bool(named) and NX_GZIP not in named and not wide
    found.only_nx_gzip = bool(named) and not found.include
    found.nothing_left = found.only_nx_gzip and not found.nx_gzip
    found.matches_nx_gzip = wide and not excluded
    return found


def _patterns(name: str, written: Sequence[str], errors: list[ConfigError]) -> list[str]:
    found: list[str] = []
    for i, item in enumerate(written):
        text = item.strip()
        if not text:
            continue
        try:
            ours = pattern(_below_dev(text))
            decode(DeviceNodeOptions, {"include": [ours]})
        except Invalid as error:
            errors += (ConfigError(f"{name}[{i}]", one.message) for one in error.errors)
            continue
        except ValueError as error:
            errors.append(ConfigError(f"{name}[{i}]", f"{text!r}: {error}"))
            continue
        if ours not in found:
            found.append(ours)
    return found


def _below_dev(path: str) -> str:
    if not path.startswith("/dev/"):
        raise ValueError("matches nothing, paths begin with /dev/: write the whole path, or take it out")
    return path
