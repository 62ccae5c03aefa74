"""A file as its documents, and the objects in them, those of lists included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import yaml

from bridge.convert.text import all_comments
from bridge.convert.values import Path, Value, compose, get, value_of


class Fault(ValueError):
    """The file cannot be used.

    Attributes:
        line: where, from 1; 0 where the parser does not tell.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class Stream:
    """The documents of a file, each with the separator that begins it; together they are the text.

    Attributes:
        documents: one text each; editing the file is editing these.
        windows: whether lines end as on Windows; `documents` have plain ends.
    """

    documents: list[str]
    windows: bool = False

    def text(self) -> str:
        """The whole file."""
        joined = "".join(self.documents)
        return joined.replace("\n", "\r\n") if self.windows else joined

    def add(self, index: int, document: str) -> None:
        """Put a document behind another; the file's end stays with or without a line end, as it was."""
        before = self.documents[index]
        if before and not before.endswith("\n"):
            self.documents[index] += "\n"
            document = document.removesuffix("\n")
        self.documents.insert(index + 1, f"---\n{document}")

    def drop(self, index: int) -> None:
        """Take a document out; its comments stay, the numbers of the others too."""
        gone = self.documents[index]
        kept = "".join(f"{comment.rstrip()}\n" for comment in all_comments(gone))
        last = not any(self.documents[index + 1 :])
        self.documents[index] = kept
        if last and not gone.endswith("\n") and not kept and index:
            self.documents[index - 1] = self.documents[index - 1].removesuffix("\n")


@dataclass(frozen=True, slots=True)
class Object:
    """One Kubernetes object.

    Attributes:
        path: in its document; empty unless it is in a list.
        value: as written.
    """

    path: Path
    value: dict[str, Value] = field(hash=False)

    @property
    def kind(self) -> str:
        """Its kind; empty where none is written."""
        return str(self.value.get("kind") or "")

    @property
    def group(self) -> str:
        """Its API group; empty for the core group."""
        return str(self.value.get("apiVersion") or "").rpartition("/")[0]

    @property
    def name(self) -> str:
        """Its name; empty where the API server is to make one."""
        return str(get(self.value, ("metadata", "name")) or "")

    @property
    def namespace(self) -> str:
        """Its namespace; empty where who applies it says which."""
        return str(get(self.value, ("metadata", "namespace")) or "")

    def __str__(self) -> str:
        named = self.name or f"{get(self.value, ('metadata', 'generateName')) or '(no name)'}"
        return f"{self.kind} {self.namespace}/{named}" if self.namespace else f"{self.kind} {named}"


def split(text: str) -> Stream:
    """Cut a file into its documents.

    Raises:
        Fault: it is not YAML, or has a key twice.
    """
    windows = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    plain = text.replace("\r\n", "\n") if windows else text
    line = 0
    try:
        documents = []
        for begin, end in _cuts(plain):
            document = plain[begin:end]
            _check(compose(document), line, ())
            documents.append(document)
            line += document.count("\n")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        here = line + mark.line + 1 if mark else 0
        raise Fault(f"not valid YAML: {error.problem or error.context}", here) from error
    except yaml.reader.ReaderError as error:
        here = plain.count("\n", 0, error.position) + 1
        said = f"not valid YAML: the character {error.character!r} is not allowed"
        raise Fault(said, here) from error
    except RecursionError as error:
        raise Fault("nested too deeply to be a manifest", 0) from error
    return Stream(documents, windows)


def _cuts(text: str) -> list[tuple[int, int]]:
    """Where each document begins and ends; what stands before a separator belongs to the document above it."""
    events = yaml.parse(text, yaml.SafeLoader)
    starts = [e.start_mark.index for e in events if isinstance(e, yaml.DocumentStartEvent) and e.start_mark]
    return list(pairwise([0, *starts[1:], len(text)]))


def objects(document: str) -> list[Object]:
    """The objects of a document, in order."""
    return list(_objects(value_of(compose(document)), ()))


def _objects(value: Value, path: Path) -> Iterator[Object]:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return
    items = value.get("items")
    if str(value["kind"]).endswith("List") and isinstance(items, list):
        for i, item in enumerate(items):
            yield from _objects(item, (*path, "items", i))
    else:
        yield Object(path, value)


def _check(node: yaml.Node, line: int, around: tuple[yaml.Node, ...]) -> None:
    if node in around:
        raise Fault("an anchor that contains itself", line + node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, line, (*around, node))
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, here = str(key.value), line + key.start_mark.line + 1
            if name in first:
                raise Fault(f"{name!r} is written twice, in lines {first[name]} and {here}; keep one", here)
            first[name] = here
            _check(value, line, (*around, node))
