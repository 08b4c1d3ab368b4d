"""Opening an engine bundle: whole or split, whatever its backend, as one runner."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parnet_deploy.bundle import (
    CHECKPOINT,
    MODEL_GRAPH,
    EngineBundle,
    EngineManifest,
    EngineStage,
    build_command,
    open_model,
    resolve_model,
)
from parnet_deploy.errors import BundleError, EngineError, MissingDependencyError
from parnet_deploy.runtime.base import Runner
from parnet_deploy.runtime.machine import Gpu, cuda_driver, installed
from parnet_deploy.runtime.onnxruntime import (
    PROVIDERS,
    OnnxRuntimeRunner,
    Provider,
    has_half_kernels,
)
from parnet_deploy.runtime.split import SplitRunner, StageRunner
from parnet_deploy.runtime.target import check_target
from parnet_deploy.runtime.tensorrt_target import least_capability
from parnet_deploy.spec import Backend
from parnet_deploy.spec.precision import QUANTISED
from parnet_deploy.spec.targets import ON_CPU, TAKES

if TYPE_CHECKING:
    from parnet_deploy.runtime.cuda.stage import CudaStage

_TENSORRT = ("tensorrt", "tensorrt-rtx")


def open_runner(bundle: EngineBundle, *, contexts: int = 1) -> Runner:
    """Open an engine for running.

    Args:
        bundle: the engine bundle.
        contexts: how many runs can be under way on GPUs at once, each with memory and streams of
            its own; other callers wait. On a CPU there is no such limit.

    Returns:
        A runner with the bundle's inputs and outputs; close it after use.

    Raises:
        TargetError: it was built for another machine, GPU or version.
        EngineError: a file of it does not load; like the one above, it says what was found, what
            is needed and what to do.
        MissingDependencyError: what runs it is not installed.
    """
    manifest = bundle.manifest
    _check_stages(bundle)
    if manifest.target.get("provider") == "cuda" or manifest.backend in _TENSORRT:
        with _way_out(bundle):
            return _open_on_gpus(bundle, contexts)
    stages = []
    with contextlib.ExitStack() as opened:  # what is open is closed when the next does not open
        for stage in manifest.stages:
            runner = _open_stage(bundle, stage)
            opened.callback(runner.close)
            stages.append(StageRunner(name=stage.name, device=stage.device, runner=runner))
        result: Runner = stages[0].runner
        if manifest.split:
            result = SplitRunner(stages, inputs=manifest.inputs, outputs=manifest.outputs)
        opened.pop_all()
    return result


def rebuild_command(bundle: EngineBundle) -> str:
    """The command that builds an engine again, for the machine it is given on.

    It takes the place of the old one, but for a GPU's engine where there is no GPU: there one of
    the first backend on a CPU that takes its graphs is built beside it. That is none for what is
    quantised: see `way_out`.
    """
    manifest = bundle.manifest
    if _of_gpus(manifest) and manifest.precision in QUANTISED:
        fit = _fit_gpus(manifest)
        capability = fit[0].compute_capability if fit else None
        return build_command(bundle.path, manifest, capability=capability)
    if _lacks_gpu(manifest):
        return build_command(bundle.path, manifest, other=_on_cpu(manifest.precision))
    return build_command(bundle.path, manifest)


def way_out(bundle: EngineBundle) -> str:
    """What to do about an engine that does not run here, as the end of a sentence."""
    manifest = bundle.manifest
    precision = manifest.precision
    if not _of_gpus(manifest) or precision not in QUANTISED or _fit_gpus(manifest):
        return f"build it again: {rebuild_command(bundle)}{_loss(manifest)}"
    model = resolve_model(manifest.model, bundle.path)
    least = least_capability(manifest.backend, precision)
    which = "" if least is None else f" of compute capability {least[0]}.{least[1]} or later"
    evaluate = shlex.join(["parnet-deploy", "evaluate", str(model)])
    words = ["parnet-deploy", "export", "--checkpoint", str(model / CHECKPOINT)]
    words += ["--precision", "int8", "--for", "onnxruntime", "--output", f"{model}-for-onnxruntime"]
    export = shlex.join(words)
    return (
        f"no build of its {precision} graphs runs without a GPU{which}: run it where there is one; "
        f"here, '{evaluate} --data SOURCE' tells what its model gets right, and '{export} "
        "--calibrate DATA' makes one for the CPU"
    )


def _lacks_gpu(manifest: EngineManifest) -> bool:
    return _of_gpus(manifest) and cuda_driver().problem is not None


def _on_cpu(precision: str) -> Backend:
    """The first backend on a CPU that takes graphs of a precision and is here; else the first."""
    takers = [backend for backend in ON_CPU if precision in TAKES[backend]]
    here = (name for name in takers if name == "onnxruntime" or installed(name) is not None)
    return next(here, takers[0])


def _loss(manifest: EngineManifest) -> str:
    """That a CPU computes in more than the GPU would, as the end of a sentence."""
    precision = manifest.precision
    if not _lacks_gpu(manifest) or precision == "fp32":
        return ""
    return "" if _computes(_on_cpu(precision), precision) else " (which computes in fp32 here)"


def _computes(backend: Backend, precision: str) -> bool:
    """Whether a backend computes in a precision of floating point on this CPU."""
    if precision == "fp16":
        return backend == "onnxruntime" and has_half_kernels()
    from parnet_deploy.runtime.openvino import has_bfloat16

    try:
        return has_bfloat16()
    except MissingDependencyError:  # nobody can tell: the build says so
        return True


def _of_gpus(manifest: EngineManifest) -> bool:
    return any(stage.device.startswith("cuda") for stage in manifest.stages)


def _fit_gpus(manifest: EngineManifest) -> list[Gpu]:
    """GPUs here on which an engine's backend computes in its precision."""
    least = least_capability(manifest.backend, manifest.precision) or (0, 0)
    return [gpu for gpu in cuda_driver().gpus if _numbers(gpu.compute_capability) >= least]


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split(".") if part.isdigit())


