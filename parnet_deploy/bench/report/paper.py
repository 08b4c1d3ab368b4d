"""The paper's tables 2, 3 and 11, and the same figures as they were measured here beside them.

Goyal, Bochkovskiy, Deng, Koltun: Non-deep Networks. Figures are copied as they are printed; speed
was measured at batch 1 on GeForce RTX 3090s with PyTorch 1.8.1 and CUDA 11.1 (table 3's caption).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from parnet_deploy.bench.report import figures
from parnet_deploy.bench.result import BenchResult, Conditions, Outcome
from parnet_deploy.pages.sheet import NONE, Column, Sheet
from parnet_deploy.spec import VARIANTS, Counts, count

ONE_GPU, THREE_GPUS = "RTX 3090", "3 RTX 3090"

_AS_TRAINED = ("torch", "onnxruntime")
"""Openers of peers that run the network as it was trained, unless they are told to fuse it."""

NOTE = (
    "Paper's rows: batch 1, PyTorch 1.8.1, CUDA 11.1. Ours: median latency from host memory to "
    "host memory, {batch}. This project has not trained these networks on ImageNet: where top-1 "
    "stands empty, it was not measured."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """A line of the paper's table 2, as it is printed.

    Attributes:
        network: how contestants name the network.
        title: how the paper names it.
        depth: layers.
        top1: percent of ImageNet.
        speed: images per second.
        parameters: millions.
        flop: billions for an image.
        hardware: what it ran on.
    """

    network: str
    title: str
    depth: str
    top1: str
    speed: str
    parameters: str
    flop: str
    hardware: str = ONE_GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A line of the paper's table 3, as it is printed.

    Attributes:
        title: how the paper names it.
        top1: percent of ImageNet.
        speed: images per second.
        latency: milliseconds.
        hardware: what it ran on.
        ours: whether a contestant is the same.
    """

    title: str
    top1: str
    speed: str
    latency: str
    hardware: str
    ours: Callable[[Outcome], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """A line of the paper's table 11, as it is printed: latencies in ms and top-1 in percent.

    Attributes:
        depth: layers.
        latency: of M, L and XL.
        top1: of M, L and XL.
    """

    depth: int
    latency: tuple[str, str, str]
    top1: tuple[str, str, str]


def _schedule(*names: str) -> Callable[[Outcome], bool]:
    def found(outcome: Outcome) -> bool:
        who = outcome.contestant
        return who.group == "ours" and who.settings.get("schedule") in names

    return found


def _unfused(outcome: Outcome) -> bool:
    who = outcome.contestant
    return (
        who.group == "peer" and who.opener in _AS_TRAINED and not who.settings.get("fused", False)
    )


def _line(network: str, title: str, *printed: str, hardware: str = ONE_GPU) -> Speed:
    depth, top1, speed, parameters, flop = printed
    return Speed(
        network=network,
        title=title,
        depth=depth,
        top1=top1,
        speed=speed,
        parameters=parameters,
        flop=flop,
        hardware=hardware,
    )


TABLE_2 = (
    _line("resnet34", "ResNet34", "34", "74.12", "306", "21.8", "7.3"),
    _line("resnet50", "ResNet50", "50", "77.53", "222", "25.6", "8.2"),
    _line("repvgg-b1g4", "RepVGG-b1g4", "29", "77.59", "376", "36.1", "14.6"),
    _line("repvgg-b2g4", "RepVGG-b2g4", "29", "79.38", "300", "55.8", "22.7"),
    _line("s", "ParNet-S", "12", "75.19", "280", "19.2", "9.7", hardware=THREE_GPUS),
    _line("m", "ParNet-M", "12", "76.60", "265", "35.6", "17.2", hardware=THREE_GPUS),
    _line("l", "ParNet-L", "12", "77.66", "249", "54.9", "26.7", hardware=THREE_GPUS),
    _line("xl", "ParNet-XL", "12", "78.55", "230", "85.0", "41.5", hardware=THREE_GPUS),
)

TABLE_3 = (
    Schedule(
        title="ParNet-L (Unfused)",
        top1="77.66",
        speed="112",
        latency="8.95",
        hardware=ONE_GPU,
        ours=_unfused,
    ),
    Schedule(
        title="ParNet-L (Fused, Single GPU)",
        top1="77.66",
        speed="154",
        latency="6.50",
        hardware=ONE_GPU,
        ours=_schedule("whole-one-stream", "whole", "split-one-device"),
    ),
    Schedule(
        title="ParNet-L (Multi-GPU)",
        top1="77.66",
        speed="249",
        latency="4.01",
        hardware=THREE_GPUS,
        ours=_schedule("split"),
    ),
)

TABLE_11 = (
    Depth(depth=9, latency=("3.1", "3.2", "3.7"), top1=("73.9", "75.1", "76.1")),
    Depth(depth=12, latency=("3.8", "4.0", "4.4"), top1=("76.6", "77.7", "78.6")),
    Depth(depth=15, latency=("4.8", "4.9", "5.4"), top1=("77.0", "78.4", "79.4")),
)
SIZES = ("m", "l", "xl")


def sheets(result: BenchResult) -> tuple[Sheet, ...]:
    """Those of the paper's tables of which something was measured, ours beside the paper's.

    What was measured stands out, with the contestant and its precision. Networks of this project
    are counted by their specs; those of others are not counted here.
    """
    found = (_table_2(result), _table_3(result), _table_11(result))
    return tuple(sheet for sheet in found if sheet.emphasised)


def networks() -> tuple[str, ...]:
    """Names of this project's networks in the three tables."""
    sizes = [line.network for line in TABLE_2 if _counts(line.network) != (NONE, NONE, NONE)]
    depths = [network_of(size, line.depth) for line in TABLE_11 for size in SIZES]
    return tuple(dict.fromkeys([*sizes, *depths]))


def network_of(size: str, depth: int) -> str:
    """How contestants name a network of table 11."""
    return size if depth == 12 else f"{size}-depth{depth}"


def _table_2(result: BenchResult) -> Sheet:
    heads = ("depth", "top-1\n%", "images/s", "params\nM", "GFLOP")
    rows: list[tuple[str, ...]] = []
    for line in TABLE_2:
        printed = (line.depth, line.top1, line.speed, line.parameters, line.flop)
        rows.append((line.title, line.hardware, *printed))
        counts = _counts(line.network)
        rows += [
            (*_who(o, result.conditions), counts[0], NONE, figures.rate(o.throughput), *counts[1:])
            for o in _best(_measured(result, line.network))
        ]
    return _sheet("table 2: speed", heads, rows, result)


def _table_3(result: BenchResult) -> Sheet:
    heads = ("top-1\n%", "images/s", "latency\nms")
    rows: list[tuple[str, ...]] = []
    for line in TABLE_3:
        rows.append((line.title, line.hardware, line.top1, line.speed, line.latency))
        rows += [
            (
                *_who(outcome, result.conditions),
                NONE,
                figures.rate(outcome.throughput),
                figures.milliseconds(outcome.latency.p50),
            )
            for outcome in _best(filter(line.ours, result.of("l")))
        ]
    return _sheet("table 3: unfused, fused, on several devices", heads, rows, result)


def _table_11(result: BenchResult) -> Sheet:
    heads = [f"{size.upper()}\n{what}" for size in SIZES for what in ("ms", "top-1 %")]
    rows: list[tuple[str, ...]] = []
    for line in TABLE_11:
        pairs = zip(line.latency, line.top1, strict=True)
        figures_ = [figure for pair in pairs for figure in pair]
        rows.append((f"depth {line.depth}", THREE_GPUS, *figures_))
        rows += _depths(result, line.depth)
    return _sheet("table 11: depth", heads, rows, result)


def _depths(result: BenchResult, depth: int) -> Iterator[tuple[str, ...]]:
    """What was measured at one depth: a row for each contestant's name that stands in one."""
    found: dict[tuple[str, str], dict[str, Outcome]] = {}
    for size in SIZES:
        for outcome in _best(_measured(result, network_of(size, depth))):
            found.setdefault(_who(outcome, result.conditions), {})[size] = outcome
    for who, by_size in found.items():
        cells: list[str] = []
        for size in SIZES:
            there = by_size.get(size)
            cells += [NONE if there is None else figures.milliseconds(there.latency.p50), NONE]
        yield (*who, *cells)


def _measured(result: BenchResult, network: str) -> list[Outcome]:
    """Ours of a network; everybody's of one that is not ours."""
    outcomes = result.of(network)
    ours = [outcome for outcome in outcomes if outcome.contestant.group == "ours"]
    return ours or list(outcomes)


def _best(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The fastest in each precision whose answers are right; the fastest stand first."""
    found: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.right:
            found.setdefault(outcome.precision, outcome)
    return list(found.values())


def _who(outcome: Outcome, conditions: Conditions) -> tuple[str, str]:
    """A contestant with its precision, and the hardware that it ran on."""
    name = f"here: {outcome.contestant.name}, {outcome.precision}"
    return name, figures.hardware(outcome.contestant.devices, conditions)


def _counts(network: str) -> tuple[str, str, str]:
    """Depth, millions of parameters and GFLOP of the fused form, where the network is ours."""
    if network not in VARIANTS:
        return NONE, NONE, NONE
    counts: Counts = count(VARIANTS[network].spec)
    return (
        str(counts.depth),
        f"{counts.parameters_fused / 1e6:.1f}",
        f"{counts.flop_fused / 1e9:.2f}",
    )


def _sheet(
    title: str, heads: Iterable[str], rows: list[tuple[str, ...]], result: BenchResult
) -> Sheet:
    size = result.settings.batch
    batch = f"batch {size}" if size == 1 else f"batch {size}, which the paper's rows are not"
    ours = [number for number, row in enumerate(rows) if row[0].startswith("here: ")]
    return Sheet(
        title=f"the paper's {title}",
        columns=(
            Column(head="model", numeric=False),
            Column(head="hardware", numeric=False),
            *(Column(head=head) for head in heads),
        ),
        rows=tuple(rows),
        emphasised=frozenset(ours),
        notes=(NOTE.format(batch=batch),),
    )
