"""A benchmark as tables: for each network one of latencies, and one of what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from parnet_deploy.bench.report import figures, precision_words, wording
from parnet_deploy.bench.result import BenchResult, Outcome
from parnet_deploy.pages.sheet import NONE, Column, Sheet

Cell = Callable[[Outcome], str]

NAME = Column(head="contestant", numeric=False)

LATENCY: tuple[tuple[Column, Cell], ...] = (
    (NAME, lambda o: o.contestant.name),
    (Column(head="whose", numeric=False), lambda o: o.contestant.group),
    (Column(head="preci-\nsion", numeric=False), precision_words.name_of),
    (Column(head="p50\nms"), lambda o: figures.milliseconds(o.latency.p50)),
    (Column(head="p90\nms"), lambda o: figures.milliseconds(o.latency.p90)),
    (Column(head="p95\nms"), lambda o: figures.milliseconds(o.latency.p95)),
    (Column(head="p99\nms"), lambda o: figures.milliseconds(o.latency.p99)),
    (Column(head="mean\nms"), lambda o: figures.milliseconds(o.latency.mean)),
    (Column(head="CV\n%"), lambda o: f"{100 * o.latency.variation:.1f}"),
    (Column(head="ratio"), lambda o: figures.factor(o.ratio.median)),
    (Column(head="quartiles"), lambda o: figures.quartiles(o.ratio)),
    (Column(head="images/s"), lambda o: figures.rate(o.throughput)),
)

COST: tuple[tuple[Column, Cell], ...] = (
    (NAME, lambda o: o.contestant.name),
    (Column(head="devices", numeric=False), lambda o: ", ".join(o.contestant.devices)),
    (
        Column(head="compute\nms"),
        lambda o: NONE if o.compute is None else figures.milliseconds(o.compute.p50),
    ),
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
    (
        Column(head="accu-\nracy %"),
        lambda o: NONE if o.parity is None else figures.accuracy(o.parity.accuracy),
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
    """One network's distance from the floor, memory, and how near the answers are."""
    outcomes = result.of(network)
    title = f"{network}: what it costs, and how near the answers are"
    if not any(outcome.floor for outcome in outcomes):
        return _sheet(title, COST, outcomes)
    basis = wording.floor_basis(outcomes)
    name, devices, compute, *rest = COST
    columns = (name, devices, compute, (Column(head="times\nfloor"), _floor(basis)), *rest)
    return _sheet(title, columns, outcomes, notes=(f"Times floor: {basis}.",))


def _floor(basis: wording.Basis) -> Cell:
    return lambda o: NONE if o.floor is None else f"{wording.times_floor(o, basis):.1f}"


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
    found = [f"{o.contestant.name}: {warning}" for o in outcomes for warning in o.warnings]
    shaky = [(o.contestant.name, wording.instability(o.latency)) for o in outcomes]
    unstable = [f"{name} is unstable: {reason}." for name, reason in shaky if reason]
    return [*found, *unstable, *([wording.ADVICE] if unstable else [])]
