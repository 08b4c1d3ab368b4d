"""How far something long is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from parnet_deploy.cli.console import errors, tell

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""

Count = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps are."""


@contextmanager
def counting(title: str) -> Iterator[Count]:
    """Inside the block, show what is told.

    Args:
        title: one word for the whole, such as ``quantise``.
    """
    if not errors.is_terminal:
        yield _lines(title)
        return
    with bar(title, errors) as count:
        yield count


@contextmanager
def bar(title: str, console: Console) -> Iterator[Count]:
    """A bar on a terminal, which is gone when the block ends."""
    columns = (
        TextColumn(f"  {title}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, total: shown.update(
            task, description=what, completed=done, total=total
        )


def nothing(what: str, done: int, total: int) -> None:
    """Show nothing."""


def _lines(title: str) -> Count:
    last = time.monotonic()

    def count(what: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= EVERY:
            last = now
            tell(f"  {title}: {what}, {done} of {total}")

    return count
