"""YAML as plain values, and plain values as YAML. One document at a time, by the nodes that the parser gives."""

from __future__ import annotations

import re
from typing import TypeAlias, Union

import yaml

Value: TypeAlias = Union[str, int, bool, list["Value"], dict[str, "Value"], None]  # noqa: UP007 - recursive
Path: TypeAlias = tuple[str | int, ...]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)


def compose(text: str) -> yaml.Node:
    """The nodes of one document; an empty one is null.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    return yaml.ScalarNode("tag:yaml.org,2002:null", "") if node is None else node


def value_of(node: yaml.Node) -> Value:
    """The plain value. Numbers that are not whole, dates and the like stay text; so do unknown tags."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): value_of(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [value_of(item) for item in node.value]
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "int" if _INTEGER.fullmatch(text):
            return int(text)
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case _:
            return text


def get(root: Value, path: Path) -> Value:
    """What is at a path; None where nothing is."""
    for piece in path:
        if isinstance(root, dict) and isinstance(piece, str):
            root = root.get(piece)
        elif isinstance(root, list) and isinstance(piece, int) and piece < len(root):
            root = root[piece]
        else:
            return None
    return root


def write(value: Value) -> str:
    """A document in block layout."""
    return "".join(f"{line}\n" for line in block(value, 2, 0))


def block(value: Value, step: int, dash_offset: int) -> list[str]:
    """The lines of a value in block layout: mappings indented by `step`, sequences under a key by `dash_offset`."""
    lines: list[str] = []
    match value:
        case dict():
            for key, below in value.items():
                if isinstance(below, dict | list) and below:
                    indent = " " * (dash_offset if isinstance(below, list) else step)
                    lines.append(f"{scalar(key)}:")
                    lines += [indent + line for line in block(below, step, dash_offset)]
                else:
                    lines.append(f"{scalar(key)}: {scalar(below)}")
        case list():
            for item in value:
                first, *rest = block(item, step, dash_offset)
                lines += [f"- {first}", *(f"  {line}" for line in rest)]
        case _:
            lines.append(scalar(value))
    return lines


def scalar(value: Value) -> str:
    """A value on one line, quoted where it must be."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return str(dumped).removesuffix("\n").removesuffix("\n...")
