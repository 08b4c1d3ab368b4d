"""export_model: a network becomes a bundle, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from parnet_deploy.bundle import (
    CHECKPOINT,
    LABELS,
    MODEL_GRAPH,
    WEIGHTS,
    BatchRange,
    ModelBundle,
    ModelManifest,
    Source,
    open_model,
    seal,
    staged,
    versions,
)
from parnet_deploy.errors import ExportError, UsageError
from parnet_deploy.export.gate import (
    TRIALS,
    check_quantised,
    check_weights,
    normalised,
    prove,
    trial,
)
from parnet_deploy.export.graph import ExportOptions, float_graph, lower_graph, whole_graph
from parnet_deploy.export.kernels import block_kernels
from parnet_deploy.export.likeness import check_likeness
from parnet_deploy.export.magnitudes import check_range
from parnet_deploy.export.quantising import (
    Counted,
    Quantised,
    QuantiseOptions,
    check_agreement,
    check_reads,
    quantise_graph,
)
from parnet_deploy.export.stages import contracts, cut_stage, describe_cuts, describe_stage
from parnet_deploy.export.weights import externalise, large_weights, write_weights
from parnet_deploy.lowering import layers
from parnet_deploy.net import DeployParNet, ParNet, TrainingFacts, fuse, save_checkpoint
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.spec import IMAGES, LOGITS, Array, ParNetSpec, Preprocessing, stages

IR_VERSION = 10  # read by ONNX Runtime 1.19 and later, and by TensorRT 10 and later
UNTRAINED = (
    "The weights are seeded and UNTRAINED: the answers mean nothing. "
    "Give --checkpoint to export a trained network."
)

TOOLS = ("parnet-deploy", "torch", "onnx", "onnx-graphsurgeon", "safetensors", "numpy")

Progress = Callable[[str], None]


def export_model(
    model: ParNet,
    source: Source,
    final: Path,
    options: ExportOptions,
    labels: Sequence[str] | None = None,
    *,
    images: Sequence[Array] = (),
    quantise: QuantiseOptions | None = None,
    quantised: Callable[[Quantised], None] = lambda found: None,
    counted: Counted = lambda *step: None,
    force: bool = False,
    progress: Progress = lambda step: None,
) -> ModelBundle:
    """Fuse a network, write its graphs, prove them equal, and put the bundle in place.

    Args:
        model: the network in training form, in inference mode, float32.
        source: where its weights came from.
        final: folder of the bundle, which must not exist unless `force` is set.
        options: how to export.
        labels: class names in the order of the logits; numbered where None.
        images: what to prove the graphs on beside noise, as they read it; see `gate.prove`. Where
            None are given, some of the images to calibrate on are taken.
        quantise: how ranges are found, for int8 and fp8 without a quantisation in `options`.
        quantised: told what was found.
        counted: told how far that is.
        force: replace a bundle that stands there.
        progress: called with a line at each step.

    Returns:
        The bundle.

    Raises:
        UsageError: not one label per class, or one of several lines.
        OutputExistsError: something stands at `final`.
        ExportError: a weight is not finite, the whole graph does not equal the network, or the
            stages joined together do not equal the whole graph; a weight or a value is beyond
            the range of the precision; int8 or fp8 without a quantisation that fits; or images of
            the calibration, or ranges or answers on them, that are in doubt (`export.likeness`,
            `export.quantising`).
        BundleError: the bundle cannot be written.
    """
    listed = _listed(labels, model.spec.classes)
    check_weights(model)
    stages(model.spec, options.stem)  # what cannot be cut so is refused before anything is written
    with staged(final, force=force) as work:
        progress("fuse: every block becomes one 3x3 convolution")
        fused = fuse(model, options.form)
        if options.precision != "fp32":
            progress("prove: the same graph in fp32 against the network, before it is rounded")
            _prove_in_float32(work, fused, model, source, options)
        ready = _Ready(graph=float_graph(fused, options), options=options, images=images)
        if quantise is not None:
            progress(f"quantise: what {options.precision} makes of it")
            ready = _quantised(ready, quantise, model, source, quantised, counted)
        manifest = _write(work, ready, fused, source, progress)
        _write_beside(work, model, options.preprocessing, labels or (), listed)
        _prove(work, manifest, model, ready, progress)
        seal(work, manifest)
    return open_model(final, check=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Ready:
    """A network that is ready to be lowered and written.

    Attributes:
        graph: in float32.
        options: how to export, with the quantisation where there is one.
        images: what to prove it on beside noise.
        warnings: what is odd about it.
    """

    graph: gs.Graph
    options: ExportOptions
    images: Sequence[Array]
    warnings: tuple[str, ...] = ()


def _quantised(
    ready: _Ready,
    quantise: QuantiseOptions,
    model: ParNet,
    source: Source,
    told: Callable[[Quantised], None],
    counted: Counted,
) -> _Ready:
    """Find out how it is to be quantised; it is proven on some of the images of the calibration."""
    options, trained = ready.options, source.kind != "untrained"
    unlike = _unlike(quantise, model) if trained else ()
    found = quantise_graph(
        ready.graph,
        quantise,
        first=options.first,
        kernels=partial(block_kernels, model, options.form),
        progress=counted,
    )
    odd = check_reads(found, quantise, options.preprocessing)
    found = replace(found, warnings=(*unlike, *((odd,) if odd else ())))
    told(found)
    if trained and (odd := check_agreement(found, quantise)):
        found = replace(found, warnings=(*found.warnings, odd))
    return _Ready(
        graph=found.graph,
        options=replace(options, quantisation=found.quantisation),
        images=ready.images or _some_of(quantise.images, options.batch),
        warnings=found.warnings,
    )


def _unlike(quantise: QuantiseOptions, model: ParNet) -> tuple[str, ...]:
    """What is doubtful about the images that a trained network is calibrated on."""
    if quantise.images is None:
        return ()
    found = check_likeness(model, quantise.images, doubtful=quantise.doubtful)
    return () if found is None else (found,)


def _write(
    work: Path, ready: _Ready, fused: DeployParNet, source: Source, progress: Progress
) -> ModelManifest:
    """Lower the graph and write it, whole and in stages.

    Returns:
        What was written.
    """
    options = ready.options
    manifest = describe(fused.spec, source, options)
    manifest = replace(manifest, warnings=(*manifest.warnings, *ready.warnings))
    whole = lower_graph(ready.graph, options)
    if options.base != "fp32":
        noise = [normalised(trial(manifest, n), options.preprocessing) for n in range(TRIALS)]
        check_range(fused, noise, options.base)
    progress(f"write: the whole graph and {len(manifest.stages)} stages, weights stored once")
    write_graphs(work, whole, manifest)
    return manifest


def _write_beside(
    work: Path, model: ParNet, preprocessing: Preprocessing, labels: Sequence[str], listed: str
) -> None:
    """What goes with the graphs: the file of the labels, and the checkpoint that they came from."""
    (work / LABELS).write_text(listed, encoding="utf-8")
    facts = TrainingFacts(labels=tuple(labels), preprocessing=preprocessing)
    save_checkpoint(model, work / CHECKPOINT, facts)


def _prove(
    work: Path, manifest: ModelManifest, model: ParNet, ready: _Ready, progress: Progress
) -> None:
    """The gate, for the graphs as they were written."""
    progress("prove: whole graph against network, stages joined against whole graph")
    check_quantised(work, manifest, _kernels(ready.graph))
    proof = prove(work, manifest, model, ready.images)
    progress(f"proved: {proof}")


def _kernels(graph: gs.Graph) -> dict[str, Array]:
    """The float32 kernels of a graph's convolutions, by their names."""
    tensors = graph.tensors()
    return {layer.weight: tensors[layer.weight].values for layer in layers(graph)}


