"""A benchmark as tables: for each network one of latencies, and one of what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from parnet_deploy.bench.report import figures, wording
from parnet_deploy.bench.result import BenchResult, Outcome
from parnet_deploy.pages.sheet import NONE, Column, Sheet

Cell = Callable[[Outcome], str]

NAME = Column(head="contestant", numeric=False)

LATENCY: tuple[tuple[Column, Cell], ...] = (
    (NAME, lambda o: o.contestant.name),
    (Column(head="whose", numeric=False), lambda o: o.contestant.group),
    (Column(head="preci-\nsion", numeric=False), lambda o: o.precision),
    (Column(head="median\nms"), lambda o: figures.milliseconds(o.latency.p50)),
    (Column(head="p90\nms"), lambda o: figures.milliseconds(o.latency.p90)),
    (Column(head="p99\nms"), lambda o: figures.milliseconds(o.latency.p99)),
    (Column(head="ratio"), lambda o: figures.factor(o.ratio.median)),
    (Column(head="quartiles"), lambda o: figures.quartiles(o.ratio)),
    (Column(head="images/s"), lambda o: figures.rate(o.throughput)),
    (
        Column(head="compute\nms"),
        lambda o: NONE if o.compute is None else figures.milliseconds(o.compute.p50),
    ),
    (
        Column(head="times\nfloor"),
        lambda o: NONE if o.floor is None else f"{wording.times_floor(o):.1f}",
    ),
)

COST: tuple[tuple[Column, Cell], ...] = (
    (NAME, lambda o: o.contestant.name),
    (Column(head="devices", numeric=False), lambda o: ", ".join(o.contestant.devices)),
    (Column(head="first\nanswer s"), lambda o: f"{median(o.first_answer):.2f}"),
    (Column(head="memory\nMiB"), lambda o: figures.mebibytes(o.host_memory)),
    (Column(head="GPU\nMiB"), lambda o: figures.mebibytes(o.gpu_memory)),
    (Column(head="kernels"), lambda o: NONE if o.kernels is None else str(o.kernels)),
    (
        Column(head="max rel\nerror"),
        lambda o: NONE if o.parity is None else figures.error(o.parity.max_rel),
    ),
    (
        Column(head="same\ntop-1"),
        lambda o: NONE if o.parity is None else f"{o.parity.same_top1} of {o.parity.images}",
    ),
)


def sheets(result: BenchResult) -> tuple[Sheet, ...]:
    """All tables, network by network."""
    return tuple(
        sheet
        for network in result.networks
        for sheet in (latency_sheet(result, network), cost_sheet(result, network))
    )


def latency_sheet(result: BenchResult, network: str) -> Sheet:
    """One network's latencies, from host memory to host memory, the fastest first."""
    outcomes = result.of(network)
    batch = result.settings.batch
    reference = result.reference(network)
    ratio = f", ratio to '{reference.contestant.name}'" if reference else ""
    title = f"{network}: latency of {batch} image{'s' if batch > 1 else ''}{ratio}"
    return _sheet(title, LATENCY, outcomes, notes=tuple(_doubts(outcomes)))


def cost_sheet(result: BenchResult, network: str) -> Sheet:
    """One network's times to the first answer, memory, and how near the answers are."""
    title = f"{network}: what it costs, and how near the answers are"
    return _sheet(title, COST, result.of(network))


def _sheet(
    title: str,
    columns: Sequence[tuple[Column, Cell]],
    outcomes: Sequence[Outcome],
    notes: tuple[str, ...] = (),
) -> Sheet:
    ours = [i for i, outcome in enumerate(outcomes) if outcome.contestant.group == "ours"]
    return Sheet(
        title=title,
        columns=tuple(column for column, _ in columns),
        rows=tuple(tuple(cell(outcome) for _, cell in columns) for outcome in outcomes),
        emphasised=frozenset(ours),
        notes=notes,
    ).without_empty_columns()


def _doubts(outcomes: Sequence[Outcome]) -> list[str]:
    found = []
    for outcome in outcomes:
        name = outcome.contestant.name
        found += [f"{name}: {warning}" for warning in outcome.warnings]
        if reason := wording.instability(outcome.latency):
            found.append(f"{name} is unstable: {reason}")
    return found
