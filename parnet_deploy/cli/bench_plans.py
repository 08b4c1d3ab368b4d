"""``parnet-deploy bench --plan``: kernels and streams of plans, which nobody runs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from parnet_deploy.bench.plan_table import (
    PlanOptions,
    PlanTable,
    parse_form,
    plan_sheet,
    run_plan_table,
)
from parnet_deploy.bundle import is_engine, open_model
from parnet_deploy.cli.bench_asked import Asked, parse_names
from parnet_deploy.cli.console import print_json, print_sheet, progress, tell
from parnet_deploy.cli.output import refuse_files, write_files
from parnet_deploy.errors import UsageError
from parnet_deploy.pages.sheet import markdown
from parnet_deploy.spec import StemMode, default_form, encode, variant

SUFFIXES = (".json", ".md")


def count_plans(
    asked: Asked,
    forms: str | None,
    compute_capability: str,
    output: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Build plans of models and variants, and show what they would launch.

    Raises:
        UsageError: an engine was named, whose plans are built already, or no such form or
            variant, or a file of another kind.
    """
    for path in asked.subjects:
        if is_engine(path):
            raise UsageError(
                f"{path} is an engine, whose plans are built: 'parnet-deploy inspect' counts "
                "them; --plan takes models and --variants"
            )
    if output is not None and output.suffix not in SUFFIXES:
        raise UsageError(f"--plan writes {' or '.join(SUFFIXES)}, not {output.name}")
    files = () if output is None else (output,)
    refuse_files(files, force=force)
    named = tuple(parse_form(text) for text in parse_names(forms))
    table = run_plan_table(
        PlanOptions(
            networks=tuple(variant(name).spec for name in asked.networks),
            bundles=tuple(open_model(path) for path in asked.subjects),
            forms=named or (default_form("tensorrt-rtx"),),
            precisions=asked.precisions,
            stems=get_args(StemMode),
            compute_capability=compute_capability,
        ),
        progress,
    )
    write_files({path: _content(table, path.suffix) for path in files}, force=force)
    if as_json:
        print_json(table)
    else:
        print_sheet(plan_sheet(table))
    for path in files:
        tell(f"written: {path}")


def _content(table: PlanTable, suffix: str) -> str:
    return encode(table).decode() if suffix == ".json" else markdown(plan_sheet(table))
