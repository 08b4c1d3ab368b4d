"""What an engine really computes in, block by block: read from its files.

onnxruntime  its saved graph's nodes: integer convolutions, or the type of a float one's kernel
openvino     what the compiled model says of each of its layers (``runtimePrecision``)
ncnn         float32, whatever it was made of
tensorrt     the plan's own text (`runtime.plan_types`), or TensorRT's inspector
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from parnet_deploy.bundle import EngineBundle, EngineManifest, EngineStage, ModelManifest
from parnet_deploy.errors import MissingDependencyError
from parnet_deploy.runtime.onnxruntime import has_half_kernels
from parnet_deploy.runtime.openvino import compile_model, has_bfloat16
from parnet_deploy.runtime.plan_types import PlanTypes, built_types, shown
from parnet_deploy.runtime.tensorrt_api import TensorRTBackend
from parnet_deploy.verify.asked import asked_types
from parnet_deploy.verify.problems import Problem, counted, in_words
from parnet_deploy.verify.result import CheckResult, ProbeVerdict
from parnet_deploy.verify.tolerances import RungName
from parnet_deploy.verify.written import load_graph

BUILT = "each layer was built in its type"
COMPUTES = "it computes in what was asked for, where it can"

_NODE = re.compile(
    r"(?:InsertedPrecisionFreeCast_|FusedBack_)*(\w+)\.conv(?:\.(?:weight|bias))?(?:_\w+)?$"
)
"""A block's convolution, by its own name or one that was made of it (``fused stem1.conv``,
``stem1.conv_token_10``, ``InsertedPrecisionFreeCast_stem1.conv_nchwc``), or by its weights: what
ONNX Runtime fuses with an activation bears the activation's name."""

_FUSED = re.compile(r"(?:InsertedPrecisionFreeCast_)*(\w+)_nchwc")
"""A block's convolution and the activation behind it, by the latter's whole name. No other is left
where channels are no multiple of the CPU's vectors, so that ONNX Runtime fills up the weights and
names them anew: widths of 8 with AVX-512."""

_INTEGER = frozenset({"QLinearConv", "ConvInteger"})
_FLOAT = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})

_ONNX_TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}

_OPENVINO_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}

_TOLD = ("layerType", "originalLayersNames", "runtimePrecision")
_PLANS = ("tensorrt", "tensorrt-rtx")
"""Backends whose files are plans: their formats are not documented."""

_OPENVINO_LAYERS = frozenset({"Convolution", "GroupConvolution"})

Types = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineTypes:
    """What an engine tells.

    Attributes:
        types: precision of each block's convolution that it tells of.
        silent: why it does not tell, or None.
        unread: words that are not known here by block, of convolutions of which something could
            not be read; none where no type is told.
        complete: whether a convolution that is in neither is not there. It is so of files whose
            format is documented, and of plans in which all was understood (`PlanTypes`).
    """

    types: Mapping[str, str]
    silent: str | None = None
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    complete: bool = True

    @property
    def shown(self) -> dict[str, str]:
        """The types by block, ``unknown`` where one could not be read."""
        return shown(self.types, self.unread)


def engine_types(engine: EngineBundle) -> EngineTypes:
    """What an engine's files compute in.

    Raises:
        VerificationError: a saved graph cannot be read.
        EngineError: a file does not load.
    """
    found: dict[str, dict[str, None]] = {}
    unread: dict[str, dict[str, None]] = {}
    complete = True
    try:
        for stage in engine.manifest.stages:
            told = _read(engine, stage)
            complete = complete and told.complete
            for block, kind in told.types.items():
                found.setdefault(block, {})[kind] = None
            for block, words in told.unread.items():
                unread.setdefault(block, {}).update(dict.fromkeys(words))
    except MissingDependencyError as exc:
        return EngineTypes(types={}, silent=str(exc))
    types = {block: " and ".join(kinds) for block, kinds in found.items()}
    if not types and engine.manifest.backend not in _PLANS:
        return EngineTypes(types={}, silent=f"{engine.manifest.backend} does not tell")
    words_of = {block: tuple(words) for block, words in unread.items()}
    return EngineTypes(types=types, unread=words_of, complete=complete)


def stage_types(engine: EngineBundle, stage: EngineStage) -> Types:
    """What one of an engine's files computes in, by block; empty where it does not tell.

    A type that could not be read is ``unknown``.

    Raises:
        VerificationError: a saved graph cannot be read.
        EngineError: the file does not load.
        MissingDependencyError: what reads it is not installed.
    """
    told = _read(engine, stage)
    return shown(told.types, told.unread)


