"""The tables of a benchmark: what stands in them, how wide they are, and as Markdown."""

from __future__ import annotations

import io
from dataclasses import replace

import bench_results as made
import pytest
from rich.console import Console

from parnet_deploy.bench.report import table
from parnet_deploy.bench.result import BenchResult, Floor
from parnet_deploy.bench.statistics import describe
from parnet_deploy.cli import console as printing
from parnet_deploy.pages.sheet import Column, Sheet, markdown

FLOOR = Floor(device="a GPU", roofline=0.04, launches=0.06)


def full() -> BenchResult:
    """Every column has something to say, and names are as long as they get."""
    everything = {
        "compute": describe([[1000.0] * 4]),
        "floor": FLOOR,
        "gpu_memory": 2**34,
        "kernels": 92,
        "precision": "fp16",
        "parity": replace(made.NEAR, right=64, reference_right=64),
    }
    return made.result(
        made.outcome("parnet-l-tensorrt-rtx, split on all", 1234.5, **everything),
        made.outcome("torch.compile, max-autotune, cuda:0", 2345.6, group="peer", **everything),
    )


def cells(sheet: Sheet, row: int) -> dict[str, str]:
    heads = [column.one_line for column in sheet.columns]
    return dict(zip(heads, sheet.rows[row], strict=True))


def test_latencies_stand_in_their_columns() -> None:
    rounds = ((1.0, 2.0, 3.0),) * 8
    found = made.result(
        made.outcome("slow", rounds=((2.0, 4.0, 6.0),) * 8, group="peer"),
        made.outcome("fast", rounds=rounds),
    )
    sheet = table.latency_sheet(found, "l")
    assert sheet.title == "l: latency of 1 image, ratio to 'slow'"
    assert cells(sheet, 0) == {
        "contestant": "fast",
        "whose": "ours",
        "precision": "fp32",
        "p50 ms": "2.000",
        "p90 ms": "3.000",
        "p95 ms": "3.000",
        "p99 ms": "3.000",
        "mean ms": "2.000",
        "CV %": "40.8",
        "ratio": "0.500",
        "quartiles": "0.500-0.500",
        "images/s": "500",
    }
    assert sheet.emphasised == {0}


def test_costs_stand_in_their_columns() -> None:
    found = made.result(
        made.outcome("a", gpu_memory=2**30, kernels=89), made.outcome("b", 20.0, parity=None)
    )
    sheet = table.cost_sheet(found, "l")
    assert cells(sheet, 0) == {
        "contestant": "a",
        "devices": "cpu",
        "first answer s": "1.25",
        "memory MiB": "300",
        "GPU MiB": "1024",
        "kernels": "89",
        "max rel error": "1.2e-07",
        "same top-1": "64 of 64",
    }
    assert cells(sheet, 1)["max rel error"] == "-"


def test_all_are_held_against_the_floor_in_the_same_way() -> None:
    alone = describe([[0.5]])
    rounds = ((1.0, 2.0, 3.0),) * 8
    found = made.result(
        made.outcome("a", rounds=rounds, compute=alone, floor=FLOOR),
        made.outcome("b", 20.0, rounds=rounds, compute=alone, floor=FLOOR, group="peer"),
        made.outcome("c", rounds=rounds),
    )
    sheet = table.cost_sheet(found, "l")
    assert [cells(sheet, row)["times floor"] for row in range(3)] == ["5.0", "5.0", "-"]
    assert sheet.notes == ("Times floor: compute alone.",)
    peer = replace(found.outcomes[1], compute=None)
    found = replace(found, outcomes=(found.outcomes[0], peer, found.outcomes[2]))
    sheet = table.cost_sheet(found, "l")
    assert [cells(sheet, row)["times floor"] for row in range(3)] == ["20.0", "20.0", "-"]
    assert [cells(sheet, row)["compute ms"] for row in range(3)] == ["0.5000", "-", "-"]
    assert sheet.notes == ("Times floor: end to end.",)
    assert table.cost_sheet(made.result(made.outcome("a")), "l").notes == ()


def test_columns_with_nothing_to_say_are_left_out() -> None:
    heads = [c.one_line for sheet in table.sheets(made.contest()) for c in sheet.columns]
    assert "compute ms" not in heads
    assert "GPU MiB" not in heads
    assert "times floor" in heads


def test_what_is_doubtful_stands_below() -> None:
    found = made.result(
        made.outcome("shaky", 10.0, spread=0.3), made.outcome("hot", 12.0, warnings=("throttled",))
    )
    notes = table.latency_sheet(found, "l").notes
    warning, unstable, advice = notes
    assert warning == "hot: throttled"
    assert unstable.startswith("shaky is unstable: its latencies vary by")
    assert "measure again" in advice
    assert table.latency_sheet(made.result(made.outcome("calm")), "l").notes == ()


def test_every_network_has_its_tables() -> None:
    found = made.result(made.outcome("a", network="s"), made.outcome("b", network="l"))
    assert [sheet.title[0] for sheet in table.sheets(found)] == ["s", "s", "l", "l"]
    assert table.latency_sheet(found, "l").rows[0][0] == "b"


def test_a_batch_is_named() -> None:
    found = made.result(made.outcome("a"))
    found = replace(found, settings=replace(found.settings, batch=8))
    assert "latency of 8 images" in table.latency_sheet(found, "l").title


def test_the_widest_table_fits_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(printing, "console", Console(file=out, width=120))
    sheets = table.sheets(full())
    for sheet in sheets:
        printing.print_sheet(sheet)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 120
    assert [len(sheet.columns) for sheet in sheets] == [len(table.LATENCY), len(table.COST) + 1]
    for outcome in full().outcomes:
        assert text.count(outcome.contestant.name) >= 2  # not folded


def test_names_are_no_markup_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = made.result(made.outcome("[red]a[/]", warnings=("[bold]hot",)), made.outcome("b", 20.0))
    for sheet in table.sheets(found):
        printing.print_sheet(sheet)
    out = capsys.readouterr().out
    assert "[red]a[/]" in out
    assert "[bold]hot" in out


def test_markdown_has_a_line_for_each_row_and_escapes_what_it_would_read() -> None:
    sheet = Sheet(
        title="a_b",
        columns=(Column(head="preci-\nsion", numeric=False), Column(head="ms")),
        rows=(("x|y <b>", "1"), ("z", "2")),
        emphasised=frozenset({1}),
        notes=("two\nlines",),
    )
    assert markdown(sheet, level=3).splitlines() == [
        r"### a\_b",
        "",
        "| precision | ms |",
        "|---|---:|",
        r"| x\|y \<b\> | 1 |",
        "| **z** | 2 |",
        "",
        "two lines",
    ]


@pytest.mark.parametrize(
    "faulty",
    [
        {"columns": (Column(head="a"), Column(head="a")), "rows": (("1", "2"),)},
        {"rows": (("1", "2"),)},
        {"emphasised": frozenset({1})},
    ],
)
def test_a_sheet_that_does_not_fit_together_is_refused(faulty: dict[str, object]) -> None:
    whole = Sheet(title="t", columns=(Column(head="a"),), rows=(("1",),))
    with pytest.raises(ValueError, match="'t'"):
        replace(whole, **faulty)  # type: ignore[arg-type]
