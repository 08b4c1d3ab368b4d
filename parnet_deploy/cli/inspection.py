"""What ``inspect`` finds in a bundle, as values: nothing here prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from parnet_deploy.bundle import (
    MODEL_GRAPH,
    CutContract,
    EngineBundle,
    EngineManifest,
    EngineStage,
    GraphStage,
    ModelBundle,
    ModelManifest,
    open_model,
    resolve_model,
)
from parnet_deploy.cli.inspected_types import computes
from parnet_deploy.errors import BundleError, EngineError, MissingDependencyError
from parnet_deploy.runtime.ncnn_param import FLAG_BYTES, read_param
from parnet_deploy.runtime.openvino import load_openvino, read_model
from parnet_deploy.runtime.plan_text import read_plan_text
from parnet_deploy.spec import Counts, ParNetSpec, StemMode, TensorSpec, count, layout, stages

WHOLE = "whole"

_NO_ONNX = (
    "onnx is not installed: with it, the layers and weights of ONNX graphs are shown "
    "(pip install 'parnet-deploy[export]')"
)
_NO_OPENVINO = (
    "openvino is not installed: with it, the layers and weights of OpenVINO's files are shown "
    "(pip install 'parnet-deploy[openvino]')"
)
_SILENT_PLAN = (
    "a plan of TensorRT does not name its kernels and precisions without TensorRT and its GPU: "
    "only what was counted when it was built is shown"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """An ONNX node, a layer of OpenVINO or ncnn, or a kernel of a plan.

    Attributes:
        name: its name.
        kind: operator, with its domain where that is not ONNX's own, or kind of layer or kernel.
        stream: the stream in which a kernel runs.
        makes: names of the values that a node makes, or of the nodes that a kernel computes.
    """

    name: str
    kind: str
    stream: int | None
    makes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One stage's graph or engine, or the whole network's.

    Attributes:
        name: stage name, or ``whole``.
        device: ``cpu`` or ``cuda:0`` ..., None in a model bundle.
        file: path inside the bundle.
        bytes: size of its own files; a model bundle's weights are shared and lie in another.
        blocks: names of its blocks.
        inputs: what it reads.
        outputs: what it gives.
        kinds: how many layers of each kind, None where that is unknown.
        weights: numbers in its weights by element type, None where unknown.
        computes: precision of each block's convolution and of the head, where it tells.
        dtypes: element types of what a plan's kernels read and write, in the plan's own names.
        kernels: kernels of a plan.
        streams: streams that those are spread over.
        layers: every layer, where they were asked for.
    """

    name: str
    device: str | None
    file: str
    bytes: int
    blocks: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    kinds: Mapping[str, int] | None = None
    weights: Mapping[str, int] | None = None
    computes: Mapping[str, str] | None = None
    dtypes: tuple[str, ...] = ()
    kernels: int | None = None
    streams: int | None = None
    layers: tuple[Layer, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """A value that crosses from one stage to another; `bytes` is its size for one image."""

    tensor: TensorSpec
    bytes: int
    source: str
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltFrom:
    """Where an engine's model bundle was, and whether it still stands there."""

    path: str
    state: Literal["unchanged", "changed", "missing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """All that is known of a bundle.

    Attributes:
        path: its folder.
        counts: depth, parameters and operations of its network.
        stem: how it is split, None where it is not.
        untrained: whether its weights are seeded and untrained, None where that is not recorded.
        model: of an engine, the model bundle that it was built from.
        parts: its graphs or engines.
        cuts: what crosses between them.
        unknown: what could not be shown, and why.
        manifest: what the bundle says of itself.
    """

    path: str
    counts: Counts
    stem: StemMode | None
    untrained: bool | None
    model: BuiltFrom | None
    parts: tuple[Part, ...]
    cuts: tuple[Crossing, ...]
    unknown: tuple[str, ...]
    manifest: ModelManifest | EngineManifest


def inspect_bundle(bundle: ModelBundle | EngineBundle, *, layers: bool = False) -> Inspection:
    """Look into a bundle.

    Args:
        bundle: an opened bundle of either kind.
        layers: name every layer, too.

    Raises:
        BundleError: a graph in it cannot be read.
        EngineError: a plan in it cannot be read.
    """
    manifest = bundle.manifest
    stem: StemMode | None
    if isinstance(manifest, ModelManifest):
        parts, cuts = _model_parts(manifest), tuple(map(_crossing_of, manifest.cuts))
        stem, model = manifest.stem, None
    else:
        stem = _stem_of(manifest)
        parts, cuts = _engine_parts(manifest, stem), _crossings(manifest.stages)
        model = _built_from(manifest, bundle.path)
    seen, unknown = _look_into(bundle.path, parts, layers=layers)
    seen = tuple(replace(part, computes=computes(bundle, part.name, part.file)) for part in seen)
    return Inspection(
        path=str(bundle.path),
        counts=count(manifest.spec),
        stem=stem,
        untrained=manifest.source.kind == "untrained" if manifest.source else None,
        model=model,
        parts=seen,
        cuts=cuts,
        unknown=unknown,
        manifest=manifest,
    )


def _model_parts(manifest: ModelManifest) -> tuple[Part, ...]:
    whole = GraphStage(
        name=WHOLE,
        file=MODEL_GRAPH,
        blocks=_all_blocks(manifest.spec),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
    )
    return tuple(
        Part(
            name=stage.name,
            device=None,
            file=stage.file,
            bytes=manifest.files[stage.file].bytes,
            blocks=stage.blocks,
            inputs=stage.inputs,
            outputs=stage.outputs,
        )
        for stage in (whole, *manifest.stages)
    )


def _engine_parts(manifest: EngineManifest, stem: StemMode | None) -> tuple[Part, ...]:
    blocks = {WHOLE: _all_blocks(manifest.spec)}
    if stem is not None:
        blocks |= {stage.name: stage.blocks for stage in stages(manifest.spec, stem)}
    return tuple(
        Part(
            name=stage.name,
            device=stage.device,
            file=stage.file,
            bytes=sum(
                record.bytes
                for name, record in manifest.files.items()
                if Path(name).stem == Path(stage.file).stem
            ),
            blocks=blocks.get(stage.name, ()),
            inputs=stage.inputs,
            outputs=stage.outputs,
            kernels=stage.kernels,
            streams=stage.streams,
        )
        for stage in manifest.stages
    )


def _all_blocks(spec: ParNetSpec) -> tuple[str, ...]:
    return tuple(block.name for block in layout(spec))


def _stem_of(manifest: EngineManifest) -> StemMode | None:
    """How an engine is split: its stages tell."""
    if not manifest.split:
        return None
    return "share" if any(stage.name == "stem" for stage in manifest.stages) else "replicate"


def _crossing_of(cut: CutContract) -> Crossing:
    return Crossing(tensor=cut.tensor, bytes=cut.bytes, source=cut.source, target=cut.target)


def _crossings(engines: Sequence[EngineStage]) -> tuple[Crossing, ...]:
    """What one engine gives and another reads."""
    makers = {tensor.name: stage.name for stage in engines for tensor in stage.outputs}
    return tuple(
        Crossing(
            tensor=tensor,
            bytes=tensor.image_nbytes,
            source=makers[tensor.name],
            target=stage.name,
        )
        for stage in engines
        for tensor in stage.inputs
        if tensor.name in makers
    )


def _built_from(manifest: EngineManifest, engine: Path) -> BuiltFrom:
    path = resolve_model(manifest.model, engine)
    try:
        model = open_model(path, check=False)
    except BundleError:
        return BuiltFrom(path=str(path), state="missing")
    same = model.manifest_sha256 == manifest.model.manifest_sha256
    return BuiltFrom(path=str(path), state="unchanged" if same else "changed")


def _look_into(
    folder: Path, parts: Iterable[Part], *, layers: bool
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """The parts with what their files tell, and what those do not tell."""
    seen, unknown = [], []
    for part in parts:
        path = folder / part.file
        read, silent = _READERS.get(path.suffix, (_read_plan, _SILENT_PLAN))
        found = read(path, part)
        if found.layers is None:
            unknown.append(silent)
        seen.append(found if layers else replace(found, layers=None))
    return tuple(seen), tuple(dict.fromkeys(unknown))


def _read_graph(path: Path, part: Part) -> Part:
    """A part with its ONNX graph's nodes and weights, which need onnx to be read."""
    try:
        import onnx
    except ImportError:
        return part
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as exc:
        raise BundleError(f"{path} cannot be read as an ONNX graph: {exc}") from exc
    layers = tuple(
        Layer(
            name=node.name,
            kind=f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            stream=None,
            makes=tuple(node.output),
        )
        for node in graph.node
    )
    weights: Counter[str] = Counter()
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        weights[dtype] += math.prod(tensor.dims)
    return replace(part, kinds=_kinds(layers), weights=dict(weights), layers=layers)


def _read_ir(path: Path, part: Part) -> Part:
    """A part with its OpenVINO model's layers and weights, which need OpenVINO to be read."""
    try:
        load_openvino()
    except MissingDependencyError:
        return part
    try:
        operators = read_model(path).get_ordered_ops()
    except EngineError as exc:
        raise BundleError(f"{path} cannot be read as a model of OpenVINO: {exc}") from exc
    layers = tuple(
        Layer(
            name=op.get_friendly_name(),
            kind=op.get_type_name(),
            stream=None,
            makes=tuple(sorted(name for port in op.outputs() for name in port.get_names())),
        )
        for op in operators
        if op.get_type_name() not in ("Parameter", "Constant", "Result")
    )
    weights: Counter[str] = Counter()
    for op in operators:
        if op.get_type_name() == "Constant":
            weights[op.get_element_type().to_dtype().name] += math.prod(op.get_output_shape(0))
    return replace(part, kinds=_kinds(layers), weights=dict(weights), layers=layers)


def _read_param(path: Path, part: Part) -> Part:
    """A part with its ncnn layers and weights, which stand in a text."""
    try:
        found = read_param(path.read_text(encoding="utf-8"))
        numbers = sum(one.weight_bytes - FLAG_BYTES * one.flagged for one in found) // 4
    except (EngineError, OSError, UnicodeDecodeError) as exc:
        raise BundleError(f"{path} cannot be read as layers of ncnn: {exc}") from exc
    layers = tuple(
        Layer(name=one.name, kind=one.kind, stream=None, makes=one.tops)
        for one in found
        if one.kind != "Input"
    )
    return replace(part, kinds=_kinds(layers), weights={"float32": numbers}, layers=layers)


def _read_plan(path: Path, part: Part) -> Part:
    """A part with its plan's kernels, where the plan names them."""
    text = read_plan_text(path)
    if text is None:
        return part
    layers = tuple(
        Layer(name=kernel.name, kind=kernel.kind, stream=kernel.stream, makes=kernel.layers)
        for kernel in text.kernels
    )
    return replace(
        part,
        kinds=_kinds(layers),
        dtypes=text.dtypes,
        kernels=part.kernels or len(text.kernels),
        streams=part.streams or text.streams,
        layers=layers,
    )


def _kinds(layers: Iterable[Layer]) -> dict[str, int]:
    """How many of each kind, the most frequent first."""
    return dict(Counter(layer.kind for layer in layers).most_common())


_READERS: Mapping[str, tuple[Callable[[Path, Part], Part], str]] = {
    ".onnx": (_read_graph, _NO_ONNX),
    ".xml": (_read_ir, _NO_OPENVINO),
    ".param": (_read_param, ""),
}
"""By a file's ending: what reads it, and what is said where that cannot tell; others are plans."""
