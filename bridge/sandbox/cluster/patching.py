"""Merge patch and a simplified server-side apply: pure functions from documents to documents."""

from __future__ import annotations

from typing import Any

from bridge.sandbox.cluster.objects import Object, clone

_KEYS: dict[str, tuple[str, ...]] = {
    "conditions": ("type",),
    "groups": ("name",),
    "devices": ("driver", "pool", "device", "shareID"),
    "ownerReferences": ("uid",),
    "taints": ("key", "effect"),
    "resourceClaimStatuses": ("name",),
    "containerStatuses": ("name",),
    "initContainerStatuses": ("name",),
}
"""Lists whose items are told apart by these fields, under server-side apply and strategic merge."""


def keyed(key: str, items: list[Any]) -> bool:
    """Say whether the items of a list are told apart by fields of theirs."""
    return key in _KEYS and all(isinstance(item, dict) for item in items)


def identity_of(key: str, item: Object) -> tuple[Any, ...]:
    """Return what tells an item of a keyed list from the others."""
    return tuple(item.get(field) for field in _KEYS[key])


def merge_patch(target: Object, patch: Object) -> Object:
    """Apply an RFC 7386 merge patch: null removes, maps merge, everything else replaces."""
    merged = clone(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            base = merged.get(key)
            merged[key] = merge_patch(base if isinstance(base, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def strategic_merge(target: Object, patch: Object) -> Object:
    """Apply a strategic merge patch: as merge patch, but keyed lists merge item by item."""
    merged = clone(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            base = merged.get(key)
            merged[key] = strategic_merge(base if isinstance(base, dict) else {}, value)
        elif isinstance(value, list) and keyed(key, value):
            merged[key] = _merge_items(key, merged.get(key) or [], value)
        else:
            merged[key] = value
    return merged


def apply(live: Object, applied: Object, before: Object) -> Object:
    """Apply server-side: merge `applied`, remove what its manager applied `before` and no longer names.

    Args:
        live: the stored object.
        applied: the apply configuration.
        before: the same manager's last configuration; empty if there was none.
    """
    return strategic_merge(_without(live, before, applied), applied)


def _merge_items(key: str, old: list[Any], new: list[Any]) -> list[Any]:
    merged = {identity_of(key, item): item for item in old}
    for item in new:
        identity = identity_of(key, item)
        merged[identity] = strategic_merge(merged.get(identity, {}), item)
    return list(merged.values())


def _without(live: Object, before: Object, now: Object) -> Object:
    """Return `live` less the fields that `before` names and `now` does not."""
    kept = clone(live)
    for key, old in before.items():
        if key not in kept:
            continue
        new = now.get(key)
        if new is None:
            _drop(kept, key, old)
        elif isinstance(old, dict) and isinstance(new, dict):
            kept[key] = _without(kept[key], old, new)
        elif isinstance(old, list) and isinstance(new, list) and keyed(key, old + new):
            kept[key] = _items_without(key, kept[key], old, new)
    return kept


def _items_without(key: str, live: list[Any], old: list[Any], new: list[Any]) -> list[Any]:
    named = {identity_of(key, item): item for item in new}
    mine = {identity_of(key, item): item for item in old}
    kept = []
    for item in live:
        identity = identity_of(key, item)
        if identity not in mine:
            kept.append(item)
        elif identity in named:
            kept.append(_without(item, mine[identity], named[identity]))
    return kept


def _drop(kept: Object, key: str, old: Any) -> None:
    if isinstance(old, list) and keyed(key, old):
        kept[key] = _items_without(key, kept[key], old, [])
        if not kept[key]:
            del kept[key]
    elif isinstance(old, dict) and isinstance(kept[key], dict):
        kept[key] = _without(kept[key], old, {})
        if not kept[key]:
            del kept[key]
    else:
        del kept[key]
