"""Writes the tables of docs/configuration.md from the schema: `make docs`.

What stands there by hand stays: only what is between the two marks is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config import schema
from tests.docs.pages import REPOSITORY

PAGE = REPOSITORY / "docs" / "configuration.md"
BEGIN, END = "<!-- made by `make docs` from here", "<!-- to here -->"

Schema = Mapping[str, Any]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables made anew. Pure."""
    before, begin, rest = text.partition(BEGIN)
    told, end, after = rest.partition(END)
    assert begin and end, "the marks are gone"
    return f"{before}{begin}{told.splitlines()[0]}\n\n{tables()}\n{end}{after}"


def tables() -> str:
    """Every object that a configuration can have, each as a table. Pure."""
    whole: Any = schema()
    definitions: Mapping[str, Schema] = whole["$defs"]
    parts = [
        ("The file", whole),
        ("`groups[]`", definitions["_Group"]),
        ("`groups[].partition`", definitions["_Split"]),
        *(
            (f"`groups[].options` of kind `{kind}`", definitions[name])
            for kind, name in _kinds(definitions["_Group"])
        ),
        ("`devices[]` of kind `device-node`", definitions["NamedDevice"]),
        ("`devices[].nodes[]` of kind `device-node`", definitions["NodeOptions"]),
        ("`owner`", definitions["OwnerOptions"]),
        ("`daemon`", definitions["Daemon"]),
        ("`daemon.cdi`", definitions["Cdi"]),
    ]
    shown = [one for _, one in parts]
    assert not [name for name, one in definitions.items() if one not in shown], "an object is in no table"
    return "\n".join(f"### {title}\n\n{one['description']}\n\n{_table(one)}" for title, one in parts)


def _kinds(group: Schema) -> Iterator[tuple[str, str]]:
    for branch in group["allOf"]:
        options = branch["then"]["properties"]["options"]["$ref"]
        yield branch["if"]["properties"]["kind"]["const"], options.rpartition("/")[2]


def _table(one: Schema) -> str:
    rows = ["| field | value | default | meaning |", "|---|---|---|---|"]
    for name, field in one["properties"].items():
        assert "description" in field, f"{name} says nothing of itself"
        required = name in one.get("required", ())
        default = "required" if required else _default(field)
        rows.append(f"| `{name}` | {_value(field)} | {default} | {_cell(field['description'])} |")
    return "\n".join(rows) + "\n"


def _default(field: Schema) -> str:
    if "default" not in field or isinstance(field["default"], dict):
        return ""
    return f"`{json.dumps(field['default'])}`"


def _value(field: Schema) -> str:
    if "anyOf" in field:
        return " or ".join(_value(one) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "$ref" in field:
        return "an object, see below"
    match field["type"]:
        case "array":
            below = _value(field["items"])
            return "a list of objects, see below" if below.startswith("an object") else f"a list: {below}"
        case "integer" | "number" as kind:
            word = "whole number" if kind == "integer" else "number"
            bounds = [f"{field['minimum']}"] if "minimum" in field else []
            bounds += [f"{field['maximum']}"] if "maximum" in field else []
            return f"{word}, {' to '.join(bounds)}" if len(bounds) == 2 else word
        case "boolean":
            return "`true`, `false`"
        case "object":
            return "an object, see below"
        case _:
            return "text"


def _cell(text: str) -> str:
    return (text[0].upper() + text[1:]).replace("|", "\\|")


if __name__ == "__main__":
    main()
