"""The fields of power-device-plugin's `config.json`, decoded as it decodes them. Pure.

As `encoding/json` does it: names in any case, `null` is as if it were not there, what is unknown is passed over (and
noted here). A value of the wrong type made the plugin lose the whole file; here it is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.config import ConfigError

INCLUDE = "include-devices"
EXCLUDE = "exclude-devices"
NX_GZIP = "nx-gzip"
PERMISSIONS = "permissions"
STRATEGY = "discovery-strategy"
INTERVAL = "scan-interval"
LIMIT = "upper-limit"

_TYPES: Mapping[str, tuple[type, str, object]] = {
    NX_GZIP: (bool, "true or false", False),
    PERMISSIONS: (str, "a text", ""),
    INCLUDE: (list, "a list of texts", []),
    EXCLUDE: (list, "a list of texts", []),
    STRATEGY: (str, "a text", ""),
    INTERVAL: (str, "a text", ""),
    LIMIT: (int, "a whole number", 0),
}


@dataclass(slots=True)
class Fields:
    """A decoded file.

    Attributes:
        values: every field that the plugin knows, the default where it is not written.
        written: the names of those that are.
        unknown: other names, each with the known one that it resembles, or nothing.
        errors: what has the wrong type, by field.
    """

    values: dict[str, Any] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)
    errors: list[ConfigError] = field(default_factory=list)


def decode(raw: Mapping[str, Any]) -> Fields:
    """Decode it; errors are in the result, each with its field."""
    found = Fields({name: default for name, (_, _, default) in _TYPES.items()})
    for written, value in raw.items():
        name = written.lower()
        if name not in _TYPES:
            found.unknown[written] = next(iter(difflib.get_close_matches(name, _TYPES, n=1)), "")
        elif value is not None:
            found.errors += _wrong(name, value)
            found.values[name] = value
            found.written.add(name)
    return found


def _wrong(name: str, value: object) -> list[ConfigError]:
    kind, called, _ = _TYPES[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return [ConfigError(name, f"must be {called}, not {value!r}")]
    if not isinstance(value, list):
        return []
    return [
        ConfigError(f"{name}[{i}]", f"must be a text, not {item!r}")
        for i, item in enumerate(value)
        if not isinstance(item, str)
    ]
