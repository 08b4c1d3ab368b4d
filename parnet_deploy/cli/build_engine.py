"""``parnet-deploy build-engine``: a bundle of ONNX graphs becomes a bundle of engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from parnet_deploy.bundle import (
    EngineBundle,
    EngineManifest,
    EngineStage,
    ModelBundle,
    find_bundles,
    open_model,
)
from parnet_deploy.cli.console import (
    Justify,
    human_bytes,
    new_table,
    print_json,
    print_table,
    progress,
    say,
    tell,
    warn,
)
from parnet_deploy.cli.next_command import next_verification
from parnet_deploy.cli.options import parse_numbers
from parnet_deploy.cli.placing import Placing, settle_placing
from parnet_deploy.engine import (
    BuildOptions,
    ProviderChoice,
    build_engine,
    choose_backend,
    make_builder,
)
from parnet_deploy.errors import OutputExistsError, UsageError
from parnet_deploy.runtime.cpu import has_narrow_weights
from parnet_deploy.spec import Backend, default_form

MODELS = Path("models")
ENGINES = Path("engines")

BackendChoice = Literal["auto", "onnxruntime", "openvino", "ncnn", "tensorrt", "tensorrt-rtx"]

ModelPath = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="Model bundle; without it, the only one under models/."),
]
SplitStreams = Annotated[
    bool, typer.Option("--split-streams", help="One engine per stage, not one of the whole.")
]
BackendName = Annotated[
    BackendChoice,
    typer.Option("--backend", help="auto: the fastest that works on a GPU here, else onnxruntime."),
]
Devices = Annotated[
    str | None, typer.Option(help="GPUs, such as 0,1,2: stages are spread over them.")
]
Place = Annotated[
    str | None,
    typer.Option(help="A device for every stage: stream1=cuda:0,stream2=cuda:1,fusion=cuda:0."),
]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="What 'plan --output' wrote: whole or split, where.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder of the engine; without it, engines/NAME-TARGET.")
]
Threads = Annotated[
    int,
    typer.Option(
        help="onnxruntime, openvino, ncnn: CPU threads per engine; 0: all cores, which stages "
        "that run at the same time share.",
        min=0,
    ),
]
Spin = Annotated[
    bool | None,
    typer.Option(
        "--spin/--no-spin",
        help="onnxruntime: threads spin while they wait within a run. None: a whole engine's do.",
    ),
]
NarrowWeights = Annotated[
    bool,
    typer.Option(
        "--narrow-weights",
        help="onnxruntime: int8 weights in 7 bits on CPUs without VNNI: faster, less exact.",
    ),
]
ProviderName = Annotated[
    ProviderChoice, typer.Option("--provider", help="onnxruntime: what runs the engine.")
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability",
        help="tensorrt-rtx: GPUs to build for, such as 8.6; repeat, or put commas between. "
        "None: Ampere and later.",
    ),
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="tensorrt*: allow TF32 in float32 layers.")]
Level = Annotated[
    int | None, typer.Option("--optimization-level", help="tensorrt*: 0 to 5.", min=0, max=5)
]
Workspace = Annotated[
    int | None, typer.Option("--workspace", help="tensorrt*: limit in MiB.", min=0)
]
AuxStreams = Annotated[
    int | None, typer.Option("--aux-streams", help="tensorrt*: at most that many.", min=0)
]
VersionCompatible = Annotated[
    bool, typer.Option("--version-compatible", help="tensorrt*: later versions can run it.")
]
HardwareCompatible = Annotated[
    bool, typer.Option("--hardware-compatible", help="tensorrt*: other GPUs can run it.")
]
WeightStripped = Annotated[
    bool,
    typer.Option("--weight-stripped", help="tensorrt*: weights are put in when it is opened."),
]
TimingCache = Annotated[
    Path | None, typer.Option(help="tensorrt*: file of measured timings, read and updated.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an engine that stands there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was built, for programs: the folder, why that backend, and the manifest."""

    path: str
    reasons: tuple[str, ...]
    manifest: EngineManifest


