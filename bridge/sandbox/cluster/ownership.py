"""Who wrote which field last: what makes a server-side apply a conflict.

As `managedFields` of a real API server decide it, for the objects of one registry: an apply owns the fields that it
names, any other write the fields that it changes, and an apply that is not forced may not change what others own.
"""

from __future__ import annotations

from typing import Any

from bridge.sandbox.cluster.objects import ApiProblem, Object
from bridge.sandbox.cluster.patching import identity_of, keyed

Path = tuple[str, ...]

_NOBODYS = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"), ("metadata", "uid")}
"""Fields that say which object is meant."""


class Ownership:
    """The managers of each field, by the UID of its object."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[Path, set[str]]] = {}

    def check(self, uid: str, live: Object, applied: Object, manager: str, version: str) -> None:
        """Refuse an apply that changes what others own.

        Raises:
            ApiProblem: 409 that names them and the fields.
        """
        stored, owners = leaves(live), self._owners.get(uid, {})
        conflicts = [
            f'conflict with "{other}" using {version}: .{".".join(path)}'
            for path, value in leaves(applied).items()
            if stored.get(path) != value
            for other in sorted(owners.get(path, set()) - {manager})
        ]
        if conflicts:
            count = f"{len(conflicts)} conflict{'s' if len(conflicts) > 1 else ''}"
            raise ApiProblem(409, "Conflict", f"Apply failed with {count}: {', '.join(conflicts)}")

    def applied(self, uid: str, live: Object, applied: Object, manager: str) -> None:
        """Note what an apply owns now; what it had to force is nobody else's any more."""
        stored, owners = leaves(live), self._owners.setdefault(uid, {})
        for holders in owners.values():
            holders.discard(manager)
        for path, value in leaves(applied).items():
            if path not in _NOBODYS:
                same = stored.get(path) == value
                owners[path] = {*(owners.get(path, set()) if same else ()), manager}

    def updated(self, uid: str, before: Object, after: Object, manager: str) -> None:
        """Note what any other write owns now: what it changed."""
        old, new, owners = leaves(before), leaves(after), self._owners.setdefault(uid, {})
        for path in old.keys() | new.keys():
            if old.get(path) != new.get(path) and path not in _NOBODYS:
                owners[path] = {manager}

    def forget(self, uid: str) -> None:
        """The object is gone."""
        self._owners.pop(uid, None)


def leaves(obj: Object, above: Path = ()) -> dict[Path, Any]:
    """The fields of an object that are owned each for itself: items of keyed lists apart, other lists whole."""
    found: dict[Path, Any] = {}
    for key, value in obj.items():
        path = (*above, key)
        if isinstance(value, dict) and value:
            found |= leaves(value, path)
        elif isinstance(value, list) and value and keyed(key, value):
            for item in value:
                name = ",".join(str(part) for part in identity_of(key, item))
                found |= leaves(item, (*path, f"[{name}]"))
        else:
            found[path] = value
    return found
