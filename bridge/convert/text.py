"""Edits of YAML text that leave every other byte alone: insert or remove an entry or an item.

Positions come from the parser; what an edit made is parsed again and compared with what it should be, so a layout that
is not understood (anchors, merge keys, explicit keys) is refused, never spoiled. One document at a time.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from bridge.convert.values import Path, Value, block, compose, get, scalar, value_of

_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)


class Layout(ValueError):
    """The text cannot be edited safely here."""

    def __init__(self) -> None:
        super().__init__(
            "the text cannot be changed safely here (an anchor, a merge key, a comment inside braces or an unusual "
            "layout); write this part out plainly, or change it by hand"
        )


@dataclass(frozen=True, slots=True)
class Comments:
    """Comments that move with what they stand at: lines above it, and the rest of its line, blanks included."""

    above: tuple[str, ...] = ()
    beside: str = ""

    def __add__(self, other: Comments) -> Comments:
        return Comments(self.above + other.above, self.beside + other.beside)


NONE = Comments()


@dataclass(frozen=True, slots=True)
class Insert:
    """A new entry of the mapping at `path`: after another key, or last. `flow` writes the value in brackets."""

    path: Path
    key: str
    value: Value
    after: str | None = None
    comments: Comments = NONE
    flow: bool = False

    def expect(self, root: Value) -> None:
        """Do it to the plain value."""
        _mapping(get(root, self.path))[self.key] = self.value


@dataclass(frozen=True, slots=True)
class Append:
    """A new item of the sequence at `path`, after the item `after`, or last."""

    path: Path
    value: Value
    after: int | None = None
    comments: Comments = NONE

    def expect(self, root: Value) -> None:
        """Do it to the plain value."""
        items = _sequence(get(root, self.path))
        items.insert(len(items) if self.after is None else self.after + 1, self.value)


@dataclass(frozen=True, slots=True)
class Remove:
    """An entry or item goes; comments in it stay as lines of their own unless they were `carried` elsewhere."""

    path: Path
    carried: bool = False

    def expect(self, root: Value) -> None:
        """Do it to the plain value."""
        parent, last = get(root, self.path[:-1]), self.path[-1]
        if isinstance(last, int):
            del _sequence(parent)[last]
        else:
            del _mapping(parent)[last]


Edit = Insert | Append | Remove


def apply(text: str, edits: Sequence[Edit]) -> str:
    """Do edits one after the other; each path is as the edits before it have left the document.

    Raises:
        Layout: an edit did not come out as it should; nothing is done.
    """
    root = compose(text)
    for edit in edits:
        text, root = _apply(text, root, edit)
    return text


def _apply(text: str, root: yaml.Node, edit: Edit) -> tuple[str, yaml.Node]:
    expected = copy.deepcopy(value_of(root))
    edit.expect(expected)
    document = _Document(text, root)
    match edit:
        case Insert():
            made = document.insert(edit)
        case Append():
            made = document.append(edit)
        case Remove():
            made = document.remove(edit)
    try:
        after = compose(made)
    except yaml.YAMLError as error:
        raise Layout from error
    if value_of(after) != expected:
        raise Layout
    return made, after


def is_flow(text: str, path: Path) -> bool:
    """Whether what is at a path is written in braces or brackets."""
    return bool(getattr(_find(compose(text), path), "flow_style", False))


def comments_at(text: str, path: Path) -> Comments:
    """The comments within an entry or item, its own line included.

    Raises:
        Layout: it is written in braces or brackets with comments among them.
    """
    return _Document(text, compose(text)).comments_at(path)


def all_comments(text: str) -> tuple[str, ...]:
    """Every comment of a document, in order."""
    leaves = _leaves(compose(text))
    return tuple(text[start:end] for start, end in _comments(text, 0, len(text), leaves))


def _mapping(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise Layout
    return value


def _sequence(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise Layout
    return value


def _find(node: yaml.Node, path: Path) -> yaml.Node:
    for piece in path:
        if isinstance(node, yaml.MappingNode):
            node = node.value[_index(node, str(piece))][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(piece, int):
            node = node.value[piece]
        else:
            raise Layout
    return node


def _index(node: yaml.MappingNode, key: str) -> int:
    for i, (name, _) in enumerate(node.value):
        if name.value == key:
            return i
    raise Layout


class _Document:
    """One document: its text, and where everything stands in it."""

    def __init__(self, text: str, root: yaml.Node) -> None:
        self.text, self.root = text, root

    # Edits

    def insert(self, edit: Insert) -> str:
        node = _find(self.root, edit.path)
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise Layout
        index = len(node.value) - 1 if edit.after is None else _index(node, edit.after)
        key, value = node.value[index]
        if node.flow_style:
            written = f"{self._flow(edit.key)}: {self._flow(edit.value)}"
            return self._insert_in_flow(node, key, value, written, edit.comments)
        column = node.start_mark.column
        if edit.flow:
            lines = [f"{scalar(edit.key)}: {self._flow(edit.value)}"]
        else:
            lines = block({edit.key: edit.value}, self._step(edit.path, node), self._dash_offset(node))
        nested = 1 if len(lines) > 1 else 0
        end = self._line_end(self._content_end(value))
        if index == len(node.value) - 1:
            end = self._past_comments(end, column)
        return self._insert_lines(end, column, _with_comments(lines, nested, edit.comments))

    def append(self, edit: Append) -> str:
        node = _find(self.root, edit.path)
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise Layout
        item = node.value[-1 if edit.after is None else edit.after]
        if node.flow_style:
            return self._insert_in_flow(node, item, item, self._flow(edit.value), edit.comments)
        lines = _with_comments(block([edit.value], 2, 0), 0, edit.comments)
        return self._insert_lines(self._line_end(self._content_end(item)), node.start_mark.column, lines)

    def remove(self, edit: Remove) -> str:
        parent = _find(self.root, edit.path[:-1])
        spans = self._spans(parent)
        index = self._position(parent, edit.path[-1])
        start, end = spans[index]
        if getattr(parent, "flow_style", False):
            if index + 1 < len(spans):
                end = spans[index + 1][0]
            elif index:
                start = spans[index - 1][1]
            self._refuse_comments(start, end)
            return self.text[:start] + self.text[end:]
        start, end, column = self._lines(start, end)
        kept = "" if edit.carried else self._as_lines(self.comments_at(edit.path), column)
        after = self.text[end:]
        before = self.text[:start]
        if not after and not self.text.endswith("\n"):
            before, kept = (before, kept.removesuffix("\n")) if kept else (before.removesuffix("\n"), "")
        return before + kept + after

    def comments_at(self, path: Path) -> Comments:
        parent = _find(self.root, path[:-1])
        start, end = self._spans(parent)[self._position(parent, path[-1])]
        if getattr(parent, "flow_style", False):
            self._refuse_comments(start, end)
            return NONE
        start, end, _ = self._lines(start, end)
        above, beside = [], ""
        for begin, stop in _comments(self.text, start, end, _leaves(self.root)):
            line = self.text[self.text.rfind("\n", 0, begin) + 1 : begin]
            if line.strip():
                beside += line[len(line.rstrip()) :] + self.text[begin:stop].rstrip()
            else:
                above.append(self.text[begin:stop].rstrip())
        return Comments(tuple(above), beside)

    # Where things stand

    def _position(self, parent: yaml.Node, last: str | int) -> int:
        if isinstance(parent, yaml.MappingNode):
            return _index(parent, str(last))
        if isinstance(last, int):
            return last
        raise Layout

    def _spans(self, parent: yaml.Node) -> list[tuple[int, int]]:
        """Of each entry or item, from its first character to behind its last."""
        if isinstance(parent, yaml.MappingNode):
            return [(key.start_mark.index, self._content_end(value)) for key, value in parent.value]
        return [(item.start_mark.index, self._content_end(item)) for item in parent.value]

    def _content_end(self, node: yaml.Node) -> int:
        """Behind the last character: a block's own end mark is where the next thing begins."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self._content_end(last[1] if isinstance(last, tuple) else last)
        begin, end = node.start_mark.index, node.end_mark.index
        header = self.text[begin : self._line_end(begin)].partition("#")[0]
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">") and "+" in header:
            return int(end) - self.text[:end].endswith("\n")  # the empty lines below it are its own
        return int(max(len(self.text[:end].rstrip()), begin))

    def _line_end(self, position: int) -> int:
        end = self.text.find("\n", position)
        return len(self.text) if end < 0 else end + 1

    def _lines(self, start: int, end: int) -> tuple[int, int, int]:
        """The whole lines of a block's entry or item, and the column of its key or dash."""
        begin = self.text.rfind("\n", 0, start) + 1
        before = self.text[begin:start]
        if before.strip(" ") not in ("", "-") or end < start:
            raise Layout
        return begin, self._line_end(end), len(before) - len(before.lstrip(" "))

    def _past_comments(self, end: int, column: int) -> int:
        """Behind the comments that stand below a mapping's last entry, as far as they are indented like its keys."""
        while (line := self.text[end : self._line_end(end)]) and re.match(rf" {{{column}}}#", line):
            end += len(line)
        return end

    def _refuse_comments(self, start: int, end: int) -> None:
        if end < start or any(_comments(self.text, start, end, _leaves(self.root))):
            raise Layout

    # How things are written

    def _insert_lines(self, position: int, column: int, lines: Sequence[str]) -> str:
        block = "".join(f"{' ' * column}{line}\n" for line in lines)
        before, after = self.text[:position], self.text[position:]
        if before and not before.endswith("\n"):
            return f"{before}\n{block.removesuffix(chr(10))}"
        return before + block + after

    def _insert_in_flow(
        self, parent: yaml.Node, first: yaml.Node, last: yaml.Node, written: str, comments: Comments
    ) -> str:
        if comments != NONE:
            raise Layout
        own_line = first.start_mark.line != parent.start_mark.line
        separator = f",\n{' ' * first.start_mark.column}" if own_line else ", "
        end = self._content_end(last)
        return self.text[:end] + separator + written + self.text[end:]

    def _flow(self, value: Value) -> str:
        if getattr(self.root, "flow_style", False):
            return json.dumps(value)
        return scalar(value)

    def _as_lines(self, comments: Comments, column: int) -> str:
        lines = [*comments.above, *([comments.beside.strip()] if comments.beside else [])]
        return "".join(f"{' ' * column}{line}\n" for line in lines)

    def _step(self, path: Path, node: yaml.Node) -> int:
        """By how much this document indents a mapping in a mapping, here."""
        parent = _find(self.root, path[:-1]) if path else None
        if isinstance(parent, yaml.MappingNode) and not parent.flow_style:
            return int(max(node.start_mark.column - parent.start_mark.column, 1))
        return 2

    def _dash_offset(self, node: yaml.Node) -> int:
        """By how much a sequence is indented under its key: as near this mapping as there is one."""
        return next((offset for at in (node, self.root) for offset in _dash_offsets(at)), 0)


def _dash_offsets(node: yaml.Node) -> Iterator[int]:
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            if isinstance(value, yaml.SequenceNode) and not value.flow_style and not node.flow_style:
                yield max(value.start_mark.column - node.start_mark.column, 0)
            yield from _dash_offsets(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _dash_offsets(item)


def _leaves(node: yaml.Node) -> list[tuple[int, int]]:
    """Where the scalars stand; a `#` in one of them begins no comment."""
    if isinstance(node, yaml.MappingNode):
        return [span for key, value in node.value for part in (key, value) for span in _leaves(part)]
    if isinstance(node, yaml.SequenceNode):
        return [span for item in node.value for span in _leaves(item)]
    return [(node.start_mark.index, node.end_mark.index)] if node.start_mark else []


def _comments(
    text: str, start: int, end: int, leaves: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    for found in _COMMENT.finditer(text, start, end):
        if not any(begin <= found.start() < stop for begin, stop in leaves):
            yield found.span()


def _with_comments(lines: Sequence[str], at: int, comments: Comments) -> list[str]:
    line = lines[at]
    indent = " " * (len(line) - len(line.lstrip(" ")))
    above = [indent + comment for comment in comments.above]
    return [*lines[:at], *above, line + comments.beside, *lines[at + 1 :]]
