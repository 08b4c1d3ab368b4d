"""A plan from stages that were measured, and how far its predictions are from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from parnet_deploy.bench.entries.schedules import Schedule, build_options
from parnet_deploy.bench.stage_times import StageTimes, measure_stages
from parnet_deploy.bundle import (
    EngineBundle,
    EngineManifest,
    ModelBundle,
    open_model,
    resolve_model,
)
from parnet_deploy.cli.planning import Comparison, Planned, cut_of, make_plan, predict_engine
from parnet_deploy.engine import BuildOptions, build_engine, choose_backend, make_builder
from parnet_deploy.engine.placement import gpu_numbers
from parnet_deploy.errors import BundleError, UsageError
from parnet_deploy.roofline import Device, block_costs
from parnet_deploy.roofline.latency import Load
from parnet_deploy.roofline.predict import WHOLE, measured_load, reached_efficiency
from parnet_deploy.runtime.cpu import usable_cores
from parnet_deploy.spec import Backend

Progress = Callable[[str], None]


def measure_plan(
    bundle: ModelBundle | EngineBundle,
    planned: Planned,
    folder: Path,
    *,
    runs: int,
    progress: Progress = lambda step: None,
) -> Planned:
    """Plan again, with stages that were measured.

    Args:
        bundle: a split engine, or a model of which engines are built first.
        planned: the plan without measurements.
        folder: where engines are built.
        runs: of every stage and engine that count.
        progress: called with a line at each step.

    Raises:
        UsageError: the engine is not split, or the devices are not of one kind, or not those that
            the engine runs on.
        BuildError: an engine cannot be built.
        EngineError: an engine does not open here.
        RunnerError: a run failed.
    """
    device = _one_kind(planned.devices)
    split, whole = _engines(bundle, planned, folder, progress)
    progress(f"measure: {len(split.manifest.stages)} stages and the engines, {runs} rounds")
    times = measure_stages(split, whole, runs=runs)
    loads = _loads(split.manifest, times, planned, device)
    stages = cut_of(planned.spec, planned.cut)
    efficiency = reached_efficiency(planned.spec, stages, device, planned.assumed, loads)
    again = make_plan(
        planned.spec,
        planned.cut,
        planned.devices,
        replace(planned.assumed, efficiency=efficiency),
        measured={} if planned.cut is None else {planned.cut: loads},
    )
    return replace(
        again,
        measured=_comparisons(again, split.manifest, times, loads),
        unsteady=times.unsteady,
    )


def _one_kind(devices: Mapping[str, Device]) -> Device:
    first, *others = devices.values()
    if any(device != first for device in others):
        names = ", ".join(dict.fromkeys(device.name for device in devices.values()))
        raise UsageError(
            f"--measure takes a stage's time on one device for that on all, and these are "
            f"{names}; name devices of one kind"
        )
    return first


def _engines(
    bundle: ModelBundle | EngineBundle, planned: Planned, folder: Path, progress: Progress
) -> tuple[EngineBundle, EngineBundle | None]:
    if isinstance(bundle.manifest, EngineManifest):
        _check_engine(bundle, planned.devices)
        return bundle, _whole_beside(bundle, folder, progress)
    ways = [p for p in planned.predictions if p.stem == planned.cut]
    placement = min(ways, key=lambda prediction: prediction.seconds).placement
    backend, options = _builder_for(placement)
    return (
        _build(bundle, folder / "split", backend, options, placement, progress),
        _build(bundle, folder / WHOLE, backend, options, None, progress),
    )


def _check_engine(engine: EngineBundle, devices: Mapping[str, Device]) -> None:
    if not engine.manifest.split:
        raise UsageError(
            f"{engine.path} is one engine of the whole network, and --measure times stages; give "
            "it a split engine (build-engine --split-streams) or the model"
        )
    used = {stage.device for stage in engine.manifest.stages}
    if ("cpu" in used) != ("cpu" in devices):
        raise UsageError(
            f"{engine.path} runs on {', '.join(sorted(used))}, and --measure plans for "
            f"{', '.join(devices)}; leave out --devices"
        )


def _builder_for(placement: Mapping[str, str]) -> tuple[Backend, BuildOptions]:
    """The fastest backend for these devices."""
    numbers = gpu_numbers(placement)
    if not numbers:
        return "onnxruntime", BuildOptions(provider="cpu")
    backend = choose_backend().backend
    options = BuildOptions(devices=numbers)
    return backend, replace(options, provider="cuda") if backend == "onnxruntime" else options


def _build(
    model: ModelBundle,
    final: Path,
    backend: Backend,
    options: BuildOptions,
    placement: Mapping[str, str] | None,
    progress: Progress,
) -> EngineBundle:
    split = placement is not None
    if not split:
        options = replace(options, devices=options.devices[:1])
    builder = make_builder(backend, options, split=split)
    return build_engine(model, final, builder, split=split, placement=placement, progress=progress)


def _whole_beside(split: EngineBundle, folder: Path, progress: Progress) -> EngineBundle | None:
    """The engine of the whole network that is built as the split one was, where its model is."""
    manifest = split.manifest
    path = resolve_model(manifest.model, split.path)
    try:
        model = open_model(path, check=False)
    except BundleError as exc:
        progress(f"the whole engine is not measured: {exc}")
        return None
    if model.manifest_sha256 != manifest.model.manifest_sha256:
        progress(f"the whole engine is not measured: {path} is another model by now")
        return None
    schedule = Schedule(name="whole", devices=(manifest.stages[0].device,))
    options = build_options(manifest, schedule)
    return _build(model, folder / WHOLE, manifest.backend, options, None, progress)


def _loads(
    manifest: EngineManifest, times: StageTimes, planned: Planned, device: Device
) -> dict[str, Load]:
    """On a CPU a stage keeps its threads' cores busy, on a GPU what its launches leave."""
    assumed = planned.assumed
    costs = block_costs(planned.spec, precision=assumed.precision, batch=assumed.batch)
    blocks = {stage.name: stage.blocks for stage in cut_of(planned.spec, planned.cut)}
    loads = {}
    for stage in manifest.stages:
        seconds = times.stages[stage.name].p50 / 1000
        load = measured_load(seconds, [costs[name] for name in blocks[stage.name]], device)
        if stage.device == "cpu":
            cores = usable_cores()
            share = min(stage.threads or cores, cores) / cores
            load = Load(seconds=seconds, share=share)
        loads[stage.name] = load
    return loads


def _comparisons(
    planned: Planned, manifest: EngineManifest, times: StageTimes, loads: Mapping[str, Load]
) -> tuple[Comparison, ...]:
    placement = {stage.name: stage.device for stage in manifest.stages}
    found = [
        Comparison(
            name="split engine",
            predicted=predict_engine(planned, placement, loads),
            measured=times.split.p50 / 1000,
        )
    ]
    if times.whole is not None:
        (whole,) = (p.seconds for p in planned.predictions if p.way == "whole")
        found.append(
            Comparison(name="whole engine", predicted=whole, measured=times.whole.p50 / 1000)
        )
    return tuple(found)