def _check_stages(bundle: EngineBundle) -> None:
    """One engine of the whole network is one, and reads and gives what its bundle says."""
    manifest = bundle.manifest
    said = [(manifest.inputs, manifest.outputs)]
    if not manifest.split and [(s.inputs, s.outputs) for s in manifest.stages] != said:
        raise EngineError(
            f"{bundle.path} is said to be one engine of the whole network, and its manifest does "
            f"not describe one; build it again: {rebuild_command(bundle)}"
        )


def _open_stage(bundle: EngineBundle, stage: EngineStage) -> Runner:
    backend = bundle.manifest.backend
    with _way_out(bundle):
        if backend == "openvino":
            return _open_openvino(bundle, stage)
        if backend == "ncnn":
            return _open_ncnn(bundle, stage)
        return _open_onnxruntime(bundle, stage)


@contextlib.contextmanager
def _way_out(bundle: EngineBundle) -> Iterator[None]:
    """Errors of an engine say which it is, and what to do."""
    try:
        yield
    except EngineError as exc:
        raise type(exc)(f"{bundle.path} cannot run here: {exc}; {way_out(bundle)}") from exc


def _open_onnxruntime(bundle: EngineBundle, stage: EngineStage) -> Runner:
    target, options = bundle.manifest.target, bundle.manifest.options
    provider: Provider = target.get("provider", "unknown")
    if provider not in PROVIDERS:
        raise EngineError(f"its provider is '{provider}', not one of {', '.join(PROVIDERS)}")
    check_target(target, provider)
    return OnnxRuntimeRunner(
        bundle.file(stage.file),
        inputs=stage.inputs,
        outputs=stage.outputs,
        provider=provider,
        device_id=_device_number(stage),
        threads=_threads(bundle, stage, "intra_op_num_threads"),
        spin=bool(options.get("intra_op_spinning", False)),
        optimise=False,
    )


