"""``parnet-deploy variants``: the networks that have a name, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table

from parnet_deploy.cli.console import Justify, console, new_table, print_json, print_table
from parnet_deploy.spec import VARIANTS, Counts, ParNetSpec, Variant, count

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with exact numbers.")]

MILLION = 1_000_000
BILLION = 1_000_000_000

# Where a network's first table in the paper is one of these, it stands below that heading.
GROUPS = (
    ((1, 2), "ImageNet, 224x224 (tables 1 and 2)"),
    ((6,), "CIFAR-10, 32x32 (table 6)"),
    ((7,), "M without what the paper adds to it (table 7)"),
    ((8, 10), "M's number of parameters in other numbers of streams (tables 8 and 10)"),
    ((9,), "Ensembles of m-one-stream, whose members are their streams (table 9)"),
    ((11,), "Other depths (table 11)"),
    ((), "Small ones, 32x32 (not in the paper)"),
)

COLUMNS: dict[str, Justify] = {
    "name": "left",
    "depth": "right",
    "M\nparams\ntrain": "right",
    "M\nparams\nfused": "right",
    "GFLOP\nfused": "right",
    "str-\neams": "right",
    "widths": "left",
}
PAPER_COLUMNS = ("paper\nM", "paper\nGFLOP", "paper\ntop-1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A variant, counted; `paper` holds what the paper says of it, None where it does not."""

    name: str
    counts: Counts
    paper: Paper
    spec: ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """The paper's figures, None where it gives none.

    Attributes:
        tables: numbers of the tables that the network is in, the one its figures are from first.
        parameters_millions: parameters in millions.
        gflop: GFLOP at 224x224.
        top1_percent: top-1 accuracy in percent, of ImageNet or CIFAR-10.
        top5_percent: top-5 accuracy in percent, of ImageNet.
        cifar100_percent: top-1 accuracy in percent, of CIFAR-100.
    """

    tables: tuple[int, ...]
    parameters_millions: float | None
    gflop: float | None
    top1_percent: float | None
    top5_percent: float | None
    cifar100_percent: float | None


def command(as_json: AsJson = False) -> None:
    """List the networks that have a name, counted, beside the paper's own figures."""
    rows = [_row(variant) for variant in VARIANTS.values()]
    if as_json:
        print_json(rows)
    else:
        _print_tables(rows)


def _row(variant: Variant) -> Row:
    return Row(
        name=variant.spec.name,
        counts=count(variant.spec),
        paper=Paper(
            tables=variant.tables,
            parameters_millions=variant.paper_parameters,
            gflop=variant.paper_gflop,
            top1_percent=variant.paper_top1,
            top5_percent=variant.paper_top5,
            cifar100_percent=variant.paper_cifar100,
        ),
        spec=variant.spec,
    )


def _print_tables(rows: list[Row]) -> None:
    for tables, title in GROUPS:
        print_table(_table(title, [row for row in rows if _belongs(row.paper.tables, tables)]))
        console.print()
    console.print(
        "Depth: longest path of convolutions and linear layers. M: millions.\n"
        "Fused: one biased 3x3 convolution a block. GFLOP: one image of the size shown,\n"
        "two operations per multiply-add. Paper: top-1 in percent. docs/networks.md has\n"
        "the command that trains each, and how widths were chosen where it gives none.",
        style="dim",
        highlight=False,
    )


def _belongs(tables: tuple[int, ...], group: tuple[int, ...]) -> bool:
    return tables[0] in group if tables else not group


def _table(title: str, rows: list[Row]) -> Table:
    """One group's table, with those of the paper's columns that anything stands in."""
    figures = [_figures(row.paper) for row in rows]
    given = [i for i in range(len(PAPER_COLUMNS)) if any(row[i] for row in figures)]
    table = new_table(title, COLUMNS | {PAPER_COLUMNS[i]: "right" for i in given})
    for row, figure in zip(rows, figures, strict=True):
        counts = row.counts
        table.add_row(
            row.name,
            str(counts.depth),
            f"{counts.parameters_training / MILLION:.3f}",
            f"{counts.parameters_fused / MILLION:.3f}",
            f"{counts.flop_fused / BILLION:.2f}",
            str(row.spec.streams),
            ",".join(map(str, row.spec.widths)),
            *(figure[i] or "-" for i in given),
        )
    return table


def _figures(paper: Paper) -> tuple[str, str, str]:
    """What stands in the paper's columns; nothing where it gives no figure."""
    return (
        _figure(paper.parameters_millions, 1),
        _figure(paper.gflop, 1),
        _figure(paper.top1_percent, 2),
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
