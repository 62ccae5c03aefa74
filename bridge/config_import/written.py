"""An import as YAML with its notes as comments. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import yaml

from bridge.config import ConfigErrors, parse
from bridge.config_import.notes import Note
from bridge.config_import.power import Imported

_WIDTH = 118


def written(one: Imported, source: str) -> str:
    """The file, valid as it is.

    Raises:
        ConfigErrors: a name given on the command line is none that the bridge can have.
    """
    text = yaml.safe_dump(dict(one.config), sort_keys=False, default_flow_style=None, width=_WIDTH)
    try:
        parse(text, source=source)
    except ConfigErrors as errors:
        raise ConfigErrors(source, [type(e)(e.path, e.message) for e in errors.errors]) from errors
    return "\n".join([*_head(source, one.notes), text])


def _head(source: str, notes: Sequence[Note]) -> Iterator[str]:
    yield f"# From {source} of power-device-plugin. What differs, field by field:"
    for note in notes:
        yield from textwrap.wrap(
            str(note),
            _WIDTH,
            initial_indent="# - ",
            subsequent_indent="#   ",
            break_long_words=False,
            break_on_hyphens=False,
        )
