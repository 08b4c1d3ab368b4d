"""Whether a repository is what its engine is, before it is put in place.

What should be follows from the engine's manifest and, for graphs, from the model bundle that it
names: their tensors, operations and weights. Only how a configuration is put into text is taken
from what wrote it. Triton itself refuses less: two cuts of one shape, swapped, it would run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from parnet_deploy.bundle import LABELS, EngineBundle, EngineStage, ModelBundle, sha256
from parnet_deploy.errors import ServingError
from parnet_deploy.serve.signature import VERSION
from parnet_deploy.serve.triton.config import FILES, ModelConfig, ModelTensor, Step
from parnet_deploy.serve.triton.graphs import (
    graph_contents,
    graph_tensors,
    source_graph,
    source_of,
)
from parnet_deploy.spec import TensorSpec

CONFIG = "config.pbtxt"


def check_repository(
    folder: Path, models: Sequence[ModelConfig], bundle: EngineBundle, source: Path | None = None
) -> None:
    """Compare a written repository with its engine.

    Args:
        folder: where it was written.
        models: its models, the one that clients ask last.
        bundle: the engine.
        source: its model bundle, where it is not where the engine says.

    Raises:
        ServingError: it is not what the engine is; every difference is named.
    """
    problems = [*_shape_problems(models, bundle), *_file_problems(folder, models, bundle, source)]
    if bundle.manifest.split:
        problems += _ensemble_problems(models[-1], models[:-1])
    if problems:
        raise ServingError(
            f"the repository is not what {bundle.path} is, and was not put in place: "
            f"{'; '.join(problems)}"
        )


def _shape_problems(models: Sequence[ModelConfig], bundle: EngineBundle) -> Iterator[str]:
    """Models against stages: one each, with its tensors, its batch and a device."""
    manifest = bundle.manifest
    clients, stages = models[-1], models[:-1] if manifest.split else models
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        yield f"two models have one name among {', '.join(names)}"
    if len(stages) != len(manifest.stages):
        yield f"{len(stages)} models stand for {len(manifest.stages)} stages"
        return
    for model, stage in zip(stages, manifest.stages, strict=True):
        if manifest.split and model.name != f"{clients.name}-{stage.name}":
            yield f"'{model.name}' stands where the model of stage '{stage.name}' should"
        yield from _tensor_problems(model, stage.inputs, stage.outputs)
        if model.instance_group is None:
            yield f"'{model.name}' has no instance group"
    yield from _tensor_problems(clients, manifest.inputs, manifest.outputs)
    largest = manifest.batch.max if manifest.batch.dynamic else 0
    for model in models:
        if model.max_batch_size != clients.max_batch_size or model.max_batch_size > largest:
            yield (
                f"'{model.name}' has max_batch_size {model.max_batch_size}, and "
                f"'{clients.name}' {clients.max_batch_size}, of an engine's {largest}"
            )
        batching = model.dynamic_batching
        if batching and max(batching.preferred_batch_size, default=0) > model.max_batch_size:
            yield f"'{model.name}' prefers batches beyond {model.max_batch_size}"


def _tensor_problems(
    model: ModelConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Iterator[str]:
    for kind, tensors, specs in (
        ("input", model.inputs, inputs),
        ("output", model.outputs, outputs),
    ):
        found = {tensor.name: tensor for tensor in tensors}
        wanted = {spec.name: spec for spec in specs}
        for name in sorted(found.keys() ^ wanted.keys()):
            there = "is" if name in found else "is not"
            yield f"'{name}' {there} an {kind} of '{model.name}'"
        for name in sorted(found.keys() & wanted.keys()):
            if not _same(found[name], wanted[name], batched=model.max_batch_size > 0):
                yield (
                    f"{kind} '{name}' of '{model.name}' is {found[name].data_type} "
                    f"{list(found[name].dims)}, not {wanted[name].dtype} {list(wanted[name].shape)}"
                )


def _same(tensor: ModelTensor, spec: TensorSpec, *, batched: bool) -> bool:
    """Whether a tensor has its contract's type, and its shape but for a batch that may change."""
    dtype = np.dtype(spec.dtype)
    kind = {"f": "FP", "u": "UINT", "i": "INT"}.get(dtype.kind, "")
    shape = (spec.shape[0], *tensor.dims) if batched else tensor.dims
    if batched and not isinstance(spec.shape[0], str):
        return False
    return tensor.data_type == f"TYPE_{kind}{dtype.itemsize * 8}" and shape == spec.shape


