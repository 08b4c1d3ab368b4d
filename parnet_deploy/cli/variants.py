"""``parnet-deploy variants``: the networks that have a name, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from parnet_deploy.cli.console import Justify, console, new_table, print_json, print_table
from parnet_deploy.spec import VARIANTS, Counts, ParNetSpec, Variant, count

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with exact numbers.")]

MILLION = 1_000_000
BILLION = 1_000_000_000

COLUMNS: dict[str, Justify] = {
    "name": "left",
    "depth": "right",
    "M\nparams\ntrain": "right",
    "M\nparams\nfused": "right",
    "GFLOP\nfused": "right",
    "image": "right",
    "str-\neams": "right",
    "widths": "left",
    "paper\nM": "right",
    "paper\nGFLOP": "right",
    "paper\ntop-1": "right",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A variant, counted; `paper` holds what the paper says of it, None where it does not."""

    name: str
    counts: Counts
    paper: Paper
    spec: ParNetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """The paper's figures: millions of parameters, GFLOP at 224x224, top-1 accuracy in percent."""

    parameters_millions: float | None
    gflop: float | None
    top1_percent: float | None


def command(as_json: AsJson = False) -> None:
    """List the networks that have a name, counted, beside the paper's own figures."""
    rows = [_row(variant) for variant in VARIANTS.values()]
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)


def _row(variant: Variant) -> Row:
    return Row(
        name=variant.spec.name,
        counts=count(variant.spec),
        paper=Paper(
            parameters_millions=variant.paper_parameters,
            gflop=variant.paper_gflop,
            top1_percent=variant.paper_top1,
        ),
        spec=variant.spec,
    )


def _print_table(rows: list[Row]) -> None:
    table = new_table("Variants", COLUMNS)
    for row in rows:
        counts, paper = row.counts, row.paper
        table.add_row(
            row.name,
            str(counts.depth),
            f"{counts.parameters_training / MILLION:.3f}",
            f"{counts.parameters_fused / MILLION:.3f}",
            f"{counts.flop_fused / BILLION:.2f}",
            _size(row.spec.image_size),
            str(row.spec.streams),
            ",".join(map(str, row.spec.widths)),
            _figure(paper.parameters_millions, 1),
            _figure(paper.gflop, 1),
            _figure(paper.top1_percent, 2),
        )
    print_table(table)
    console.print(
        "\nDepth: longest path of convolutions and linear layers. M: millions.\n"
        "Fused: one biased 3x3 convolution a block. GFLOP: one image of the size shown,\n"
        "two operations per multiply-add. Paper: tables 1 and 2 (ImageNet, 224x224) and 6\n"
        "(CIFAR-10), top-1 in percent. It gives no widths for CIFAR: ours meet its sizes.",
        style="dim",
        highlight=False,
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _size(image_size: tuple[int, int]) -> str:
    """As ``export --image-size`` takes it: one number where it is square."""
    height, width = image_size
    return str(height) if height == width else f"{height}x{width}"
