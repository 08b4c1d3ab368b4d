"""What the convolutions of a TensorRT plan really compute in.

A plan of TensorRT RTX tells in its own text (`plan_text`), without a GPU; one of TensorRT through
its engine inspector, on the GPU that it was built for and where it was built with detailed
profiling verbosity. Reference:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-inspector
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.plan_text import PlanText, read_plan_text
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend, load_api, message_log

_CONVOLUTION = "corrltn"
"""The instruction of a TensorRT RTX program that is a convolution."""

_TEXT_TYPES = {
    "float": "fp32",
    "half": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8_e4m3": "fp8",
}

_BLOCK = re.compile(r"(\w+)\.conv")

_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_NOT_CONVOLUTIONS = ("kgen", "reformat", "signal", "wait", "constant", "noop", "shape")
"""Starts of layer types that compute what stands beside a convolution."""

_FORMATS = (
    ("fp8", ("fp8", "float8")),
    ("int8", ("int8",)),
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "half", "float16")),
    ("fp32", ("fp32", "float")),
)
"""Words of a format's description by precision, the more special ones first."""


def built_types(
    path: Path, backend: TensorRTBackend, *, api: Any = None
) -> Mapping[str, str] | None:
    """What each block's convolution computes in, as a plan tells it.

    Args:
        path: the plan.
        backend: which flavour of TensorRT made it.
        api: TensorRT's module, for the flavour ``tensorrt``; loaded where None.

    Returns:
        ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8`` by block; ``mixed`` where input and kernel
        or several kernels of one block differ, ``unknown`` where a type is none of these. Blocks
        of which the plan does not tell are left out. None where it tells nothing.

    Raises:
        EngineError: the file cannot be read, or TensorRT cannot load it.
        MissingDependencyError: TensorRT is not installed (flavour ``tensorrt`` only).
    """
    if backend == "tensorrt-rtx":
        text = read_plan_text(path)
        return None if text is None else types_of_text(text)
    layers = _inspected(path, api or load_api(backend))
    return None if layers is None else types_of_layers(layers)


def types_of_text(text: PlanText) -> dict[str, str]:
    """What each block's convolution computes in: the types of the map and the kernel it reads.

    A convolution is an instruction of the plan's program, or, where TensorRT RTX fused it with what
    comes behind it, one of the fused kernel's own program. That a kernel bears a convolution's name
    shows nothing: what only moves its input or scales its output bears it, too.
    """
    return _alike(
        (layer, (_TEXT_TYPES.get(kind, "unknown") for kind in kernel.reads[:2]))
        for kernel in (*text.kernels, *text.inside)
        if kernel.kind == _CONVOLUTION
        for layer in kernel.layers
    )


def types_of_layers(layers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The same from the layers of TensorRT's engine inspector."""
    return _alike(
        (name, [_layer_type(layer)])
        for layer in layers
        if not str(layer.get("LayerType", "")).lower().startswith(_NOT_CONVOLUTIONS)
        for name in _LAYER.findall(str(layer.get("Metadata", "")))
    )


def _alike(told: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """The types of blocks' convolutions, each its one type or ``mixed``."""
    found: dict[str, set[str]] = {}
    for layer, kinds in told:
        if match := _BLOCK.fullmatch(layer):
            found.setdefault(match[1], set()).update(kinds)
    return {
        block: next(iter(kinds)) if len(kinds) == 1 else "mixed"
        for block, kinds in found.items()
        if kinds
    }


def _layer_type(layer: Mapping[str, Any]) -> str:
    """The type of a layer's weights where it tells, or else of the first map that it reads."""
    weights = layer.get("Weights")
    told = weights.get("Type") if isinstance(weights, Mapping) else None
    if told is None:
        told = next(_formats(layer.get("Inputs")), "")
    words = str(told).lower()
    return next((name for name, marks in _FORMATS if any(m in words for m in marks)), "unknown")


def _formats(inputs: object) -> Iterator[str]:
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, Mapping):
            yield str(tensor.get("Format/Datatype", ""))


def _inspected(path: Path, api: Any) -> list[Mapping[str, Any]] | None:
    """The layers of a plan as TensorRT tells them, or None where it names them alone."""
    log = message_log(api)
    try:
        plan = path.read_bytes()
        engine = api.Runtime(log).deserialize_cuda_engine(plan)
    except OSError as exc:
        raise EngineError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (RuntimeError, TypeError) as exc:  # how its bindings report a failed constructor
        raise EngineError(f"TensorRT cannot load {path}: {log.last_errors()}") from exc
    if engine is None:
        raise EngineError(f"TensorRT cannot load {path}: {log.last_errors()}")
    text = engine.create_engine_inspector().get_engine_information(api.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    if not layers or not all(isinstance(layer, dict) for layer in layers):
        return None
    return list(layers)
