"""What a conversion is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.config.names import DOMAIN
from bridge.convert.pods import label
from bridge.convert.values import Path
from bridge.convert.versions import ApiVersion
from bridge.devices.schema import field_path

CONVERTED_FROM = f"{DOMAIN}/converted-from"
"""Annotation of a template that was made here: the extended resource, and the containers that named it in `requests`
too; what the way back needs."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an extended resource becomes.

    Attributes:
        device_class: the DeviceClass.
        unit: capacity that a claim asks an amount of, for devices that are shared by amounts; empty where it asks for
            a number of devices.
        word: what claims and requests are called; without it as the class.
    """

    device_class: str
    unit: str = ""
    word: str = ""

    @property
    def stem(self) -> str:
        """What the names of claims and requests begin with."""
        return label(self.word or self.device_class)


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert.

    Attributes:
        targets: by extended resource.
        api_version: of what is written.
        capacity: write units as consumable capacity (KEP 5075); else each share is a device of its own.
    """

    targets: Mapping[str, Target]
    api_version: ApiVersion = ApiVersion.V1
    capacity: bool = True


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was left as it is.

    Attributes:
        who: the object, `Deployment team/web`; empty for the file as a whole.
        path: the field in it.
        message: why, and what to do.
        line: in the file, from 1, where the whole file cannot be used; else 0.
    """

    who: str
    path: Path
    message: str
    line: int = 0

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line else ""
        where = ": ".join(part for part in (line, self.who, field_path(self.path)) if part)
        return f"{where}: {self.message}" if where else self.message


@dataclass(frozen=True, slots=True)
class Result:
    """A file as it becomes.

    Attributes:
        file: as it was.
        text: as it becomes; the same where nothing was to do.
        problems: what was left.
        usable: whether the file could be read at all.
    """

    file: File
    text: str
    problems: tuple[Problem, ...] = ()
    usable: bool = True
