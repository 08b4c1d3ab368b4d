"""``parnet-deploy plan``: which stage on which device, and what a run is expected to take."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from parnet_deploy.bundle import EngineManifest, ModelManifest, open_bundle
from parnet_deploy.cli.console import (
    new_table,
    print_json,
    print_table,
    progress,
    say,
    warn,
)
from parnet_deploy.cli.output import refuse_file, write_file
from parnet_deploy.cli.plan_words import (
    assumptions,
    describe,
    human_seconds,
    place_words,
    reasons,
)
from parnet_deploy.cli.planning import (
    PlacedStage,
    Planned,
    Prediction,
    check_here,
    default_devices,
    find_figures,
    make_plan,
    parse_devices,
    refuse_one_stream,
    settle_precision,
    stem_of,
)
from parnet_deploy.errors import UsageError
from parnet_deploy.roofline import Device
from parnet_deploy.roofline.latency import Transfer
from parnet_deploy.roofline.predict import EFFICIENCY, Assumptions
from parnet_deploy.spec import encode

LEAST_RUNS = 20

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of a model or engine bundle.")
]
Devices = Annotated[
    str | None,
    typer.Option(help="cpu, or GPUs such as 0,1,2. None: the engine's, or all GPUs, or the CPU."),
]
Kind = Annotated[
    str | None,
    typer.Option(help="What the GPUs are, such as 'RTX 3090': plan for a machine elsewhere."),
]
PrecisionName = Annotated[
    str | None, typer.Option("--precision", help="fp32, tf32, fp16 ... None: the bundle's.")
]
Efficiency = Annotated[
    float,
    typer.Option(help="Part of the peak rates that kernels reach, where not measured."),
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Time every stage here, and plan with that.")
]
Runs = Annotated[int, typer.Option(help="With --measure: runs of each that count.", min=LEAST_RUNS)]
Output = Annotated[Path | None, typer.Option(help="Write the plan, for build-engine --plan.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a plan that stands there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with exact numbers.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured, in seconds, and how far the prediction was from it."""

    name: str
    predicted: float
    measured: float
    error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A plan for programs; times in seconds."""

    bundle: str
    network: str
    precision: str
    batch: int
    efficiency: float
    devices: dict[str, Device]
    predictions: tuple[Prediction, ...]
    proposed: Prediction
    stages: tuple[PlacedStage, ...]
    transfers: tuple[Transfer, ...]
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]
    measured: tuple[Measured, ...]
    unsteady: tuple[str, ...]


def command(
    bundle: BundlePath,
    devices: Devices = None,
    device_kind: Kind = None,
    precision: PrecisionName = None,
    efficiency: Efficiency = EFFICIENCY,
    measure: Measure = False,
    runs: Runs = 30,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Propose a device for every stage, and say what a run is expected to take and why."""
    if output is not None:
        refuse_file(output, force=force)
    opened = open_bundle(bundle, check=measure)
    manifest = opened.manifest
    refuse_one_stream(manifest.spec)
    if measure and precision is not None:
        raise UsageError("--measure runs the bundle as it is; leave out --precision")
    names = (
        parse_devices(devices) if devices is not None else default_devices(manifest, device_kind)
    )
    figures = find_figures(names, device_kind)
    assumed = Assumptions(
        precision=settle_precision(precision, manifest),
        batch=manifest.batch.opt,
        efficiency=efficiency,
    )
    planned = make_plan(manifest.spec, stem_of(manifest), figures, assumed)
    if measure:
        from parnet_deploy.cli.plan_measuring import measure_plan

        check_here(names)
        with tempfile.TemporaryDirectory(prefix="parnet-deploy-plan-") as folder:
            planned = measure_plan(opened, planned, Path(folder), runs=runs, progress=progress)
    if output is not None:
        plan = planned.plan(assumptions(planned))
        write_file(output, encode(plan).decode(), force=force)
    if as_json:
        print_json(_report(bundle, planned))
    else:
        _print(planned)
        _print_next(bundle, manifest, planned, output)


