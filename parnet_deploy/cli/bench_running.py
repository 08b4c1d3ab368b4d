"""``parnet-deploy bench`` at work: what is measured is built, the contest held, and shown."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from parnet_deploy.bench.benchmark import Programme, run_benchmark
from parnet_deploy.bench.report.paper import sheets as paper_sheets
from parnet_deploy.bench.report.saving import contents, targets
from parnet_deploy.bench.report.table import sheets
from parnet_deploy.bench.result import BenchResult, Settings
from parnet_deploy.cli.bench_asked import (
    Asked,
    build_engines,
    find,
    open_labelled,
    prepare_timm,
    title_of,
)
from parnet_deploy.cli.bench_space import check_space
from parnet_deploy.cli.console import print_json, print_sheet, progress, say, tell
from parnet_deploy.cli.output import refuse_files, write_files
from parnet_deploy.errors import BuildError
from parnet_deploy.pages.sheet import Sheet


def bench(
    asked: Asked, settings: Settings, output: Path | None, *, force: bool, as_json: bool
) -> None:
    """Refuse what cannot be, measure, and show.

    Args:
        asked: what is to be measured.
        settings: how.
        output: where results are kept.
        force: replace results that stand there.
        as_json: print JSON instead of tables and sentences.
    """
    paths = find(asked)
    title = title_of(asked, paths, settings)
    files = () if output is None else targets(output, title)
    refuse_files(files, force=force)
    result = _measure(asked, paths, title, settings)
    extra = paper_sheets(result) if asked.paper else ()
    if as_json:
        print_json(result)
    else:
        print_result(result, extra)
    # After what is printed: a disk that is full meanwhile does not take the result with it.
    write_files(contents(result, files, extra=extra), force=force)
    for path in files:
        tell(f"written: {path}")


def _measure(asked: Asked, paths: Sequence[Path], title: str, settings: Settings) -> BenchResult:
    """Build what has to be built, and hold the contest."""
    with tempfile.TemporaryDirectory(prefix="parnet-deploy-bench-") as name:
        folder = Path(name)
        check_space(asked, paths, folder)
        labelled = open_labelled(asked)
        engines, unbuilt = build_engines(asked, paths, folder, settings)
        if not engines:
            reasons = "; ".join(f"{absence.name}: {absence.reason}" for absence in unbuilt)
            raise BuildError(f"there is no engine to measure: {reasons}")
        others, absent = prepare_timm(asked, folder, settings)
        programme = Programme(
            title=title,
            command=shlex.join(["parnet-deploy", *sys.argv[1:]]),
            engines=engines,
            against=asked.peers,
            networks=asked.networks_of_peers,
            others=others,
            absent=(*unbuilt, *absent),
            gpus=asked.gpus,
            schedules=asked.schedules,
            floor=asked.floor,
            labelled=labelled,
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
