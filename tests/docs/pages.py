"""What stands in the README and in `docs/`: fenced blocks, commands, files, headings and links. Pure but for reading.

The second word of a `console` block says how its commands are shown to be right:

- `here`: run without a cluster, in a folder with the samples and the files of the page;
- `cluster`: run on a real node, all pages one after the other; those of `bridge` also against the simulated cluster;
- `shown`: not run (they build, push or delete things of the reader's); options and targets are checked all the same.

A `yaml` block whose first line is a comment that is a path is a file; commands after it may use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HOW = ("here", "cluster", "shown")

_FENCE = re.compile(r"^```(.*)$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"# ([\w./-]+\.yaml)")


def pages() -> list[Path]:
    """In the order in which a reader takes them; the last one takes everything off again."""
    first, last = REPOSITORY / "README.md", REPOSITORY / "docs" / "uninstall.md"
    rest = sorted(set((REPOSITORY / "docs").glob("*.md")) - {last})
    return [first, *rest, last]


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        page, line: where it begins.
        words: behind the fence: the language first.
        text: what is in it.
    """

    page: Path
    line: int
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def language(self) -> str:
        """The first word, or nothing."""
        return self.words[0] if self.words else ""

    @property
    def file(self) -> str:
        """The path of the file that it is; empty if it is none."""
        found = _FILE.fullmatch(self.text.partition("\n")[0])
        return found[1] if self.language == "yaml" and found else ""

    @property
    def commands(self) -> list[str]:
        """The lines behind a prompt, comments taken off."""
        lines = (line for line in self.text.splitlines() if line.startswith("$ "))
        return [re.sub(r"\s+#\s.*$", "", line.removeprefix("$ ")) for line in lines]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page. Raises AssertionError for one that is not closed."""
    begun: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence is None:
            inside.append(line)
        elif begun is None:
            begun, inside = (number, fence[1]), []
        else:
            yield Block(page, begun[0], tuple(begun[1].split()), "\n".join(inside) + "\n")
            begun = None
    assert begun is None, f"{page.name}:{begun} is not closed"


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines outside blocks, numbered."""
    lines, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            lines.append((number, line))
    return lines


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of links, with their lines."""
    for number, line in prose(page):
        yield from ((number, target) for target in _LINK.findall(line))


def anchors(page: Path) -> set[str]:
    """What a link to a heading may say, as GitHub makes it of the heading."""
    headings = (line.lstrip("#").strip() for _, line in prose(page) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def inline_commands(page: Path) -> Iterator[tuple[int, str]]:
    """Commands of `bridge` in the running text."""
    for number, line in prose(page):
        yield from ((number, found) for found in re.findall(r"`(bridge [a-z][^`]*)`", line))


def told(words: Sequence[str], page: Path) -> list[str]:
    """Those of some words that a page does not have in code marks."""
    text = page.read_text(encoding="utf-8")
    return [word for word in words if f"`{word}`" not in text]
