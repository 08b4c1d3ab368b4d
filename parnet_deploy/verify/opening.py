"""Opening the steps of the ladder that are graphs or engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from parnet_deploy.bundle import (
    MODEL_GRAPH,
    EngineBundle,
    EngineManifest,
    EngineStage,
    ModelBundle,
    ModelManifest,
)
from parnet_deploy.errors import EngineError, VerificationError
from parnet_deploy.lowering import EXACTLY, emulated_spec
from parnet_deploy.runtime import OnnxRuntimeRunner, Runner, SplitRunner, StageRunner
from parnet_deploy.spec import LOGITS, TensorSpec, layout
from parnet_deploy.verify.expose import GIVEN, expose
from parnet_deploy.verify.rungs import HEAD, Part, RunnerRung
from parnet_deploy.verify.values import value_type

Specs = tuple[TensorSpec, ...]


def open_whole(bundle: ModelBundle, scratch: Path) -> RunnerRung:
    """The bundle's whole graph in ONNX Runtime, on the CPU.

    Raises:
        EngineError: the graph does not load.
        VerificationError: the graph cannot be read.
    """
    manifest = bundle.manifest
    blocks = tuple(block.name for block in layout(manifest.spec))
    graph = bundle.file(MODEL_GRAPH)
    runner, part = _open_graph(
        graph, manifest, scratch, blocks=blocks, inputs=manifest.inputs, outputs=manifest.outputs
    )
    return RunnerRung(runner, (part,), manifest)


def open_stages(bundle: ModelBundle, scratch: Path) -> RunnerRung:
    """The bundle's stages in ONNX Runtime, on the CPU, joined.

    Raises:
        EngineError: a graph does not load.
        VerificationError: a graph cannot be read.
    """
    manifest = bundle.manifest
    runners, parts = [], []
    for stage in manifest.stages:
        runner, part = _open_graph(
            bundle.file(stage.file),
            manifest,
            scratch / stage.name,
            blocks=stage.blocks,
            inputs=stage.inputs,
            outputs=stage.outputs,
        )
        runners.append(StageRunner(name=stage.name, device="cpu", runner=runner))
        parts.append(replace(part, stage=stage.name))
    joined = SplitRunner(runners, inputs=manifest.inputs, outputs=manifest.outputs)
    return RunnerRung(joined, tuple(parts), manifest)


def open_engine(
    engine: EngineBundle,
    model: ModelBundle,
    scratch: Path,
    opener: Callable[[EngineBundle], Runner],
) -> RunnerRung:
    """An engine, and where its files are ONNX graphs what they show of their inside.

    Raises:
        EngineError: it cannot run on this machine.
        VerificationError: a graph of a quantised engine's model cannot be read.
    """
    runner = opener(engine)
    manifest = engine.manifest
    graphs = {stage.name: stage for stage in model.manifest.stages}
    everything = tuple(block.name for block in layout(manifest.spec))
    parts = []
    for stage in manifest.stages:
        graph = graphs.get(stage.name) if manifest.split else None
        blocks = everything if not manifest.split else graph.blocks if graph else ()
        inside = _engine_inside(engine, stage, blocks, scratch / stage.name)
        part = Part(
            stage=stage.name if manifest.split else None,
            inputs=_names(stage.inputs),
            outputs=_names(stage.outputs),
            inside=inside,
        )
        if manifest.quantisation is not None:
            path = model.file(graph.file if graph else MODEL_GRAPH)
            alone = _open_alone(path, manifest, stage, part, scratch / f"{stage.name}-alone")
            part = replace(part, alone=alone)
        parts.append(part)
    return RunnerRung(runner, tuple(parts), manifest)


def is_emulated(manifest: ModelManifest | EngineManifest) -> bool:
    """Whether graphs run in float32 with every rounding written out (`lowering.emulate`).

    ONNX Runtime's CPU provider has no kernels in bfloat16 and float8, and leaves out roundings to
    float16 as it likes.
    """
    return manifest.base != "fp32"


def _open_graph(
    path: Path,
    manifest: ModelManifest,
    scratch: Path,
    *,
    blocks: tuple[str, ...],
    inputs: Specs,
    outputs: Specs,
) -> tuple[Runner, Part]:
    """A graph on the CPU, and a copy of it that gives its blocks' values, where it has any."""
    source, shown = path, scratch
    if is_emulated(manifest):
        source, _ = expose(path, {}, scratch / "emulated", emulated=True)
        shown = scratch / "inside"
        inputs, outputs = _emulated(inputs), _emulated(outputs)
    runner = _as_it_stands(source, inputs=inputs, outputs=outputs)
    copy, found = expose(path, _values_of(blocks, manifest), shown, emulated=is_emulated(manifest))
    inside = None
    if found:
        contracts = _contracts(found, inputs[0].shape[0], manifest)
        if is_emulated(manifest):
            contracts = _emulated(contracts)
        inside = _as_it_stands(copy, inputs=inputs, outputs=contracts)
    part = Part(stage=None, inputs=_names(inputs), outputs=_names(outputs), inside=inside)
    return runner, part


