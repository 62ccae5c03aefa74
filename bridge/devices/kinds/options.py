"""Options that several kinds have in common: permissions, owner, container path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from bridge.devices.model import Owner
from bridge.devices.schema import Check, between

MOST_SHARES = 10_000
"""Above this a node's device list no longer fits what a kubelet takes in one message at a sane rate."""

_TEMPLATE = re.compile(r"\{([^{}]*)\}")
_LARGEST_ID = 2**32 - 2


def _permissions(value: str) -> str:
    letters = set(value.lower())
    if not letters or letters - set("rwm"):
        raise ValueError(f"permissions are any of r (read), w (write) and m (mknod), not {value!r}")
    return "".join(letter for letter in "rwm" if letter in letters)


def _octal(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError(f'the mode is three octal digits in quotes, like "0660", not {value!r}')
    return f"0{value[-3:]}"


def _container_path(value: str) -> str:
    unknown = [name for name in _TEMPLATE.findall(value) if name not in ("name", "basename")]
    if unknown or re.search(r"[{}]", _TEMPLATE.sub("", value)):
        raise ValueError(
            f"a container path may contain {{name}} and {{basename}}, nothing else in braces: {value!r}"
        )
    pieces = value.split("/")
    if not value.startswith("/") or value.endswith("/") or {".", ".."} & set(pieces) or "" in pieces[1:]:
        raise ValueError(
            f"a container path is an absolute path without '.', '..' or a slash at the end, not {value!r}"
        )
    return value


Permissions = Annotated[str, Check(_permissions, {"pattern": "^[rwmRWM]+$"})]
"""Any of r, w, m in any order and case; normalised to lower case in this order."""

ContainerPath = Annotated[str, Check(_container_path)]
"""An absolute path, plain or with `{name}` (the device's name) or `{basename}` (of its path on the host)."""


@dataclass(frozen=True, slots=True)
class OwnerOptions:
    """Owner and mode of the node inside the container.

    Attributes:
        uid: user; without it through the device plugin API as on the host, through DRA the container's own.
        gid: group; as above.
        mode: three octal digits in quotes, like "0660".
    """

    uid: Annotated[int, between(0, _LARGEST_ID)] | None = None
    gid: Annotated[int, between(0, _LARGEST_ID)] | None = None
    mode: Annotated[str, Check(_octal, {"pattern": "^0?[0-7]{3}$"}, first=True)] | None = None

    def owner(self) -> Owner:
        """As the model has it."""
        return Owner(self.uid, self.gid, None if self.mode is None else int(self.mode, 8))


def fill(template: str, *, name: str, path: str) -> str:
    """A container path with its fields filled in."""
    return template.replace("{name}", name).replace("{basename}", path.rpartition("/")[2])
