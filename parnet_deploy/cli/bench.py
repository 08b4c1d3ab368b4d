"""``parnet-deploy bench``: how fast, beside whom, and how near to what is possible."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from parnet_deploy.bench.peer_names import PEER_NAMES
from parnet_deploy.bench.result import Settings
from parnet_deploy.cli.field_options import with_options_of
from parnet_deploy.cli.options import parse_numbers, refuse_given

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
    typer.Option(help=f"Peers with commas between, or all: {', '.join(PEER_NAMES)}."),
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
Schedules = Annotated[
    bool,
    typer.Option(
        "--schedules/--no-schedules",
        help="Build and measure each engine's other schedules, too: whole and split.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Images with labels that everybody answers, for the accuracy beside the latency: "
        "imagefolder:PATH, digits, ... as 'evaluate' has it. Without it: noise.",
    ),
]
DataImages = Annotated[
    int, typer.Option(help="With --data: images at most, evenly spread over its test split.", min=1)
]
HoldOut = Annotated[
    float | None,
    typer.Option(help="With --data: part of every class that is the test split."),
]
Calibrate = Annotated[
    str | None,
    typer.Option(help="Images that variants in int8 and fp8 are quantised on, as for 'export'."),
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """Every field of `bench.result.Settings` as an option, with its help."""

    batch: Annotated[int, f"Images per run [default: {_DEFAULT.batch}]."]
    rounds: Annotated[
        int,
        "Turns of each contestant, in an order shuffled in each round [default: "
        f"{_DEFAULT.rounds}].",
    ]
    processes: Annotated[
        int,
        f"How often each contestant is started anew meanwhile [default: {_DEFAULT.processes}].",
    ]
    warm_up: Annotated[
        int, f"Runs of each turn that do not count, at least [default: {_DEFAULT.warm_up}]."
    ]
    warm_up_seconds: Annotated[
        float, f"How long these go on, at least [default: {_DEFAULT.warm_up_seconds}]."
    ]
    iterations: Annotated[int, f"Runs of a contestant, at least [default: {_DEFAULT.iterations}]."]
    seconds: Annotated[float, f"Seconds of a contestant, at least [default: {_DEFAULT.seconds}]."]
    seed: Annotated[int, f"Seed of images and of the order [default: {_DEFAULT.seed}]."]


OF_PLANS = frozenset({"forms", "compute_capability"})
"""Parameters that mean something with ``--plan`` only."""

OF_BOTH = frozenset({"engines", "variants", "precisions", "plan", "output", "force", "as_json"})
"""Parameters that mean something with ``--plan`` and without it."""


@with_options_of(Measuring)
def command(
    context: typer.Context,
    engines: Subjects = None,
    against: Against = None,
    variants: Variants = None,
    backends: Backends = None,
    precisions: Precisions = "fp32",
    devices: Devices = None,
    schedules: Schedules = True,
    data: Data = None,
    data_images: DataImages = 256,
    hold_out: HoldOut = None,
    calibrate: Calibrate = None,
    floor: WithFloor = False,
    paper: WithPaper = False,
    plan: Plans = False,
    forms: Forms = None,
    compute_capability: Capability = "8.6",
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
    **measuring: Any,
) -> None:
    """Measure engines and their peers in one interleaved run, each in a process of its own.

    While one runs, all others are stopped. Figures are medians over all runs; ratios are taken
    round by round, so that what disturbs the machine for a while falls out of them.
    """
    from parnet_deploy.cli.bench_asked import (
        Asked,
        parse_backends,
        parse_names,
        parse_peers,
        parse_precisions,
    )

    _refuse_idle(context)
    asked = Asked(
        subjects=tuple(engines or ()),
        variants=parse_names(variants),
        backends=parse_backends(backends),
        against=parse_peers(against),
        precisions=parse_precisions(precisions),
        paper=paper,
        gpus=parse_numbers("--devices")(devices) if devices is not None else (),
        schedules=schedules,
        data=data,
        data_images=data_images,
        hold_out=hold_out,
        calibrate=calibrate,
        floor=floor,
    )
    if plan:
        from parnet_deploy.cli.bench_plans import count_plans

        count_plans(asked, forms, compute_capability, output, force=force, as_json=as_json)
        return
    from parnet_deploy.cli.bench_running import bench

    bench(asked, Settings(**measuring), output, force=force, as_json=as_json)


def _refuse_idle(context: typer.Context) -> None:
    """Refuse options that mean nothing beside what else was given."""
    if context.params["plan"]:
        others = context.params.keys() - OF_PLANS - OF_BOTH
        refuse_given(context, others, "--plan runs nothing")
    else:
        refuse_given(context, OF_PLANS, "without --plan nothing is counted")
    if context.params["data"] is None:
        refuse_given(context, {"data_images", "hold_out"}, "without --data everybody answers noise")
