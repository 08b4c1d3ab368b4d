"""An engine as Triton's models: the whole as one, a split one as an ensemble of its stages.

In an ensemble Triton starts every step whose inputs are there, so that streams run side by side,
each stage on its own device. Reference:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/ensemble_models.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from parnet_deploy.bundle import LABELS, BatchRange, EngineBundle, EngineManifest, EngineStage
from parnet_deploy.errors import ServingError, UsageError
from parnet_deploy.serve.signature import VERSION
from parnet_deploy.serve.triton.config import (
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    ModelTensor,
    Platform,
    Step,
    Warmup,
)
from parnet_deploy.serve.triton.settings import DEVICE, NAME, RepositorySettings
from parnet_deploy.spec import TensorSpec, encode

DATA_TYPES: Mapping[str, str] = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "uint8": "TYPE_UINT8",
}

WARM_UP_RUNS = 3


def models_of(bundle: EngineBundle, settings: RepositorySettings) -> tuple[ModelConfig, ...]:
    """The models of a repository, the one that clients ask last.

    Args:
        bundle: the engine.
        settings: how it is to be served.

    Returns:
        One model, or a model for each stage and then their ensemble.

    Raises:
        UsageError: the settings do not fit the engine, or its name cannot be a model's.
        ServingError: Triton cannot serve it.
    """
    manifest = bundle.manifest
    name = settings.name or manifest.name
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a model's name in Triton; give another with --name")
    platform = _platform(bundle)
    size = _max_batch_size(manifest, settings)
    stages = [
        _stage_model(bundle, stage, _model_name(name, stage, manifest), platform, size, settings)
        for stage in manifest.stages
    ]
    clients = _ensemble(bundle, name, stages, size) if manifest.split else stages.pop()
    return (*stages, _labelled(clients, manifest.batch))


def device_of(stage: EngineStage, settings: RepositorySettings) -> str:
    """Where a stage is to run: ``cpu`` or ``cuda:N``."""
    return (settings.placement or {}).get(stage.name, stage.device)


def _platform(bundle: EngineBundle) -> Platform:
    manifest = bundle.manifest
    if manifest.backend == "onnxruntime":
        return "onnxruntime_onnx"
    if manifest.backend != "tensorrt":
        raise ServingError(
            f"Triton does not serve {bundle.path} as it is, a {manifest.backend} engine; build one "
            "with 'parnet-deploy build-engine' and --backend tensorrt on a machine with the GPU "
            "that is to serve, or with --backend onnxruntime, which is served on CPUs and GPUs"
        )
    if manifest.target.get("weights") == "stripped":
        raise ServingError(
            f"the plans of {bundle.path} have no weights in them, and Triton puts none in; build "
            "the engine again without --weight-stripped"
        )
    return "tensorrt_plan"


def _max_batch_size(manifest: EngineManifest, settings: RepositorySettings) -> int:
    """Triton's `max_batch_size`: 0 where the batch is fixed."""
    batch, asked = manifest.batch, settings.max_batch
    waits = settings.delay > 0 or bool(settings.preferred)
    if not batch.dynamic:
        if waits or asked not in (None, batch.max):
            raise UsageError(
                f"the engine's batch is fixed at {batch.max}, so requests are not put together; "
                "leave out --max-batch, --delay and --preferred, or export with --batch 1:1:8 and "
                "build again"
            )
        return 0
    if batch.min > 1:
        raise ServingError(
            f"the engine takes {batch.min} to {batch.max} images, and Triton also runs single "
            "ones; export with --batch 1:N:N, and build again"
        )
    size = batch.max if asked is None else asked
    if size > batch.max:
        raise UsageError(f"--max-batch is at most {batch.max}, what the engine takes, not {size}")
    if size == 1 and waits:
        raise UsageError(
            "with --max-batch 1 nobody waits for others; leave out --delay, --preferred"
        )
    if too_large := [number for number in settings.preferred if number > size]:
        raise UsageError(f"--preferred are at most {size}, the largest batch, not {too_large}")
    return size


def _model_name(name: str, stage: EngineStage, manifest: EngineManifest) -> str:
    return f"{name}-{stage.name}" if manifest.split else name


def _stage_model(
    bundle: EngineBundle,
    stage: EngineStage,
    name: str,
    platform: Platform,
    size: int,
    settings: RepositorySettings,
) -> ModelConfig:
    manifest = bundle.manifest
    first = {spec.name for spec in stage.inputs} <= {spec.name for spec in manifest.inputs}
    return ModelConfig(
        name=name,
        platform=platform,
        max_batch_size=size,
        inputs=_tensors(stage.inputs, size),
        outputs=_tensors(stage.outputs, size),
        instance_group=_instance_group(stage, platform, settings),
        dynamic_batching=_dynamic_batching(size, settings, first=first),
        warmup=_warmup(size),
        cuda_graphs=_cuda_graphs(size, settings) if platform == "tensorrt_plan" else (),
        parameters=_facts(bundle) | _threads(bundle, stage, platform, settings),
    )


