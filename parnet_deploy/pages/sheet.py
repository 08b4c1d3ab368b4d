"""A table as a value: printed on a terminal, drawn on a page, written as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NONE = "-"
"""Stands in a cell with nothing to say."""

_MEANINGFUL = "\\`*_[]<>|~#"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column.

    Attributes:
        head: what stands above it. It may be of several lines where it would be wide otherwise.
        numeric: figures, whose ends stand below each other.
    """

    head: str
    numeric: bool = True

    @property
    def one_line(self) -> str:
        """The head where there is room for it: a word that was divided is whole again."""
        return " ".join(self.head.replace("-\n", "").split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table.

    Attributes:
        title: what stands above it.
        columns: heads; no two are the same.
        rows: a cell for each column.
        emphasised: numbers of the rows that are to stand out.
        notes: sentences below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasised: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        heads = [column.head for column in self.columns]
        if len(set(heads)) != len(heads):
            raise ValueError(f"two columns of '{self.title}' have the same head: {heads}")
        for row in self.rows:
            if len(row) != len(heads):
                raise ValueError(f"'{self.title}' has {len(heads)} columns, and a row is {row}")
        if not self.emphasised <= set(range(len(self.rows))):
            raise ValueError(f"'{self.title}' emphasises rows that it does not have")

    def without_empty_columns(self) -> Sheet:
        """The same without the columns in which no row has anything to say."""
        kept = [i for i in range(len(self.columns)) if any(row[i] != NONE for row in self.rows)]
        return Sheet(
            title=self.title,
            columns=tuple(self.columns[i] for i in kept),
            rows=tuple(tuple(row[i] for i in kept) for row in self.rows),
            emphasised=self.emphasised,
            notes=self.notes,
        )


def markdown(sheet: Sheet, *, level: int = 2) -> str:
    """A sheet as Markdown: heading, table, notes.

    Args:
        sheet: the table.
        level: of its heading.
    """
    rules = ["---:" if column.numeric else "---" for column in sheet.columns]
    lines = [
        f"{'#' * level} {plain(sheet.title)}",
        "",
        _line(plain(column.one_line) for column in sheet.columns),
        "|" + "|".join(rules) + "|",
    ]
    for number, row in enumerate(sheet.rows):
        cells = [plain(cell) for cell in row]
        if number in sheet.emphasised:
            cells[0] = f"**{cells[0]}**"
        lines.append(_line(cells))
    for note in sheet.notes:
        lines += ["", plain(note)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A text that Markdown shows as it is: nothing in it is markup, and it is one line."""
    text = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in _MEANINGFUL else letter for letter in text)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
