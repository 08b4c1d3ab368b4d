"""``parnet-deploy bench``: how fast, beside whom, and how near to what is possible."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from parnet_deploy.bench.benchmark import Programme, run_benchmark
from parnet_deploy.bench.peers import PEERS
from parnet_deploy.bench.report.paper import sheets as paper_sheets
from parnet_deploy.bench.report.saving import contents, targets
from parnet_deploy.bench.report.table import sheets
from parnet_deploy.bench.result import BenchResult, Settings
from parnet_deploy.cli.bench_asked import (
    Asked,
    build_engines,
    find,
    parse_backends,
    parse_names,
    parse_peers,
    parse_precisions,
    prepare_timm,
    title_of,
)
from parnet_deploy.cli.bench_plans import count_plans
from parnet_deploy.cli.console import print_json, print_sheet, progress, say, tell
from parnet_deploy.cli.options import parse_numbers
from parnet_deploy.cli.output import refuse_files, write_files
from parnet_deploy.pages.sheet import Sheet

Subjects = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="ENGINE...",
        help="Engines, or models, which are built first; without any, those under engines/. "
        "The first is the one that the others are compared with.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(help=f"Peers with commas between, or all: {', '.join(PEERS)}."),
]
Variants = Annotated[
    str | None, typer.Option(help="Networks by name, such as s,m,l,xl: exported and built first.")
]
Backends = Annotated[
    str | None,
    typer.Option(help="What models and variants are built with, such as onnxruntime,ncnn."),
]
Precisions = Annotated[
    str, typer.Option(help="Precisions of the variants' graphs, such as fp32,fp16.")
]
Devices = Annotated[
    str | None, typer.Option(help="GPUs that split engines may use, such as 0,1,2; none: all.")
]
BatchSize = Annotated[int, typer.Option("--batch", help="Images per run.", min=1)]
Rounds = Annotated[
    int, typer.Option(help="Turns of each contestant, in an order shuffled in each round.", min=1)
]
Processes = Annotated[
    int, typer.Option(help="How often each contestant is started anew meanwhile.", min=1)
]
WarmUp = Annotated[int, typer.Option(help="Runs of each turn that do not count, at least.", min=0)]
WarmUpSeconds = Annotated[float, typer.Option(help="How long these go on, at least.", min=0)]
Iterations = Annotated[int, typer.Option(help="Runs of a contestant, at least.", min=1)]
Seconds = Annotated[float, typer.Option(help="Seconds of a contestant, at least.", min=0)]
Seed = Annotated[int, typer.Option(help="Seed of images and of the order.", min=0)]
Schedules = Annotated[
    bool,
    typer.Option(
        "--schedules/--no-schedules",
        help="Build and measure each engine's other schedules, too: whole and split.",
    ),
]
WithFloor = Annotated[
    bool, typer.Option("--floor", help="Say how near each is to what the device allows.")
]
WithPaper = Annotated[
    bool,
    typer.Option(
        "--paper",
        help="Lay the figures out like the paper's tables 2, 3 and 11, beside the paper's: all "
        "its networks, and the ResNets and RepVGGs it compares them with, from timm.",
    ),
]
Plans = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Run nothing: build TensorRT RTX plans of models and variants, which takes no GPU, "
        "and count their kernels and streams.",
    ),
]
Forms = Annotated[
    str | None,
    typer.Option(
        help="With --plan: deploy forms with commas between, such as keep-gemm-view-nhwc."
    ),
]
Capability = Annotated[
    str, typer.Option("--compute-capability", help="With --plan: the GPU that plans are for.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="A .html, .md or .json file; a folder or another name: all three."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace results that stand there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every latency.")]

_DEFAULT = Settings()


def command(
    engines: Subjects = None,
    against: Against = None,
    variants: Variants = None,
    backends: Backends = None,
    precisions: Precisions = "fp32",
    devices: Devices = None,
    batch: BatchSize = _DEFAULT.batch,
    rounds: Rounds = _DEFAULT.rounds,
    processes: Processes = _DEFAULT.processes,
    warm_up: WarmUp = _DEFAULT.warm_up,
    warm_up_seconds: WarmUpSeconds = _DEFAULT.warm_up_seconds,
    iterations: Iterations = _DEFAULT.iterations,
    seconds: Seconds = _DEFAULT.seconds,
    seed: Seed = _DEFAULT.seed,
    schedules: Schedules = True,
    floor: WithFloor = False,
    paper: WithPaper = False,
    plan: Plans = False,
    forms: Forms = None,
    compute_capability: Capability = "8.6",
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure engines and their peers in one interleaved run, each in a process of its own.

    While one runs, all others are stopped. Figures are medians over all runs; ratios are taken
    round by round, so that what disturbs the machine for a while falls out of them.
    """
    asked = Asked(
        subjects=tuple(engines or ()),
        variants=parse_names(variants),
        backends=parse_backends(backends),
        against=parse_peers(against),
        precisions=parse_precisions(precisions),
        paper=paper,
        gpus=parse_numbers("--devices")(devices) if devices is not None else (),
        schedules=schedules,
        floor=floor,
    )
    if plan:
        count_plans(asked, forms, compute_capability, output, force=force, as_json=as_json)
        return
    settings = Settings(
        batch=batch,
        rounds=rounds,
        processes=processes,
        warm_up=warm_up,
        warm_up_seconds=warm_up_seconds,
        iterations=iterations,
        seconds=seconds,
        seed=seed,
    )
    _bench(asked, settings, output, force=force, as_json=as_json)


def _bench(
    asked: Asked, settings: Settings, output: Path | None, *, force: bool, as_json: bool
) -> None:
    """Refuse what cannot be, measure, and show."""
    paths = find(asked)
    title = title_of(asked, paths, settings)
    files = () if output is None else targets(output, title)
    refuse_files(files, force=force)
    result = _measure(asked, paths, title, settings)
    extra = paper_sheets(result) if asked.paper else ()
    write_files(contents(result, files, extra=extra), force=force)
    if as_json:
        print_json(result)
    else:
        print_result(result, extra)
    for path in files:
        tell(f"written: {path}")


def _measure(asked: Asked, paths: Sequence[Path], title: str, settings: Settings) -> BenchResult:
    """Build what has to be built, and hold the contest."""
    with tempfile.TemporaryDirectory(prefix="parnet-deploy-bench-") as name:
        folder = Path(name)
        others, absent = prepare_timm(asked, folder, settings)
        programme = Programme(
            title=title,
            command=shlex.join(["parnet-deploy", *sys.argv[1:]]),
            engines=build_engines(asked, paths, folder, settings),
            against=asked.peers,
            networks=asked.networks_of_peers,
            others=others,
            absent=absent,
            gpus=asked.gpus,
            schedules=asked.schedules,
            floor=asked.floor,
            settings=settings,
        )
        return run_benchmark(programme, folder, progress)


def print_result(result: BenchResult, extra: Sequence[Sheet] = ()) -> None:
    """The tables, and what they say in words."""
    for sheet in (*sheets(result), *extra):
        print_sheet(sheet)
    for warning in result.conditions.warnings:
        say(f"WARNING: {warning}")
    for sentence in result.verdict:
        say(sentence)
