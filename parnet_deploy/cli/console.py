"""What people read on the terminal, and what programs read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

from parnet_deploy.pages.sheet import Sheet
from parnet_deploy.spec import encode

Justify = Literal["left", "right"]

_KIB = 1024

_PIPED_COLUMNS = 200
"""Width where nobody's terminal sets one: lines are not broken for a program or a log."""

_ENDLESS = 10_000


class _Console(Console):
    """A console whose reader may go away (``parnet-deploy ... | head``).

    rich would end the program with status 1, whatever the command found.
    """

    def on_broken_pipe(self) -> None:
        """Leave a result's end to the command; progress that nobody reads stops nothing."""
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere, so that Python ends without complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _console(stream: TextIO, *, stderr: bool = False) -> Console:
    known = stream.isatty() or "COLUMNS" in os.environ
    return _Console(stderr=stderr, width=None if known else _PIPED_COLUMNS)


console = _console(sys.stdout)
"""Standard output: results."""

errors = _console(sys.stderr, stderr=True)
"""Standard error: progress and warnings, so that ``--json`` output stays clean."""


def new_table(title: str | None, columns: Mapping[str, Justify]) -> Table:
    """An empty table as all commands draw it: a rule below the heads, no frame.

    Where it does not fit the terminal, cells are folded: a number with its end cut off would be
    another number.

    Args:
        title: what stands above it, or None.
        columns: heads and how the cells below them are aligned.
    """
    return Table(
        *(Column(head, justify=how, overflow="fold") for head, how in columns.items()),
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
    )


def print_table(table: Table) -> None:
    """Print a table, its columns closer together where it would not fit otherwise."""
    endless = console.options.update(max_width=_ENDLESS)
    if Measurement.get(console, endless, table).maximum > console.width:
        table.padding = (0, 0, 0, 0)
    console.print(table)


def print_sheet(sheet: Sheet) -> None:
    """Print a table that is a value, and its notes below it."""
    columns: dict[str, Justify] = {
        column.head: "right" if column.numeric else "left" for column in sheet.columns
    }
    table = new_table(escape(sheet.title), columns)
    for number, row in enumerate(sheet.rows):
        style = "bold" if number in sheet.emphasised else None
        table.add_row(*(escape(cell) for cell in row), style=style)
    print_table(table)
    for note in sheet.notes:
        console.print(escape(note), style="dim", highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a result as it is, its lines not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print on standard error, as it is: progress, or an error that does not end the command."""
    errors.print(text, highlight=False, markup=False, soft_wrap=True)


def progress(step: str) -> None:
    """Tell of a step."""
    tell(f"  {step}")


def warn(warnings: Iterable[str]) -> None:
    """Print a bundle's warnings, loudly, on standard error."""
    for warning in warnings:
        errors.print(f"[bold red]WARNING[/] {escape(warning)}", highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print a dataclass, or what is made of them, as JSON: never coloured, never broken."""
    sys.stdout.write(encode(value).decode())


def human_bytes(size: int) -> str:
    """A size as people write it: ``1.5 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} GiB"