def _ensemble_problems(ensemble: ModelConfig, stages: Sequence[ModelConfig]) -> Iterator[str]:
    """The ensemble's data flow: every value is made once, before it is read, and under its name."""
    for field in ("instance_group", "dynamic_batching", "warmup", "cuda_graphs"):
        if getattr(ensemble, field):
            yield f"'{ensemble.name}' is an ensemble and has {field}, which Triton refuses"
    models = {model.name: model for model in stages}
    called = [step.model_name for step in ensemble.steps]
    for name in sorted({*models, *called}):
        if called.count(name) != 1 or name not in models:
            yield f"'{name}' is {called.count(name)} steps of the ensemble, not the one of a stage"
    there = {tensor.name: tensor for tensor in ensemble.inputs}
    used: set[str] = set()
    for step in ensemble.steps:
        if (model := models.get(step.model_name)) is not None:
            yield from _step_problems(step, model, there)
            used |= set(step.input_map.values())
            made = {tensor.name: tensor for tensor in model.outputs}
            there |= {value: made[key] for key, value in step.output_map.items() if key in made}
    given = {tensor.name for tensor in ensemble.outputs}
    for name in sorted(given - there.keys()):
        yield f"no step makes the output '{name}'"
    # Triton deadlocks when a client asks for some of the outputs of such an ensemble.
    for name in sorted(given & used):
        yield f"'{name}' crosses from one stage to another, and is an output of the ensemble, too"
    for name in sorted(there.keys() - used - given):
        yield f"nobody reads '{name}'"


def _step_problems(
    step: Step, model: ModelConfig, there: Mapping[str, ModelTensor]
) -> Iterator[str]:
    if step.model_version != int(VERSION):
        yield f"'{model.name}' is asked for its version {step.model_version}, not {VERSION}"
    for kind, mapped, tensors in (
        ("inputs", step.input_map, model.inputs),
        ("outputs", step.output_map, model.outputs),
    ):
        names = {tensor.name for tensor in tensors}
        if set(mapped) != names:
            yield f"'{model.name}' has the {kind} {sorted(names)}, and {sorted(mapped)} is mapped"
        for name, value in mapped.items():
            if name != value:
                yield f"'{name}' of '{model.name}' is mapped to '{value}'"
    for tensor in model.inputs:
        value = step.input_map.get(tensor.name, tensor.name)
        if value not in there:
            yield f"'{model.name}' reads '{value}', which no step before it makes"
        elif (there[value].data_type, there[value].dims) != (tensor.data_type, tensor.dims):
            yield f"'{model.name}' reads '{value}' as another type or shape than it has"
    for value in sorted(set(step.output_map.values()) & there.keys()):
        yield f"'{model.name}' makes '{value}', which is there already"


def _file_problems(
    folder: Path, models: Sequence[ModelConfig], bundle: EngineBundle, source: Path | None
) -> Iterator[str]:
    manifest = bundle.manifest
    stages = manifest.stages
    graphs = any(model.platform == "onnxruntime_onnx" for model in models)
    original = source_of(bundle, source) if graphs else None
    for number, model in enumerate(models):
        root = folder / model.name
        config = root / CONFIG
        if not config.is_file() or config.read_text(encoding="utf-8") != model.text():
            yield f"{model.name}/{CONFIG} is not there as it was meant"
        if not (root / VERSION).is_dir() or not any((root / VERSION).iterdir()):
            yield f"{model.name}/{VERSION} is empty"
        elif model.platform in FILES and number < len(stages):
            yield from _graph_problems(root / VERSION, model, stages[number], bundle, original)
        for tensor in model.outputs:
            if tensor.label_filename:
                yield from _label_problems(root / tensor.label_filename, bundle)


def _graph_problems(
    version: Path,
    model: ModelConfig,
    stage: EngineStage,
    bundle: EngineBundle,
    original: ModelBundle | None,
) -> Iterator[str]:
    name = FILES[model.platform]
    path = version / name
    if not path.is_file():
        yield f"{model.name}/{VERSION}/{name} is missing"
    elif model.platform == "tensorrt_plan":
        if sha256(path) != bundle.manifest.files[stage.file].sha256:
            yield f"{model.name}/{VERSION}/{name} is not the plan of stage '{stage.name}'"
    elif graph_tensors(path) != (_described(stage.inputs), _described(stage.outputs)):
        yield f"{model.name}/{VERSION}/{name} is not the graph of stage '{stage.name}'"
    elif original is not None:
        found = graph_contents(path)
        wanted = graph_contents(source_graph(original, stage, split=bundle.manifest.split))
        if found.operations != wanted.operations:
            yield f"{model.name}/{VERSION}/{name} has other operations than stage '{stage.name}'"
        for weight in sorted(found.weights.keys() | wanted.weights.keys()):
            if found.weights.get(weight) != wanted.weights.get(weight):
                yield f"'{weight}' in {model.name}/{VERSION}/{name} is not the weight of its model"


def _described(specs: Sequence[TensorSpec]) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """As `graph_tensors` describes a graph's."""
    return {
        spec.name: (spec.dtype, tuple(None if isinstance(n, str) else n for n in spec.shape))
        for spec in specs
    }


def _label_problems(path: Path, bundle: EngineBundle) -> Iterator[str]:
    if not path.is_file() or sha256(path) != bundle.manifest.files[LABELS].sha256:
        yield f"{path.parent.name}/{path.name} does not hold the engine's labels"