def command(
    bundle: ModelPath = None,
    split_streams: SplitStreams = False,
    backend: BackendName = "auto",
    devices: Devices = None,
    place: Place = None,
    plan: PlanFile = None,
    output: Output = None,
    threads: Threads = 0,
    spin: Spin = None,
    narrow_weights: NarrowWeights = False,
    provider: ProviderName = "auto",
    compute_capability: Capabilities = None,
    tf32: Tf32 = False,
    optimization_level: Level = None,
    workspace: Workspace = None,
    aux_streams: AuxStreams = None,
    version_compatible: VersionCompatible = False,
    hardware_compatible: HardwareCompatible = False,
    weight_stripped: WeightStripped = False,
    timing_cache: TimingCache = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build an engine of the whole network, or one per stage, each on its device."""
    options = BuildOptions(
        provider=provider,
        devices=parse_numbers("--devices")(devices) if devices is not None else (),
        threads=threads,
        spin=spin,
        narrow_weights=narrow_weights,
        compute_capabilities=_split(compute_capability or []),
        tf32=tf32,
        optimization_level=optimization_level,
        workspace_mib=workspace,
        aux_streams=aux_streams,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        weight_stripped=weight_stripped,
        timing_cache=timing_cache,
    )
    model = open_model(bundle or _only_model(), check=False)  # build_engine checks every file
    placing = settle_placing(
        model.manifest, split=split_streams, devices=options.devices, place=place, plan=plan
    )
    engine, reasons = _build(model, backend, options, placing, output, force=force)
    warn(engine.manifest.warnings)
    _print(engine, reasons, as_json=as_json)


def _build(
    model: ModelBundle,
    backend: BackendChoice,
    options: BuildOptions,
    placing: Placing,
    output: Path | None,
    *,
    force: bool,
) -> tuple[EngineBundle, tuple[str, ...]]:
    """The engine, and why it is of that backend."""
    options = replace(options, devices=placing.devices)
    chosen, reasons = _settle(backend, model)
    builder = make_builder(chosen, options, split=placing.split, precision=model.manifest.precision)
    final = output or _default_folder(model, builder.label, split=placing.split)
    _refuse_own_model(model, final)
    engine = build_engine(
        model,
        final,
        builder,
        split=placing.split,
        placement=placing.placement,
        force=force,
        progress=progress,
    )
    return engine, reasons


def _default_folder(model: ModelBundle, label: str, *, split: bool) -> Path:
    name = Path(os.path.abspath(model.path)).name
    return ENGINES / (f"{name}-{label}" + "-split" * split)


def _split(values: Sequence[str]) -> tuple[str, ...]:
    """Values of an option that is repeated, or has commas between them; each once."""
    parts = (part.strip() for value in values for part in value.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _settle(backend: BackendChoice, model: ModelBundle) -> tuple[Backend, tuple[str, ...]]:
    """The backend, and for auto the reasons, which are told."""
    if backend != "auto":
        return backend, (f"{backend}: asked for",)
    quantisation = model.manifest.quantisation
    choice = choose_backend(
        model.manifest.precision, None if quantisation is None else quantisation.scheme
    )
    for reason in choice.reasons:
        progress(f"auto: {reason}")
    return choice.backend, choice.reasons


def _only_model() -> Path:
    """The only model bundle under ``models/``, or the one that is picked from a list."""
    found = find_bundles(MODELS)
    if not found:
        raise UsageError(
            f"there is no bundle under {MODELS}/; make one with 'parnet-deploy export', or name one"
        )
    if len(found) == 1:
        return found[0]
    if not sys.stdin.isatty():
        raise UsageError(
            f"there are several bundles under {MODELS}/, name one: {', '.join(map(str, found))}"
        )
    return _ask(found)


def _ask(found: Sequence[Path]) -> Path:
    for number, path in enumerate(found, 1):
        tell(f"  {number}  {path}")
    while True:
        answer = str(typer.prompt(f"Which one (1 to {len(found)})", err=True)).strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(found):
            return found[int(answer) - 1]


def _refuse_own_model(model: ModelBundle, final: Path) -> None:
    """--force replaces a bundle, but never the one that is being read."""
    if final.resolve() == model.path.resolve():
        raise OutputExistsError(f"{final} is the model itself; choose another --output")


def _print(engine: EngineBundle, reasons: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json(Report(path=str(engine.path), reasons=reasons, manifest=engine.manifest))
    else:
        _print_summary(engine)


def _print_summary(engine: EngineBundle) -> None:
    manifest = engine.manifest
    total = human_bytes(sum(record.bytes for record in manifest.files.values()))
    say(f"{engine.path}: {manifest.backend}, {manifest.arithmetic}, {total}")
    columns: dict[str, Justify] = {"engine": "left", "device": "left", "size": "right"}
    threaded = any(stage.threads is not None for stage in manifest.stages)
    if threaded:
        columns["threads"] = "right"
    counted = any(stage.kernels is not None for stage in manifest.stages)
    if counted:
        columns |= {"kernels": "right", "streams": "right"}
    table = new_table(None, columns)
    for stage in manifest.stages:
        cells = [escape(stage.name), stage.device, human_bytes(_size(manifest, stage))]
        if threaded:
            cells.append(str(stage.threads or ""))
        if counted:
            cells += ["" if n is None else str(n) for n in (stage.kernels, stage.streams)]
        table.add_row(*cells)
    print_table(table)
    for note in _notes(manifest):
        say(f"note: {note}")
    say(next_verification(engine))


def _notes(manifest: EngineManifest) -> Iterator[str]:
    """What an engine is not, though somebody may think so; each in one line."""
    backend = manifest.backend
    if manifest.precision == "bf16" and manifest.computes == "fp32":
        yield (
            "this CPU has no bfloat16: the engine is no faster than one in fp32, and less exact; "
            "build it on the machine that it is for"
        )
    if manifest.precision == "int8" and has_narrow_weights(
        backend, manifest.target, manifest.options
    ):
        yield (
            "this CPU has no VNNI, and would overflow with 8 bits: the engine's weights have 7, "
            "which lost 0.7 to 0.9 points of accuracy on digits where 8 lost 0.2; build it where "
            "there is VNNI" + (", or without --narrow-weights" if backend == "onnxruntime" else "")
        )
    if manifest.form != default_form(backend):
        yield (
            f"the model has another deploy form than the one that serves {backend} best, which "
            f"'parnet-deploy export --for {backend}' writes"
        )


def _size(manifest: EngineManifest, stage: EngineStage) -> int:
    """Bytes of a stage's file and of the weights beside it, which has its name."""
    name = Path(stage.file).stem
    return sum(record.bytes for file, record in manifest.files.items() if Path(file).stem == name)
