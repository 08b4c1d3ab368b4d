"""The README of a repository: what is in it, and how Triton is started with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parnet_deploy.bundle import EngineBundle
from parnet_deploy.serve.signature import VERSION
from parnet_deploy.serve.triton.config import FILES, ModelConfig
from parnet_deploy.serve.triton.deploy import COMPOSE, INFERENCE_SERVICE, gpu_count, server_options
from parnet_deploy.serve.triton.settings import RepositorySettings

README = "README.md"

_START = """\
# {name}: a model repository for Triton

Written by `parnet-deploy triton-repo` of the {backend} engine `{engine}`: {precision}, {shape}.
This folder is the repository. Triton looks at the folders in it, not at the files beside them.

## Start

    TRITON_IMAGE=tritonserver:YY.MM-py3 docker compose -f {compose} up

or, where `tritonserver` is installed:

    tritonserver --model-repository="$PWD" {options}

In a cluster with KServe: copy this folder to `{storage}`, or put its address into
`{service}`, then `kubectl apply -f {service}`.

Ask for the model `{name}`, version {version}, with any client of the Open Inference Protocol:
`GET /v2/models/{name}`. It gives {scores}{labels}.

## Models

| model | runs as | on | reads | gives |
|---|---|---|---|---|
{rows}
## To know
{notes}"""


def readme_text(
    models: Sequence[ModelConfig], bundle: EngineBundle, settings: RepositorySettings
) -> str:
    """The text of the README."""
    manifest, clients = bundle.manifest, models[-1]
    labelled = any(tensor.label_filename for tensor in clients.outputs)
    return _START.format(
        name=clients.name,
        engine=manifest.name,
        backend=manifest.backend,
        precision=manifest.precision,
        shape="a model for each stage and an ensemble of them" if manifest.split else "one model",
        compose=COMPOSE,
        service=INFERENCE_SERVICE,
        options=" ".join(server_options(manifest)),
        storage=settings.storage,
        version=VERSION,
        scores="probabilities" if manifest.softmax else "logits",
        labels=", and labels to those who ask for classes" if labelled else "",
        rows="".join(map(_row, models)),
        notes="".join(f"- {note}\n" for note in _notes(models, bundle)),
    )


def _row(model: ModelConfig) -> str:
    group = model.instance_group
    where = "its models' devices"
    if group is not None:
        where = f"{'GPU ' + str(group.gpus[0]) if group.gpus else 'CPU'}, {group.count} instance(s)"
    reads, gives = (
        ", ".join(f"{tensor.name} {list(tensor.dims)}" for tensor in tensors)
        for tensors in (model.inputs, model.outputs)
    )
    return f"| {model.name} | {model.platform} | {where} | {reads} | {gives} |\n"


def _notes(models: Sequence[ModelConfig], bundle: EngineBundle) -> Iterator[str]:
    manifest, clients = bundle.manifest, models[-1]
    yield from manifest.warnings
    if manifest.backend == "tensorrt":
        target = manifest.target
        capabilities = ", ".join(map(str, target.get("compute_capabilities", ())))
        later = " or later" if target.get("version_compatible") else ""
        yield (
            f"The plans need TensorRT {target.get('version')}{later} in Triton's image and a GPU "
            f"of compute capability {capabilities}. Each has one optimization profile, the first, "
            f"for batches of {manifest.batch.min} to {manifest.batch.max}."
        )
        yield "Batch sizes that `graph_spec` names run as CUDA graphs, others as single kernels."
    else:
        yield (
            f"`{FILES['onnxruntime_onnx']}` is the graph that the engine was built from, with its "
            "weights in it: Triton's ONNX Runtime optimises it for the machine that loads it."
        )
    if clients.max_batch_size == 0:
        yield f"The batch is fixed at {manifest.batch.max}: it is part of every shape."
    elif clients.max_batch_size > 1:
        yield (
            f"Batches of up to {clients.max_batch_size}: shapes above are those of one image. "
            "Requests wait for others only in the models that read images."
        )
    if count := gpu_count(models):
        yield f"GPUs 0 to {count - 1} have to be there, by the numbers that Triton's process sees."
    if manifest.split:
        yield (
            f"All stages are of one export, and the ensemble asks for their version {VERSION}: "
            "replace the repository as a whole, never a stage of it."
        )
