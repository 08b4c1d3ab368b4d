"""``parnet-deploy bench``: how fast, beside whom, and how near to what is possible."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from parnet_deploy.bench.benchmark import Plan, run_benchmark
from parnet_deploy.bench.contestant import Contestant
from parnet_deploy.bench.entries.networks import model_engines, variant_engines
from parnet_deploy.bench.entries.preparing import timm_in_process
from parnet_deploy.bench.entries.timm_networks import TIMM_NETWORKS, TimmRequest
from parnet_deploy.bench.peers import PEERS, find_peer
from parnet_deploy.bench.report.paper import networks as paper_networks
from parnet_deploy.bench.report.paper import sheets as paper_sheets
from parnet_deploy.bench.report.saving import contents, targets
from parnet_deploy.bench.report.table import sheets
from parnet_deploy.bench.result import Absence, BenchResult, Settings
from parnet_deploy.bundle import (
    EngineBundle,
    find_bundles,
    is_engine,
    open_engine_bundle,
    open_model,
)
from parnet_deploy.cli.build_engine import ENGINES
from parnet_deploy.cli.console import print_json, print_sheet, progress, say, tell
from parnet_deploy.cli.options import parse_choice, parse_numbers
from parnet_deploy.cli.output import refuse_files, write_files
from parnet_deploy.engine import BuildOptions, choose_backend, make_builder
from parnet_deploy.errors import UsageError
from parnet_deploy.pages.sheet import Sheet
from parnet_deploy.spec import Backend, variant

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
Precision = Annotated[
    Literal["fp32", "fp16"], typer.Option(help="Precision of the variants' graphs.")
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
WarmUp = Annotated[int, typer.Option(help="Runs of each turn that do not count.", min=0)]
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
Output = Annotated[
    Path | None,
    typer.Option(help="A .html, .md or .json file; a folder or another name: all three."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace results that stand there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every latency.")]

_DEFAULT = Settings()

UNFUSED = "l"
"""The network that table 3 has unfused."""


def command(
    engines: Subjects = None,
    against: Against = None,
    variants: Variants = None,
    backends: Backends = None,
    precision: Precision = "fp32",
    devices: Devices = None,
    batch: BatchSize = _DEFAULT.batch,
    rounds: Rounds = _DEFAULT.rounds,
    processes: Processes = _DEFAULT.processes,
    warm_up: WarmUp = _DEFAULT.warm_up,
    iterations: Iterations = _DEFAULT.iterations,
    seconds: Seconds = _DEFAULT.seconds,
    seed: Seed = _DEFAULT.seed,
    schedules: Schedules = True,
    floor: WithFloor = False,
    paper: WithPaper = False,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure engines and their peers in one interleaved run, each in a process of its own.

    While one runs, all others are stopped. Figures are medians over all runs; ratios are taken
    round by round, so that what disturbs the machine for a while falls out of them.
    """
    settings = Settings(
        batch=batch,
        rounds=rounds,
        processes=processes,
        warm_up=warm_up,
        iterations=iterations,
        seconds=seconds,
        seed=seed,
    )
    asked = _Asked(
        subjects=tuple(engines or ()),
        variants=_names(variants),
        backends=_backends(backends),
        against=_peers(against),
        precision=precision,
        paper=paper,
    )
    asked = asked.of_the_paper() if paper else asked
    gpus = parse_numbers("--devices")(devices) if devices is not None else ()
    paths = _find(asked)
    title = _title(asked, paths, settings)
    files = () if output is None else targets(output, title)
    refuse_files(files, force=force)
    with tempfile.TemporaryDirectory(prefix="parnet-deploy-bench-") as folder:
        others, absent = _timm(asked, Path(folder), settings)
        plan = Plan(
            title=title,
            command=shlex.join(["parnet-deploy", *sys.argv[1:]]),
            engines=_engines(asked, paths, Path(folder), settings),
            against=asked.against,
            networks=(UNFUSED,) if paper and against is None else (),
            others=others,
            absent=absent,
            gpus=gpus,
            schedules=schedules,
            floor=floor,
            settings=settings,
        )
        result = run_benchmark(plan, Path(folder), progress)
    extra = paper_sheets(result) if paper else ()
    write_files(contents(result, files, extra=extra), force=force)
    if as_json:
        print_json(result)
    else:
        print_result(result, extra)
    for path in files:
        tell(f"written: {path}")


