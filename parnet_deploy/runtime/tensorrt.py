"""TensorRT and TensorRT RTX plans as stages on GPUs, which `cuda.runner.CudaRunner` runs.

References: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
and https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parnet_deploy.runtime.cuda.device import CudaDevice, find_gpu
from parnet_deploy.runtime.cuda.stage import CudaStage
from parnet_deploy.runtime.machine import Gpu
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend, load_api
from parnet_deploy.runtime.tensorrt_plan import Plan, load_plan
from parnet_deploy.runtime.tensorrt_target import PlanTarget
from parnet_deploy.spec import TensorSpec


def tensorrt_stage(
    path: Path,
    *,
    name: str,
    backend: TensorRTBackend,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    device: int = 0,
    target: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    api: Any = None,
    find: Callable[[int], Gpu] = find_gpu,
) -> CudaStage:
    """A plan as a stage. Nothing of it is read before GPU and version are known to fit.

    Args:
        path: the plan.
        name: the stage's name.
        backend: which flavour of TensorRT built it.
        inputs: its inputs.
        outputs: its outputs.
        device: number of the GPU.
        target: what it needs, as its manifest says; not checked where None.
        weights: the ONNX file it was built from, for a weight-stripped plan.
        api: TensorRT's module; loaded where None.
        find: gives the GPU of a number.

    Raises:
        TargetError: there is no such GPU, or it or the installed version is not what the plan was
            built for.
        EngineError: the target is not one that this version reads.
        MissingDependencyError: TensorRT is not installed.
    """
    needs = None if target is None else PlanTarget.from_json(target)
    gpu = find(device)
    if needs is not None:
        needs.check_gpu(gpu)
    api = api or load_api(backend)
    if needs is not None:
        needs.check_version(str(api.__version__))

    def load(_: CudaDevice) -> Plan:
        return load_plan(api, path, inputs=inputs, outputs=outputs, needs=needs, weights=weights)

    return CudaStage(name=name, device=device, inputs=inputs, outputs=outputs, load=load)