def _as_it_stands(path: Path, *, inputs: Specs, outputs: Specs) -> Runner:
    """A graph run operator by operator, as it was written.

    ONNX Runtime's rewrites are what its engines are made of: with them here, too, an engine would
    be compared with itself.
    """
    return OnnxRuntimeRunner(path, inputs=inputs, outputs=outputs, optimise=False)


def _engine_inside(
    engine: EngineBundle, stage: EngineStage, blocks: tuple[str, ...], scratch: Path
) -> Runner | None:
    """What shows an engine's blocks on the engine's own device, where that can be had."""
    manifest = engine.manifest
    if manifest.backend != "onnxruntime":
        return None
    try:
        copy, found = expose(engine.file(stage.file), _values_of(blocks, manifest), scratch)
        if not found:
            return None
        return OnnxRuntimeRunner(
            copy,
            inputs=stage.inputs,
            outputs=_contracts(found, stage.inputs[0].shape[0], manifest),
            provider=manifest.target.get("provider", "cpu"),
            device_id=int(stage.device.partition(":")[2] or 0),
            optimise=False,
        )
    except (EngineError, VerificationError):
        return None  # the engine itself runs: that its inside stays unseen is no fault of it


def _open_alone(
    path: Path, manifest: EngineManifest, stage: EngineStage, part: Part, scratch: Path
) -> Runner | None:
    """The model's graph of a part, each block reading what the engine gave before it.

    A quantised value that lies between two steps may come out as either: in the next block one
    step makes others, and behind ten blocks two right engines are as far apart as each is from the
    network. One block by itself is not: so this finds a wrong kernel, and the outputs do not.
    """
    shown = () if part.inside is None else tuple(spec.name for spec in part.inside.outputs)
    names = [name for name in dict.fromkeys((*shown, *part.outputs)) if _is_block(name, manifest)]
    given = [name for name in names if name != LOGITS]
    if not given:
        return None
    types = {name: value_type(name, manifest) for name in names}
    copy, found = expose(
        path,
        types,
        scratch,
        emulated=is_emulated(manifest),
        given={name: types[name] for name in given},
    )
    outputs = _contracts(found, stage.inputs[0].shape[0], manifest)
    more = tuple(
        replace(spec, name=f"{spec.name}{GIVEN}") for spec in outputs if spec.name in given
    )
    inputs = (*stage.inputs, *more)
    if is_emulated(manifest):
        inputs, outputs = _emulated(inputs), _emulated(outputs)
    return _as_it_stands(copy, inputs=inputs, outputs=outputs)


def _is_block(name: str, manifest: EngineManifest) -> bool:
    return name == LOGITS or any(block.name == name for block in layout(manifest.spec))


def _values_of(blocks: Iterable[str], manifest: ModelManifest | EngineManifest) -> dict[str, str]:
    """The types of blocks' values, by the tensors' names."""
    names = [LOGITS if name == HEAD else name for name in blocks]
    return {name: value_type(name, manifest) for name in names}


def _contracts(
    names: Iterable[str], batch: int | str, manifest: ModelManifest | EngineManifest
) -> Specs:
    """The contracts of blocks' values."""
    spec = manifest.spec
    blocks = {LOGITS if block.kind == "head" else block.name: block for block in layout(spec)}
    specs = []
    for name in names:
        block = blocks[name]
        size = tuple(side // block.scale for side in spec.image_size) if block.scale else ()
        shape = (batch, block.out_channels, *size)
        specs.append(TensorSpec(name=name, shape=shape, dtype=value_type(name, manifest)))
    return tuple(specs)


def _emulated(specs: Specs) -> Specs:
    return tuple(emulated_spec(spec, EXACTLY) for spec in specs)


def _names(specs: Specs) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs)
