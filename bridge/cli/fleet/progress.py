"""How a rolling switch is shown: bars on a terminal, plain lines elsewhere. On standard error, so that the report on
standard output stays whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from bridge.cli.fleet.rollout import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Lines:
    """For a file or a pipe: one line for each piece of news."""

    def __init__(self) -> None:
        self._at = ""

    def batch(self, number: int, of: int, nodes: Sequence[str]) -> None:
        """A batch begins."""
        self._at = f"batch {number}/{of}: "
        _line(f"{self._at}{', '.join(nodes)}")

    def says(self, node: str, text: str) -> None:
        """A node is under way."""
        _line(f"{self._at}{node}: {text}")

    def done(self, node: str, text: str) -> None:
        """A node is there."""
        _line(f"{self._at}{node}: {text}")

    def failed(self, node: str, text: str) -> None:
        """A node is not."""
        _line(f"{self._at}{node}: FAILED: {text}")

    def pause(self, seconds: float) -> None:
        """Nothing happens for a while."""
        _line(f"{self._at}pause of {seconds:g} s")


class Bars:
    """For a terminal: a bar for the batch that is under way, and what its nodes say beside it."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._news: dict[str, str] = {}

    def batch(self, number: int, of: int, nodes: Sequence[str]) -> None:
        """A batch begins."""
        self._news = {}
        if self._task is not None:
            self._bar.remove_task(self._task)  # there may be as many batches as nodes
        self._task = self._bar.add_task(f"batch {number}/{of}", total=len(nodes), news=", ".join(nodes))

    def says(self, node: str, text: str) -> None:
        """A node is under way."""
        self._tell(node, text)

    def done(self, node: str, text: str) -> None:
        """A node is there."""
        if self._task is not None:
            self._bar.advance(self._task)
        self._tell(node, f"[green]{_plain(text)}[/]", styled=True)

    def failed(self, node: str, text: str) -> None:
        """A node is not."""
        self._tell(node, f"[red]{_plain(text)}[/]", styled=True)

    def pause(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self._tell("", f"pause of {seconds:g} s")

    def _tell(self, node: str, text: str, *, styled: bool = False) -> None:
        """The newest of each node, the newest last; as much as the line has room for is shown."""
        self._news.pop(node, None)
        self._news[node] = f"{node} {text if styled else _plain(text)}".strip()
        if self._task is not None:
            self._bar.update(self._task, news="; ".join(reversed(self._news.values())))


@contextmanager
def shown(console: Console | None = None) -> Iterator[Progress]:
    """Show a switch while it runs, as the place it is shown in allows."""
    from rich.console import Console

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[news]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Bar(*columns, console=console, expand=True) as bar:
        yield Bars(bar)


def _plain(text: str) -> str:
    """A text of others has no markup."""
    return text.replace("[", r"\[")


def _line(text: str) -> None:
    typer.echo(text, err=True)
