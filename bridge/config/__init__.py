"""The configuration: its file format, its errors, and the effective values that everything above uses."""

from bridge.config.load import ConfigError, ConfigErrors, as_json, load, load_json, parse, schema
from bridge.config.model import (
    Binding,
    Cdi,
    Config,
    Count,
    Daemon,
    Group,
    Mode,
    Names,
    Partition,
    Percent,
    Registration,
    Sharing,
)

__all__ = [
    "Binding",
    "Cdi",
    "Config",
    "ConfigError",
    "ConfigErrors",
    "Count",
    "Daemon",
    "Group",
    "Mode",
    "Names",
    "Partition",
    "Percent",
    "Registration",
    "Sharing",
    "as_json",
    "load",
    "load_json",
    "parse",
    "schema",
]
