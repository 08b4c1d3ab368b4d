"""The paper's tables beside ours: its figures as printed, ours where they were measured."""

from __future__ import annotations

from dataclasses import replace

import bench_results as made
import pytest

from parnet_deploy.bench.report import figures, paper
from parnet_deploy.bench.result import BenchResult, Conditions
from parnet_deploy.pages.sheet import Sheet
from parnet_deploy.spec import VARIANTS

GPUS = Conditions(hardware=(f"{made.CPU} (x86_64)", made.GPU, made.GPU), versions={})


def ours(sheet: Sheet) -> list[tuple[str, ...]]:
    return [sheet.rows[number] for number in sorted(sheet.emphasised)]


def by_title(result: BenchResult) -> dict[str, Sheet]:
    return {sheet.title.partition(":")[0]: sheet for sheet in paper.sheets(result)}


def test_the_papers_figures_agree_with_each_other() -> None:
    """What was copied wrongly would not: tables 2 and 3, speed and latency, and the variants'."""
    by_name = {line.network: line for line in paper.TABLE_2}
    assert by_name["l"].speed == paper.TABLE_3[-1].speed
    for schedule in paper.TABLE_3:
        assert 1000 / float(schedule.latency) == pytest.approx(float(schedule.speed), rel=0.01)
        assert schedule.top1 == by_name["l"].top1
    for name in ("s", "m", "l", "xl"):
        line, known = by_name[name], VARIANTS[name]
        assert float(line.parameters) == known.paper_parameters
        assert float(line.flop) == known.paper_gflop
        assert float(line.top1) == known.paper_top1
    for line in paper.TABLE_11:
        for size, top1 in zip(paper.SIZES, line.top1, strict=True):
            known = VARIANTS[paper.network_of(size, line.depth)]
            assert known.spec.name == paper.network_of(size, line.depth)
            assert float(top1) == pytest.approx(known.paper_top1 or 0.0, abs=0.051)
    assert [line.latency for line in paper.TABLE_11] == [
        ("3.1", "3.2", "3.7"),
        ("3.8", "4.0", "4.4"),
        ("4.8", "4.9", "5.4"),
    ]


def test_nothing_measured_makes_no_table() -> None:
    assert paper.sheets(made.result(made.outcome("a", network="tiny"))) == ()


def test_table_2_has_our_speed_counts_and_hardware_below_the_papers() -> None:
    found = made.result(
        made.outcome("engine", 10.0, network="l"),
        made.outcome("peer", 5.0, network="l", group="peer"),
        made.outcome("half", 2.0, network="l", precision="fp16"),
        made.outcome("slower half", 3.0, network="l", precision="fp16"),
        made.outcome("onnxruntime", 20.0, network="resnet50", group="peer"),
    )
    sheet = by_title(found)["the paper's table 2"]
    heads = [column.one_line for column in sheet.columns]
    assert heads == ["model", "hardware", "depth", "top-1 %", "images/s", "params M", "GFLOP"]
    assert [row[:3] for row in ours(sheet)] == [
        ("here: onnxruntime, fp32", made.CPU, "-"),
        ("here: half, fp16", made.CPU, "12"),
        ("here: engine, fp32", made.CPU, "12"),
    ]
    network = [row[0] for row in sheet.rows]
    assert network.index("here: engine, fp32") == network.index("ParNet-L") + 2
    assert ours(sheet)[-1][3:] == ("-", "100", "54.9", "26.65")
    speed = ours(sheet)[0][4]
    assert ours(sheet)[0][3:] == ("-", speed, "-", "-")
    assert float(speed) == pytest.approx(50.0, rel=0.01)
    assert sheet.rows[network.index("RepVGG-b1g4")] == (
        "RepVGG-b1g4",
        "RTX 3090",
        "29",
        "77.59",
        "376",
        "36.1",
        "14.6",
    )
    assert "has not trained these networks on ImageNet" in sheet.notes[0]


def test_table_3_puts_each_schedule_below_its_like() -> None:
    gpu, gpus = ("cuda:0",), ("cuda:0", "cuda:1")
    found = made.result(
        made.outcome("one stream", 2.0, schedule="whole-one-stream", devices=gpu),
        made.outcome("whole", 1.5, schedule="whole", devices=gpu),
        made.outcome("split", 1.0, schedule="split", devices=gpus),
        made.outcome("fused peer", 1.2, group="peer", settings={"fused": True}, devices=gpu),
        made.outcome("as trained", 9.0, group="peer", devices=gpu, opener="torch"),
        made.outcome("fused torch", 5.0, group="peer", settings={"fused": True}, opener="torch"),
        conditions=GPUS,
    )
    sheet = by_title(found)["the paper's table 3"]
    assert [row[0] for row in sheet.rows] == [
        "ParNet-L (Unfused)",
        "here: as trained, fp32",
        "ParNet-L (Fused, Single GPU)",
        "here: whole, fp32",
        "ParNet-L (Multi-GPU)",
        "here: split, fp32",
    ]
    assert [row[1] for row in sheet.rows] == [
        "RTX 3090",
        made.GPU,
        "RTX 3090",
        made.GPU,
        "3 RTX 3090",
        f"2 {made.GPU}",
    ]
    assert [row[4] for row in sheet.rows][::2] == ["8.95", "6.50", "4.01"]
    assert float(ours(sheet)[1][4]) == pytest.approx(1.5, rel=0.01)


def test_table_11_puts_depths_and_sizes_where_they_belong() -> None:
    found = made.result(
        made.outcome("engine", 3.0, network="m-depth9"),
        made.outcome("engine", 4.0, network="l"),
        made.outcome("engine", 9.0, network="xl"),
    )
    sheet = by_title(found)["the paper's table 11"]
    assert [row[0] for row in sheet.rows] == [
        "depth 9",
        "here: engine, fp32",
        "depth 12",
        "here: engine, fp32",
        "depth 15",
    ]
    ninth, twelfth = ours(sheet)
    assert float(ninth[2]) == pytest.approx(3.0, rel=0.01)
    assert ninth[3:] == ("-",) * 5
    assert float(twelfth[4]) == pytest.approx(4.0, rel=0.01)
    assert float(twelfth[6]) == pytest.approx(9.0, rel=0.01)
    assert sheet.rows[0][2:] == ("3.1", "73.9", "3.2", "75.1", "3.7", "76.1")


def test_another_batch_is_said() -> None:
    found = made.result(made.outcome("a"))
    found = replace(found, settings=replace(found.settings, batch=8))
    assert "batch 8, which the paper's rows are not" in paper.sheets(found)[0].notes[0]


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (("cpu",), made.CPU),
        (("cuda:1",), made.GPU),
        (("cuda:0", "cuda:1"), f"2 {made.GPU}"),
        (("cuda:7",), "cuda:7"),
    ],
)
def test_hardware_is_named_by_its_devices(devices: tuple[str, ...], words: str) -> None:
    assert figures.hardware(devices, GPUS) == words


def test_a_machine_is_named_in_a_few_words() -> None:
    assert figures.machine(GPUS) == f"{made.CPU}; 2 {made.GPU}"