def _some_of(images: CalibrationImages | None, batch: BatchRange) -> list[Array]:
    """A few of the images that a network was calibrated on, in batches that its graphs take."""
    if images is None:
        return []
    places = np.arange(TRIALS * batch.opt) % images.count
    taken = images.take(places.tolist(), "some").array()
    return list(taken.reshape(TRIALS, batch.opt, *taken.shape[1:]))


def _listed(labels: Sequence[str] | None, classes: int) -> str:
    """The text of a labels file: one class name a line, numbers where there are none."""
    numbered = (f"class {index}" for index in range(classes))
    names = tuple(numbered if labels is None else labels)
    if len(names) != classes:
        raise UsageError(f"{classes} classes need as many labels, not {len(names)}")
    text = "".join(f"{name}\n" for name in names)
    if tuple(text.splitlines()) != names:
        raise UsageError("a label has a line break in it; labels are one a line: give --labels")
    return text


def _prove_in_float32(
    work: Path, fused: DeployParNet, model: ParNet, source: Source, options: ExportOptions
) -> None:
    """What rounding changes hides what is wrong by less: so the rest is proven without it."""
    exact = replace(options, precision="fp32", quantisation=None)
    folder = work / "fp32"
    folder.mkdir()
    manifest = describe(model.spec, source, exact)
    write_graphs(folder, whole_graph(fused, exact), manifest)
    prove(folder, manifest, model)
    shutil.rmtree(folder)


def describe(spec: ParNetSpec, source: Source, options: ExportOptions) -> ModelManifest:
    """The manifest of a bundle that is still to be written."""
    contract = contracts(spec, options)
    cut_into = stages(spec, options.stem)
    return ModelManifest(
        name=options.name,
        spec=spec,
        form=options.form,
        source=source,
        opset=options.graph_opset,
        precision=options.precision,
        quantisation=options.quantisation,
        stem=options.stem,
        batch=options.batch,
        softmax=options.softmax,
        preprocessing=options.preprocessing,
        inputs=(contract[IMAGES],),
        outputs=(contract[LOGITS],),
        stages=tuple(describe_stage(stage, contract) for stage in cut_into),
        cuts=describe_cuts(cut_into, contract),
        tools=versions(*TOOLS),
        warnings=(UNTRAINED,) if source.kind == "untrained" else (),
    )


def write_graphs(work: Path, whole: gs.Graph, manifest: ModelManifest) -> None:
    """Write the whole graph and every stage's, their weights in one file.

    Raises:
        ExportError: a graph is not valid ONNX.
    """
    (work / WEIGHTS).parent.mkdir()
    proto = export_onnx(whole)
    locations = write_weights(work / WEIGHTS, large_weights(proto))
    _save(externalise(proto, locations, file=WEIGHTS), work / MODEL_GRAPH)
    for stage in manifest.stages:
        proto = export_onnx(cut_stage(whole, stage))
        _save(externalise(proto, locations, file=Path(WEIGHTS).name), work / stage.file)


def export_onnx(graph: gs.Graph) -> onnx.ModelProto:
    """A graph as an ONNX model, of an IR version that older runtimes read."""
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = IR_VERSION
    model.producer_name = "parnet-deploy"
    return model


def save_with_weights(graph: gs.Graph, path: Path) -> None:
    """Write one graph with its weights beside it, for a contestant in a benchmark."""
    proto = export_onnx(graph)
    weights = path.with_suffix(".safetensors")
    locations = write_weights(weights, large_weights(proto))
    _save(externalise(proto, locations, file=weights.name), path)


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the graph {path.name} is not valid ONNX: {exc}") from exc