def _read(engine: EngineBundle, stage: EngineStage) -> PlanTypes:
    """What a file of an engine tells."""
    backend = engine.manifest.backend
    if backend not in _PLANS:
        reader = _READERS.get(backend)
        types = {} if reader is None else reader(engine, stage)
        return PlanTypes(types=types, unread={}, complete=True)
    flavour: TensorRTBackend = "tensorrt" if backend == "tensorrt" else "tensorrt-rtx"
    told = built_types(engine.file(stage.file), flavour)
    return told or PlanTypes(types={}, unread={}, complete=False)


def check_engine(
    rung: RungName, engine: EngineManifest, model: ModelManifest, found: EngineTypes
) -> tuple[CheckResult, ...]:
    """Hold an engine against what was asked for, and what it says of itself.

    A convolution that was read with another type fails. One of which a type could not be read, or
    that is not told of where not all was understood, shows nothing: where none fails, the verdict
    is then "not verified".

    Args:
        rung: which rung it is.
        engine: what it says of itself.
        model: what its model says: what was asked for.
        found: what its files tell.
    """
    reason = substitution(engine, model)
    said = f"asked for {model.precision}"
    said += f", computed in {engine.computes}" if engine.computes else ""
    computes = CheckResult(
        rung=rung,
        name=COMPUTES,
        verdict=reason.verdict,
        detail=f"{said}: {reason.words}" if reason.words else said,
    )
    if found.silent is not None:
        built = CheckResult(rung=rung, name=BUILT, verdict="not verified", detail=found.silent)
        return computes, built
    expected = expected_types(engine, model)
    bad = list(_problems(expected, found))
    unread = list(_unread(expected, found))
    wrong = "; ".join(filter(None, [in_words(bad), in_words(unread)]))
    built = CheckResult(
        rung=rung,
        name=BUILT,
        verdict="failed" if bad else "not verified" if unread else "passed",
        detail=wrong or f"{counted(found.types)} of {len(expected)} convolutions",
        problems=tuple(map(str, (*bad, *unread))),
    )
    return computes, built


@dataclass(frozen=True, kw_only=True, slots=True)
class Substitution:
    """Whether an engine may compute in something else than was asked for.

    Attributes:
        verdict: ``failed`` where it could have done what it was asked for; ``not verified`` where
            what knows that is not installed.
        words: why it is right or wrong, empty where it does what was asked for.
    """

    verdict: ProbeVerdict
    words: str


def substitution(engine: EngineManifest, model: ModelManifest) -> Substitution:
    """What is to be said of an engine that computes in something else than its model's precision.

    A backend on a CPU that has no kernels in float16 or bfloat16 computes such graphs in float32:
    the CPU is asked whether it has. Nothing else stands in for what was asked for.
    """
    asked, computes = model.precision, engine.computes
    if computes in ("", asked):
        return Substitution(verdict="passed", words="")
    if asked == "fp32" and computes == "tf32":
        return Substitution(verdict="passed", words="TF32 was allowed when it was built")
    on_cpu = all(stage.device == "cpu" for stage in engine.stages)
    if on_cpu and asked in ("fp16", "bf16") and computes == "fp32":
        return _in_float32(engine, asked)
    where = ", ".join(dict.fromkeys(stage.device for stage in engine.stages))
    words = f"{engine.backend} on {where} could have computed in {asked}"
    return Substitution(verdict="failed", words=words)


def _in_float32(engine: EngineManifest, asked: str) -> Substitution:
    """What is to be said of an engine on a CPU that computes a graph in less in float32."""
    ask = _ON_CPU.get((engine.backend, asked))
    if ask is None:
        words = f"{engine.backend} engines compute {asked} in fp32 on every CPU"
        return Substitution(verdict="passed", words=words)
    try:
        could = ask(engine)
    except MissingDependencyError as exc:
        words = f"whether this CPU computes in {asked} is not known: {exc}"
        return Substitution(verdict="not verified", words=words)
    if could:
        words = f"{engine.backend} could have computed in {asked} on this CPU; build it again here"
        return Substitution(verdict="failed", words=words)
    words = f"{engine.backend} has no kernels in {asked} for this CPU"
    return Substitution(verdict="passed", words=words)


def _has_half_kernels(engine: EngineManifest) -> bool:
    architecture = engine.target.get("architecture")  # only where it is this machine's does it open
    return has_half_kernels(None if architecture is None else str(architecture))


_ON_CPU: Mapping[tuple[str, str], Callable[[EngineManifest], bool]] = {
    ("onnxruntime", "fp16"): _has_half_kernels,
    ("openvino", "bf16"): lambda engine: has_bfloat16(),
}
"""What knows whether a backend's engines can compute in a precision on a CPU, where that depends on
the CPU: OpenVINO's compute float16 in float32 on all of them (`engine.openvino`)."""