def _report(bundle: Path, planned: Planned) -> Report:
    return Report(
        bundle=str(bundle),
        network=planned.spec.name,
        precision=planned.assumed.precision,
        batch=planned.assumed.batch,
        efficiency=planned.assumed.efficiency,
        devices=dict(planned.devices),
        predictions=planned.predictions,
        proposed=planned.proposed,
        stages=planned.placed,
        transfers=planned.transfers,
        reasons=reasons(planned),
        assumptions=assumptions(planned),
        measured=tuple(
            Measured(name=c.name, predicted=c.predicted, measured=c.measured, error=c.error)
            for c in planned.measured
        ),
        unsteady=planned.unsteady,
    )


def _print(planned: Planned) -> None:
    assumed = planned.assumed
    say(
        f"{planned.spec.name}: {assumed.precision}, batch {assumed.batch}, "
        f"on {', '.join(planned.devices)}"
    )
    _print_predictions(planned)
    _print_stages(planned)
    _print_transfers(planned)
    for sentence in reasons(planned):
        say(sentence)
    say("Taken as given:")
    for sentence in assumptions(planned):
        say(f"  {sentence}")
    if planned.measured:
        _print_measured(planned)


def _print_predictions(planned: Planned) -> None:
    (whole,) = (p.seconds for p in planned.predictions if p.way == "whole")
    table = new_table(
        None, {"": "left", "expected": "right", "of whole": "right", "placement": "left"}
    )
    for prediction in planned.predictions:
        mark = " *" * (prediction == planned.proposed)
        table.add_row(
            describe(prediction) + mark,
            human_seconds(prediction.seconds),
            f"{prediction.seconds / whole:.2f}",
            place_words(prediction),
        )
    print_table(table)


def _print_stages(planned: Planned) -> None:
    say(f"Proposed (*): {describe(planned.proposed)}")
    table = new_table(
        None,
        {
            "stage": "left",
            "device": "left",
            "GFLOP": "right",
            "MB": "right",
            "start": "right",
            "end": "right",
        },
    )
    for row in planned.placed:
        table.add_row(
            row.stage,
            row.device,
            f"{row.operations / 1e9:.2f}",
            f"{row.bytes / 1e6:.1f}",
            human_seconds(row.start),
            human_seconds(row.end),
        )
    print_table(table)


def _print_transfers(planned: Planned) -> None:
    if not planned.transfers:
        return
    say("Copies")
    table = new_table(
        None,
        {
            "value": "left",
            "from": "left",
            "to": "left",
            "MB": "right",
            "start": "right",
            "end": "right",
        },
    )
    for copy in planned.transfers:
        table.add_row(
            copy.value,
            copy.source,
            copy.target,
            f"{copy.bytes / 1e6:.2f}",
            human_seconds(copy.start),
            human_seconds(copy.end),
        )
    print_table(table)


def _print_measured(planned: Planned) -> None:
    say("Measured")
    table = new_table(
        None,
        {"": "left", "expected": "right", "measured": "right", "error": "right"},
    )
    for comparison in planned.measured:
        table.add_row(
            comparison.name,
            human_seconds(comparison.predicted),
            human_seconds(comparison.measured),
            f"{100 * comparison.error:+.1f} %",
        )
    print_table(table)
    if planned.unsteady:
        names = ", ".join(planned.unsteady)
        doubt = f"the times of {names} varied by more than a tenth from run to run: "
        warn([doubt + "something else is running, and medians say little"])


def _print_next(
    bundle: Path, manifest: ModelManifest | EngineManifest, planned: Planned, output: Path | None
) -> None:
    """The command that builds what is proposed, where the bundle is a model cut that way."""
    best = planned.proposed
    if isinstance(manifest, EngineManifest) or best.stem not in (None, planned.cut):
        return
    words = ["parnet-deploy", "build-engine", str(bundle)]
    if output is not None:
        words += ["--plan", str(output)]
    elif best.way != "whole":
        places = ",".join(f"{stage}={device}" for stage, device in best.placement.items())
        words += ["--split-streams", "--place", places]
    say(f"next: {shlex.join(words)}")