def _open_openvino(bundle: EngineBundle, stage: EngineStage) -> Runner:
    from parnet_deploy.runtime.openvino import OpenVinoRunner, check_openvino_target

    check_openvino_target(bundle.manifest.target)
    return OpenVinoRunner(
        bundle.file(stage.file),
        inputs=stage.inputs,
        outputs=stage.outputs,
        threads=_threads(bundle, stage, "INFERENCE_NUM_THREADS"),
        pin=bundle.manifest.options.get("ENABLE_CPU_PINNING"),
        computes=bundle.manifest.computes,
    )


def _open_ncnn(bundle: EngineBundle, stage: EngineStage) -> Runner:
    from parnet_deploy.runtime.ncnn import NcnnRunner, check_ncnn_target

    check_ncnn_target(bundle.manifest.target)
    return NcnnRunner(
        bundle.file(stage.file),
        inputs=stage.inputs,
        outputs=stage.outputs,
        threads=_threads(bundle, stage, "num_threads"),
    )


def _threads(bundle: EngineBundle, stage: EngineStage, option: str) -> int:
    """A stage's own threads, else the whole bundle's, by the backend's name of them; else 0."""
    return stage.threads or int(bundle.manifest.options.get(option, 0))


def _open_on_gpus(bundle: EngineBundle, contexts: int) -> Runner:
    """All stages as one runner, which brings values from GPU to GPU by itself."""
    from parnet_deploy.runtime.cuda.runner import CudaRunner

    manifest = bundle.manifest
    stages = [_gpu_stage(bundle, stage) for stage in manifest.stages]
    return CudaRunner(stages, inputs=manifest.inputs, outputs=manifest.outputs, contexts=contexts)


def _gpu_stage(bundle: EngineBundle, stage: EngineStage) -> CudaStage:
    from parnet_deploy.runtime.onnxruntime_cuda import onnxruntime_stage
    from parnet_deploy.runtime.tensorrt import tensorrt_stage

    manifest = bundle.manifest
    given: dict[str, Any] = {
        "name": stage.name,
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "device": _device_number(stage),
    }
    if manifest.backend == "onnxruntime":
        check_target(manifest.target, "cuda")
        return onnxruntime_stage(bundle.file(stage.file), batch=manifest.batch, **given)
    stripped = manifest.target.get("weights") == "stripped"
    return tensorrt_stage(
        bundle.file(stage.file),
        backend="tensorrt" if manifest.backend == "tensorrt" else "tensorrt-rtx",
        target=manifest.target,
        weights=_source_graph(bundle, stage) if stripped else None,
        **given,
    )


def _source_graph(bundle: EngineBundle, stage: EngineStage) -> Path:
    """The ONNX file that a stage was built from, its weights proven to be the same."""
    reference = bundle.manifest.model
    path = resolve_model(reference, bundle.path)
    try:
        model = open_model(path)
    except BundleError as exc:
        raise EngineError(f"its weights are not in it, but in its model: {exc}") from exc
    if model.manifest_sha256 != reference.manifest_sha256:
        raise EngineError(f"its weights are not in it, and {path} is another model than it is of")
    if not bundle.manifest.split:
        return model.file(MODEL_GRAPH)
    return model.file(
        next(graph.file for graph in model.manifest.stages if graph.name == stage.name)
    )


def _device_number(stage: EngineStage) -> int:
    """0 for ``cpu``, N for ``cuda:N``."""
    kind, _, number = stage.device.partition(":")
    if kind == "cpu" and not number:
        return 0
    if kind == "cuda" and number.isdigit():
        return int(number)
    raise EngineError(f"stage '{stage.name}' is for device '{stage.device}', not cpu or cuda:N")
