"""YAML with its line numbers: syntax errors, duplicate keys, and where each field stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from bridge.devices.schema import FieldError, field_path


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed document.

    Attributes:
        data: the plain values; None for an empty document.
        lines: {field path: line, from 1}.
        duplicates: keys that a mapping has twice.
    """

    data: object
    lines: Mapping[str, int]
    duplicates: tuple[FieldError, ...]


class SyntaxFault(ValueError):
    """The text is no YAML document.

    Attributes:
        line: where, from 1; None where the parser does not tell.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


def read(text: str) -> Source:
    """Parse one document.

    Raises:
        SyntaxFault: it is not YAML, or more than one document.
    """
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as error:
        raise SyntaxFault(str(error).splitlines()[0], None) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return Source(None, {}, ())
        lines: dict[str, int] = {}
        duplicates = tuple(_walk(node, (), lines))
        return Source(loader.construct_document(node), lines, duplicates)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "not YAML"
        raise SyntaxFault(said, mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SyntaxFault(str(error).splitlines()[0], None) from error
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[int | str, ...], lines: dict[str, int]) -> Iterator[FieldError]:
    lines.setdefault(field_path(path), node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _walk(item, (*path, i), lines)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            below = (*path, name)
            if name in first:
                yield FieldError(
                    field_path(below), f"is written twice, in lines {first[name]} and {line}; keep one"
                )
                continue
            first[name] = line
            lines[field_path(below)] = line
            yield from _walk(value, below, lines)