def print_result(result: BenchResult, extra: Sequence[Sheet] = ()) -> None:
    """The tables, and what they say in words."""
    for sheet in (*sheets(result), *extra):
        print_sheet(sheet)
    for warning in result.conditions.warnings:
        say(f"WARNING: {warning}")
    for sentence in result.verdict:
        say(sentence)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What takes part, as it was asked for."""

    subjects: tuple[Path, ...]
    variants: tuple[str, ...]
    backends: tuple[Backend, ...]
    against: tuple[str, ...]
    precision: str
    paper: bool

    def of_the_paper(self) -> _Asked:
        """The same with what the paper's tables need, where nothing else was asked for."""
        variants = self.variants or (() if self.subjects else paper_networks())
        return replace(self, variants=variants, against=self.against or ("onnxruntime",))


def _find(asked: _Asked) -> tuple[Path, ...]:
    """The bundles that were named, each of which is one, or those under ``engines/``.

    Raises:
        UsageError: there is none.
    """
    for name in asked.variants:
        variant(name)
    paths = asked.subjects or (() if asked.variants else tuple(find_bundles(ENGINES)))
    if not paths and not asked.variants:
        raise UsageError(
            f"there is no engine under {ENGINES}/; build one with 'parnet-deploy build-engine', "
            "name one, or give --variants"
        )
    for path in paths:
        is_engine(path)
    return paths


def _engines(
    asked: _Asked,
    paths: Sequence[Path],
    folder: Path,
    settings: Settings,
) -> tuple[EngineBundle, ...]:
    """All engines, those of models and variants built now."""
    given: list[EngineBundle] = []
    backends = _chosen(asked)
    for path in paths:
        if is_engine(path):
            given.append(open_engine_bundle(path))
        else:
            given += model_engines(open_model(path), backends, folder, progress=progress)
    given += variant_engines(
        asked.variants,
        backends,
        folder,
        batch=settings.batch,
        precision=asked.precision,
        progress=progress,
    )
    return tuple(given)


def _timm(
    asked: _Asked, folder: Path, settings: Settings
) -> tuple[tuple[Contestant, ...], tuple[Absence, ...]]:
    """The paper's other networks on each backend, and why some are absent."""
    found: list[Contestant] = []
    absent: list[Absence] = []
    for name in TIMM_NETWORKS if asked.paper else ():
        for backend in _chosen(asked):
            progress(f"prepare: {name} with {backend}")
            request = TimmRequest(
                name=name,
                workspace=str(folder / "timm"),
                backend=backend,
                device=_device_of(backend),
                batch=settings.batch,
                seed=settings.seed,
            )
            made = timm_in_process(request)
            if isinstance(made, Contestant):
                found.append(made)
            else:
                absent.append(made)
    return tuple(found), tuple(absent)


def _chosen(asked: _Asked) -> tuple[Backend, ...]:
    """The backends that were named, or the fastest that works here."""
    return asked.backends or (choose_backend().backend,)


def _device_of(backend: Backend) -> str:
    """Where a backend's engines run here if nothing else is said."""
    return make_builder(backend, BuildOptions(), split=False).devices[0]


def _title(asked: _Asked, paths: Sequence[Path], settings: Settings) -> str:
    """What is measured, in one line."""
    names = [path.resolve().name for path in paths]
    names += [f"ParNet-{name.upper()}" for name in asked.variants]
    title = "the paper's tables 2, 3 and 11" if asked.paper else ", ".join(names)
    title += f", batch {settings.batch}"
    return title + (f", against {', '.join(asked.against)}" if asked.against else "")


def _names(text: str | None) -> tuple[str, ...]:
    """Words with commas between, each once."""
    words = (word.strip() for word in (text or "").split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def _backends(text: str | None) -> tuple[Backend, ...]:
    return tuple(
        next(known for known in get_args(Backend) if known == name)
        for name in (parse_choice("--backends", name, Backend) for name in _names(text))
    )


def _peers(text: str | None) -> tuple[str, ...]:
    """Names of peers, each of which there is."""
    names = tuple(PEERS) if text == "all" else _names(text)
    return tuple(find_peer(name).name for name in names)