def _ensemble(bundle: EngineBundle, name: str, stages: list[ModelConfig], size: int) -> ModelConfig:
    """The stages' models as one. A tensor has the same name everywhere."""
    manifest = bundle.manifest
    return ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=size,
        inputs=_tensors(manifest.inputs, size),
        outputs=_tensors(manifest.outputs, size),
        steps=tuple(
            Step(
                model_name=model.name,
                # Not "the latest": stages of two exports would be mixed while one is replaced.
                model_version=int(VERSION),
                input_map={tensor.name: tensor.name for tensor in model.inputs},
                output_map={tensor.name: tensor.name for tensor in model.outputs},
            )
            for model in stages
        ),
        parameters=_facts(bundle),
    )


def _labelled(model: ModelConfig, batch: BatchRange) -> ModelConfig:
    """With class names, where Triton's classification means one image by one answer.

    It takes all of an answer whose batch is fixed for one image's.
    """
    if not batch.dynamic and batch.max > 1:
        return model
    scores, *others = model.outputs
    return replace(model, outputs=(replace(scores, label_filename=LABELS), *others))


def _tensors(specs: tuple[TensorSpec, ...], size: int) -> tuple[ModelTensor, ...]:
    return tuple(
        ModelTensor(name=spec.name, data_type=_data_type(spec), dims=_dims(spec, size))
        for spec in specs
    )


def _data_type(spec: TensorSpec) -> str:
    if spec.dtype not in DATA_TYPES:
        raise ServingError(
            f"'{spec.name}' is {spec.dtype}; a repository is written for {', '.join(DATA_TYPES)}"
        )
    return DATA_TYPES[spec.dtype]


def _dims(spec: TensorSpec, size: int) -> tuple[int, ...]:
    axes = spec.shape[1:] if size else spec.shape
    return tuple(int(axis) for axis in axes)


def _instance_group(
    stage: EngineStage, platform: Platform, settings: RepositorySettings
) -> InstanceGroup:
    device = device_of(stage, settings)
    match = DEVICE.fullmatch(device)
    if match is None:
        raise ServingError(f"stage '{stage.name}' is for device '{device}', not cpu or cuda:N")
    if match[1] is None and platform == "tensorrt_plan":
        raise UsageError(f"'{stage.name}' is a TensorRT plan, which runs on a GPU, not on cpu")
    gpus = () if match[1] is None else (int(match[1]),)
    return InstanceGroup(count=settings.instances, gpus=gpus)


def _dynamic_batching(
    size: int, settings: RepositorySettings, *, first: bool
) -> DynamicBatching | None:
    """Only where requests come in do they wait for others: once, not at every stage."""
    if size <= 1:
        return None
    return DynamicBatching(
        max_queue_delay_microseconds=settings.delay if first else 0,
        preferred_batch_size=tuple(sorted(set(settings.preferred))),
    )


def _warmup(size: int) -> tuple[Warmup, ...]:
    """Of one image and of the largest batch: memory and kernels are those of either."""
    batches = sorted({1, max(size, 1)})
    return tuple(Warmup(batch_size=batch, count=WARM_UP_RUNS) for batch in batches)


def _cuda_graphs(size: int, settings: RepositorySettings) -> tuple[int, ...]:
    return tuple(sorted({1, *settings.preferred, size})) if size else (0,)


def _facts(bundle: EngineBundle) -> dict[str, str]:
    """What clients and operators may want to know of the engine behind a model."""
    manifest = bundle.manifest
    target = manifest.target
    tensorrt = {
        "tensorrt_version": str(target.get("version", "")),
        "compute_capabilities": ",".join(map(str, target.get("compute_capabilities", ()))),
    }
    return {
        "engine": manifest.name,
        "engine_manifest_sha256": bundle.manifest_sha256,
        "model_manifest_sha256": manifest.model.manifest_sha256,
        "precision": manifest.precision,
        "scores": "probabilities" if manifest.softmax else "logits",
        "preprocessing": " ".join(encode(manifest.preprocessing).decode().split()),
        **(tensorrt if manifest.backend == "tensorrt" else {}),
    }


def _threads(
    bundle: EngineBundle, stage: EngineStage, platform: Platform, settings: RepositorySettings
) -> dict[str, str]:
    """The CPU threads that the engine was given; left to ONNX Runtime where it was not."""
    given = stage.threads or bundle.manifest.options.get("intra_op_num_threads", 0)
    if platform != "onnxruntime_onnx" or device_of(stage, settings) != "cpu" or not given:
        return {}
    return {"intra_op_thread_count": str(given)}
