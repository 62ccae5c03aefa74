"""The JSON Schema of what `bridge.devices.schema.decode` takes, for editors and other checkers.

Never narrower than the decoder: what only a check's function knows is left to it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from bridge.devices.schema import Check, camel, default_of, hints_of, plain

Schema = dict[str, Any]

_SIMPLE: Mapping[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Path: {"type": "string"},
    types.NoneType: {"type": "null"},
    object: {},
}


def json_schema(model: type) -> tuple[Schema, dict[str, Schema]]:
    """The schema of a dataclass, and those of the dataclasses below it by name, for `$defs`."""
    definitions: dict[str, Schema] = {}
    return _record(model, definitions), definitions


def _record(model: Any, definitions: dict[str, Schema]) -> Schema:
    hints = hints_of(model)
    about, meanings = _described(model)
    properties: Schema = {}
    required: list[str] = []
    for one in dataclasses.fields(model):
        properties[camel(one.name)] = _of(hints[one.name], definitions)
        if default_of(one) is dataclasses.MISSING:
            required.append(camel(one.name))
        elif one.default not in (None, dataclasses.MISSING):  # a factory's depends on other fields
            properties[camel(one.name)]["default"] = plain(one.default)
        if one.name in meanings:
            properties[camel(one.name)]["description"] = meanings[one.name]
    return {
        "type": "object",
        "description": about,
        "properties": properties,
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _described(model: Any) -> tuple[str, dict[str, str]]:
    """What a dataclass is, and its fields, from its docstring: there it costs the daemon no memory."""
    about, _, attributes = inspect.cleandoc(model.__doc__).partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", attributes):
        names, _, meaning = entry.strip().partition(": ")
        meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return " ".join(about.split()), meanings


def _of(hint: Any, definitions: dict[str, Schema]) -> Schema:
    if writer := _GENERIC.get(typing.get_origin(hint)):
        return writer(hint, definitions)
    if dataclasses.is_dataclass(hint):
        name: str = hint.__name__  # type: ignore[union-attr]
        if name not in definitions:
            definitions[name] = _record(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [item.value for item in hint]}
    return dict(_SIMPLE[hint])


def _annotated(hint: Any, definitions: dict[str, Schema]) -> Schema:
    inner, *marks = typing.get_args(hint)
    schema = _of(inner, definitions)
    for mark in marks:
        if isinstance(mark, Check):
            schema |= mark.schema
    return schema


def _union(hint: Any, definitions: dict[str, Schema]) -> Schema:
    return {"anyOf": [_of(alternative, definitions) for alternative in typing.get_args(hint)]}


def _literal(hint: Any, definitions: dict[str, Schema]) -> Schema:
    allowed = typing.get_args(hint)
    return {"const": allowed[0]} if len(allowed) == 1 else {"enum": list(allowed)}


def _tuple(hint: Any, definitions: dict[str, Schema]) -> Schema:
    kinds = typing.get_args(hint)
    if kinds[-1] is Ellipsis:
        return {"type": "array", "items": _of(kinds[0], definitions)}
    items = [_of(kind, definitions) for kind in kinds]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _mapping(hint: Any, definitions: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": _of(typing.get_args(hint)[1], definitions) or True}


_GENERIC: Mapping[Any, Callable[[Any, dict[str, Schema]], Schema]] = {
    Annotated: _annotated,
    typing.Union: _union,
    types.UnionType: _union,
    Literal: _literal,
    tuple: _tuple,
    dict: _mapping,
    Mapping: _mapping,
}