def expected_types(engine: EngineManifest, model: ModelManifest) -> Types:
    """What each block's convolution is to compute in in this engine, by block."""
    asked = asked_types(model.spec, model.precision, model.quantisation)
    del asked["head"]
    if model.quantisation is not None:
        base = model.quantisation.scheme.base
        on_cpu = all(stage.device == "cpu" for stage in engine.stages)
        if not on_cpu:
            return asked
        return {block: "fp32" if kind == base else kind for block, kind in asked.items()}
    if engine.computes in ("", "tf32") or substitution(engine, model).verdict == "failed":
        return asked
    return dict.fromkeys(asked, engine.computes)


def _problems(expected: Mapping[str, str], found: EngineTypes) -> Iterator[Problem]:
    """Convolutions that were read with another type, and those that are not there."""
    for block, want in expected.items():
        got = found.types.get(block)
        if got is not None and got != want:
            rest = f"built in {got}, and {want} was asked for"
            yield Problem.of(block, ("was", "were"), rest)
        elif got is None and block not in found.unread and found.complete:
            lacks = "it has no convolution"
            yield Problem(name=block, one=f"{lacks} {{names}}", several=f"{lacks}s {{names}}")


def _unread(expected: Mapping[str, str], found: EngineTypes) -> Iterator[Problem]:
    """Convolutions of which the engine tells nothing that can be read, or not all of it."""
    for block in expected:
        words = found.unread.get(block, ())
        if words:
            rest = f"what is not known here, {' and '.join(map(repr, words))}"
            one = f"of the convolution {{names}} it says {_literal(rest)}"
            several = f"of the convolutions {{names}} it says {_literal(rest)}"
            yield Problem(name=block, one=one, several=several)
        elif block in found.unread or not (found.complete or block in found.types):
            lost = "could not be read from it"
            one, several = f"the type of {{names}} {lost}", f"the types of {{names}} {lost}"
            yield Problem(name=block, one=one, several=several)


def _literal(words: str) -> str:
    """Words as a part of a template."""
    return words.replace("{", "{{").replace("}", "}}")


def _onnxruntime_types(engine: EngineBundle, stage: EngineStage) -> Types:
    graph = load_graph(engine.file(stage.file), weights=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type not in _INTEGER | _FLOAT:
            continue
        matches = (_NODE.search(name) for name in (node.name, *node.input[1:]))
        match = next(filter(None, matches), None) or _FUSED.fullmatch(node.name)
        if match is not None:
            kind = _ONNX_TYPES.get(_element(node.input[1], kinds, makers), "unknown")
            found[match[1]] = "int8" if node.op_type in _INTEGER else kind
    return found


def _element(name: str, kinds: Mapping[str, int], makers: Mapping[str, onnx.NodeProto]) -> int:
    """The element type of a convolution's kernel, 0 where that does not show."""
    while name not in kinds and name in makers:
        node = makers[name]
        if node.op_type == "Cast":
            return next(int(a.i) for a in node.attribute if a.name == "to")
        # A dequantised kernel is of its scale's type.
        name = node.input[1 if node.op_type == "DequantizeLinear" else 0]
    return kinds.get(name, 0)


def _openvino_types(engine: EngineBundle, stage: EngineStage) -> Types:
    computes = engine.manifest.computes or "fp32"
    compiled = compile_model(engine.file(stage.file), threads=1, pin=None, computes=computes)
    found: Types = {}
    for operator in compiled.get_runtime_model().get_ordered_ops():
        info: Any = operator.get_rt_info()
        told = {key: str(info[key].astype(str)) for key in _TOLD if key in info}
        if told.get("layerType") not in _OPENVINO_LAYERS:
            continue
        names = told.get("originalLayersNames", "").split(",")
        kind = _OPENVINO_TYPES.get(told.get("runtimePrecision", "").lower(), "unknown")
        found |= {match[1]: kind for name in names if (match := _NODE.search(name))}
    return found


def _ncnn_types(engine: EngineBundle, stage: EngineStage) -> Types:
    del stage
    return dict.fromkeys(expected_blocks(engine), "fp32")


def expected_blocks(engine: EngineBundle) -> tuple[str, ...]:
    """Blocks with a convolution."""
    manifest = engine.manifest
    asked = asked_types(manifest.spec, manifest.precision, manifest.quantisation)
    return tuple(block for block in asked if block != "head")


_READERS: Mapping[str, Callable[[EngineBundle, EngineStage], Types]] = {
    "onnxruntime": _onnxruntime_types,
    "openvino": _openvino_types,
    "ncnn": _ncnn_types,
}
