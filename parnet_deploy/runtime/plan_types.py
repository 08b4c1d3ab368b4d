"""What the convolutions of a TensorRT plan really compute in.

A plan of TensorRT RTX tells in its own text (`plan_text`), without a GPU; one of TensorRT through
its engine inspector, on the GPU that it was built for and where it was built with detailed
profiling verbosity. Reference:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-inspector
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parnet_deploy.errors import EngineError
from parnet_deploy.runtime.plan_text import UNTOLD, PlanText, read_plan_text
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

_CONVOLUTIONS = (("conv", "corr", "gemm"), ("fusion",))
"""Parts of layer types that compute a convolution, the surer ones first."""

_UNKNOWN = "unknown"

_FORMATS = (
    ("fp8", ("fp8", "float8")),
    ("int8", ("int8",)),
    ("bf16", ("bf16", "bfloat16")),
    ("fp16", ("fp16", "half", "float16")),
    ("fp32", ("fp32", "float")),
)
"""Words of a format's description by precision, the more special ones first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTypes:
    """What a plan tells of its convolutions.

    Attributes:
        types: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``fp8`` by block, of what was read;
            ``mixed`` where input and kernel or several kernels of one block differ.
        unread: words that are not known here by block, such as the name of a type: of convolutions
            of which something could not be read. No words where the plan names the convolution and
            tells no type.
        complete: whether all in the plan was understood (`PlanText.understood`): a convolution that
            is in neither mapping is not in the plan. It is never so of TensorRT's inspector, of
            whose words there is no list.
    """

    types: Mapping[str, str]
    unread: Mapping[str, tuple[str, ...]]
    complete: bool


def shown(types: Mapping[str, str], unread: Collection[str]) -> dict[str, str]:
    """Types by block, ``unknown`` or ``fp16 and unknown`` where something could not be read.

    Args:
        types: what was read.
        unread: blocks of which something could not be read.
    """
    return {
        block: " and ".join([*filter(None, [types.get(block)]), *[_UNKNOWN] * (block in unread)])
        for block in dict.fromkeys((*types, *unread))
    }


def built_types(path: Path, backend: TensorRTBackend, *, api: Any = None) -> PlanTypes | None:
    """What each block's convolution computes in, as a plan tells it.

    Args:
        path: the plan.
        backend: which flavour of TensorRT made it.
        api: TensorRT's module, for the flavour ``tensorrt``; loaded where None.

    Returns:
        What it tells, or None where it tells nothing.

    Raises:
        EngineError: the file cannot be read, or TensorRT cannot load it.
        MissingDependencyError: TensorRT is not installed (flavour ``tensorrt`` only).
    """
    if backend == "tensorrt-rtx":
        text = read_plan_text(path)
        return None if text is None else types_of_text(text)
    layers = _inspected(path, api or load_api(backend))
    return None if layers is None else types_of_layers(layers)


def types_of_text(text: PlanText) -> PlanTypes:
    """What each block's convolution computes in: the types of the map and the kernel it reads.

    A convolution is an instruction of the plan's program, or, where TensorRT RTX fused it with what
    comes behind it, one of the fused kernel's own program. That a kernel bears a convolution's name
    shows nothing: what only moves its input or scales its output bears it, too. But where no
    instruction is the convolution that kernels are named after, one of them may be, in a way that
    is not known here: it could not be read.
    """
    kernels = (*text.kernels, *text.inside)
    found = {block: set[str]() for kernel in kernels for block in _blocks(kernel.layers)}
    for kernel in kernels:
        if kernel.kind == _CONVOLUTION:
            for block in _blocks(kernel.layers):
                found[block].update((*kernel.reads, UNTOLD, UNTOLD)[:2])
    return _sorted_out(found, _TEXT_TYPES, complete=text.understood)


def types_of_layers(layers: Iterable[Mapping[str, Any]]) -> PlanTypes:
    """The same from the layers of TensorRT's engine inspector.

    A block's convolution is the layer of that name whose type says so, or else one that is fused.
    Where it has another type, it could not be read.
    """
    named: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        for block in _blocks(_LAYER.findall(str(layer.get("Metadata", "")))):
            named.setdefault(block, []).append(layer)
    found: dict[str, set[str]] = {}
    for block, some in named.items():
        tiers = ([layer for layer in some if _is_one(layer, marks)] for marks in _CONVOLUTIONS)
        convolutions = next(filter(None, tiers), [])
        others = {_kind(layer) for layer in some if not _is_beside(layer)}
        found[block] = {_layer_type(layer) for layer in convolutions} or others
    known = {name: name for name, _ in _FORMATS}
    return _sorted_out(found, known, complete=False)


def _sorted_out(
    found: Mapping[str, set[str]], known: Mapping[str, str], *, complete: bool
) -> PlanTypes:
    """Types and what could not be read, of all words that a plan says of each block."""
    types: dict[str, str] = {}
    unread: dict[str, tuple[str, ...]] = {}
    for block, words in found.items():
        kinds = {known[word] for word in words if word in known}
        if kinds:
            types[block] = kinds.pop() if len(kinds) == 1 else "mixed"
        if not words or words - known.keys():
            unread[block] = tuple(sorted(words - known.keys() - {UNTOLD}))
    return PlanTypes(types=types, unread=unread, complete=complete)


def _blocks(layers: Iterable[str]) -> list[str]:
    """Blocks whose convolution is among nodes."""
    return [match[1] for layer in layers if (match := _BLOCK.fullmatch(layer))]


def _kind(layer: Mapping[str, Any]) -> str:
    return str(layer.get("LayerType", UNTOLD))


def _is_beside(layer: Mapping[str, Any]) -> bool:
    return _kind(layer).lower().startswith(_NOT_CONVOLUTIONS)


def _is_one(layer: Mapping[str, Any], marks: tuple[str, ...]) -> bool:
    return not _is_beside(layer) and any(mark in _kind(layer).lower() for mark in marks)


def _layer_type(layer: Mapping[str, Any]) -> str:
    """The type of a layer's weights where it tells, or else of the first map that it reads.

    What it says itself where that is none that is known.
    """
    weights = layer.get("Weights")
    told = weights.get("Type") if isinstance(weights, Mapping) else None
    if told is None:
        told = next(_formats(layer.get("Inputs")), "")
    words = str(told).lower()
    known = (name for name, marks in _FORMATS if any(mark in words for mark in marks))
    return next(known, str(told) or UNTOLD)


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
