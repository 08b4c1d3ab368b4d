"""A benchmark as one page that needs nothing else: words, tables and plots are in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import Markup

from parnet_deploy.bench.report import figures, plots, table
from parnet_deploy.bench.report.plots_parity import parity
from parnet_deploy.bench.report.plots_precision import precisions
from parnet_deploy.bench.report.plots_timeline import timelines
from parnet_deploy.bench.result import BenchResult, Settings
from parnet_deploy.pages import frame
from parnet_deploy.pages.sheet import Sheet

TEMPLATE = "page.html.j2"

LATENCIES = (
    "How densely the runs' times lie, without the slowest 1 %. The long mark is the median, the "
    "short one the 99th percentile. Orange: ours; blue: peers."
)
PARITY = (
    "Greatest difference of an output from the training form in float64, relative to the greatest "
    "output. A cross: not all images have the same top-1 class."
)
PRECISIONS = (
    "What is right of {images}, beside the median latency; a shape for each precision, a hollow "
    "one where the answers are further off than it allows. Orange: ours; blue: peers. Dotted: the "
    "training form, where the images have labels."
)
TIMELINE = "One run of each contestant that can tell its stages apart, a lane for each stage."
ROUNDS = (
    "The ratio to '{reference}' in every round, around its own median; on the right the median and "
    "its quartiles. Dotted: contestants were started anew. A cross lies beyond the row."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A plot with what is said of it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What the page shows of one network."""

    name: str
    verdict: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    plots: tuple[Plot, ...]


def render(result: BenchResult, paper: Sequence[Sheet] = ()) -> str:
    """A benchmark as HTML.

    Args:
        result: what was found.
        paper: the paper's tables beside ours, where they were asked for.
    """
    networks = [_network(result, name) for name in result.networks]
    marks = tuple(f"{name}: " for name in result.networks)
    return frame.render(
        (resources.files(__package__) / TEMPLATE).read_text(encoding="utf-8"),
        result=result,
        networks=networks,
        others=[_begun(words) for words in result.verdict if not words.startswith(marks)],
        paper=paper,
        settings=_in_words(result.settings),
        machine=figures.machine(result.conditions),
        date=result.date[:16].replace("T", " ") + " UTC",
    )


def _network(result: BenchResult, name: str) -> Network:
    mark = f"{name}: "
    absent = tuple(f"{mark}'{absence.name}' did not" for absence in result.absent)
    return Network(
        name=name,
        verdict=tuple(
            _begun(sentence.removeprefix(mark))
            for sentence in result.verdict
            if sentence.startswith(mark) and not sentence.startswith(absent)
        ),
        sheets=(table.latency_sheet(result, name), table.cost_sheet(result, name)),
        plots=tuple(_plots(result, name)),
    )


def _plots(result: BenchResult, network: str) -> Iterator[Plot]:
    outcomes, reference = result.of(network), result.reference(network)
    drawn = [("Latency", LATENCIES, plots.latencies(network, outcomes))]
    if (drawing := precisions(network, outcomes)) is not None:
        caption = PRECISIONS.format(images=result.images or "the images")
        drawn.insert(0, ("Precisions", caption, drawing))
    if (drawing := parity(network, outcomes)) is not None:
        drawn.append(("Parity beside latency", PARITY, drawing))
    if (drawing := timelines(network, outcomes)) is not None:
        drawn.append(("Timeline of the stages", TIMELINE, drawing))
    if reference is not None and len(outcomes) > 1:
        drawing = plots.rounds(network, outcomes, reference, result.settings.processes)
        caption = ROUNDS.format(reference=reference.contestant.name)
        drawn.append(("Stability", caption, drawing))
    for title, caption, drawing in drawn:
        # Made by matplotlib here, which escapes the names in it.
        yield Plot(title=title, caption=caption, svg=Markup(drawing))  # noqa: S704


def _begun(sentence: str) -> str:
    """A sentence that begins as sentences do."""
    return sentence[:1].upper() + sentence[1:]


def _in_words(settings: Settings) -> str:
    return (
        f"batch {settings.batch}; {settings.rounds} interleaved rounds, their order shuffled with "
        f"seed {settings.seed}; each contestant in a process of its own, started "
        f"{settings.processes} times; {settings.warm_up} runs of each turn do not count; at least "
        f"{settings.iterations} runs and {settings.seconds:g} seconds of each contestant"
    )
