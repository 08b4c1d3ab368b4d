"""Whether a graph's other constants are the checkpoint's, folded: all but its quantised kernels.

Biases, squeezes, normalisations, the classifier, and the kernels of layers that are not quantised.
int8 and fp8 are allowed so much at the outputs that a wrong one of these would pass there. Each is
read from the operator that it belongs to, so that one under a right name that nothing reads does
not count; and a constant of no known operator is told of, too.

Each may be off by a rounding to the type that was asked for, and by `FOLD` of its tensor's greatest
magnitude, which folds in float32 on two machines may be. A bias that was corrected for what
quantising shifts (`quantise.bias`) may also be off by the greatest correction of its layer, which
the manifest has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from parnet_deploy.lowering.layers import CONV, is_layer
from parnet_deploy.lowering.types import HEAD
from parnet_deploy.spec import LOGITS, Array
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.spec.quantisation import Quantisation
from parnet_deploy.verify.folded import BIAS, SCALE, SHIFT, WEIGHT, Constants, affine
from parnet_deploy.verify.kernels import apart, least
from parnet_deploy.verify.problems import Problem

FOLD = 1e-5

_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})

_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Their scales are looked at by themselves (`built`, `kernels`)."""

_PASSES = frozenset({"Cast", "Identity"})
"""What may stand between a constant and the operator that reads it."""

_WORDS = {
    WEIGHT: "weight",
    BIAS: "bias",
    SCALE: "scale (weight / sqrt(variance + epsilon))",
    SHIFT: "shift (bias - mean * scale)",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GraphConstants:
    """The float constants of a graph.

    Attributes:
        known: of operators as a network in deploy form has them, by the operator's name and role;
            quantised kernels are not among them.
        others: names and types of operators that read a constant and are none of these, or have the
            name of one that stands before them.
    """

    known: Constants
    others: tuple[tuple[str, str], ...]


def read_constants(model: onnx.ModelProto) -> GraphConstants:
    """Read the float constants of a graph from the operators that use them.

    Args:
        model: a whole graph or a stage, its weights in it.
    """
    constants = _constants(model)
    known: Constants = {}
    others: list[tuple[str, str]] = []
    factors: dict[str, Array] = {}
    for node in model.graph.node:
        values = [constants.get(name) for name in node.input]
        given = [value for value in values if value is not None]
        if not given or node.op_type in _QUANTISERS | _PASSES:
            continue
        if block := _rescaled(node):
            factors[block] = given[0].reshape(-1)
        elif node.name not in known and (roles := _roles(node, values)):
            known[node.name] = roles
        else:
            others.append((node.name, node.op_type))
    for block, factor in factors.items():  # a kernel's own check has the factor
        roles = known.get(f"{block}{CONV}", {})
        if BIAS in roles and roles[BIAS].shape == factor.shape:
            roles[BIAS] = roles[BIAS] * factor
    return GraphConstants(known=known, others=tuple(others))


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    """A graph's float constants, float64, by every name that they have."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # in the order in which they are computed
        if node.op_type == "Constant":
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            tensors |= dict(zip(node.output, values, strict=False))
        elif node.op_type in _PASSES and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
    return {
        name: numpy_helper.to_array(tensor).astype(np.float64)
        for name, tensor in tensors.items()
        if tensor.data_type in _FLOATS
    }


def constant_problems(
    graph: GraphConstants,
    folded: Constants,
    blocks: Mapping[str, str],
    quantisation: Quantisation | None,
    file: str,
) -> Iterator[Problem]:
    """What is wrong with a graph's constants: each that is not the checkpoint's.

    Args:
        graph: what it has.
        folded: what the checkpoint folds to (`folded`), of the whole network.
        blocks: what each block in the graph is to compute in where it is not quantised, by name.
        quantisation: how the network is quantised; None where it is not.
        file: the graph's path, for the sentences.
    """
    for node, roles in folded.items():
        block = HEAD if node == LOGITS else node.partition(".")[0]
        if block in blocks or node in graph.known:
            # What normalises images is no block, and in float32.
            precision = blocks.get(block, "fp32")
            there = graph.known.get(node, {})
            for problem in _operator_problems(node, block, there, roles, precision, quantisation):
                yield Problem(name=block, one=f"{file}: {block}: {problem}")
    for node in sorted(graph.known.keys() - folded.keys()):
        words = f"'{node}' reads a constant, and the checkpoint has no such operator"
        yield Problem(name=f"'{node}'", one=f"{file}: {words}")
    for name, kind in graph.others:
        words = f"{name} ({kind}) reads a constant, and the checkpoint has none for it"
        yield Problem(name=name, one=f"{file}: {words}")


def _operator_problems(
    node: str,
    block: str,
    there: Mapping[str, Array],
    folded: Mapping[str, Array],
    precision: str,
    quantisation: Quantisation | None,
) -> Iterator[str]:
    """What is wrong with one operator's constants."""
    wanted, extra = dict(folded), 0.0
    if quantisation is not None and is_layer(node) and block not in quantisation.kept:
        wanted.pop(WEIGHT)
        there = {role: value for role, value in there.items() if role != WEIGHT}
        extra = quantisation.shifts.get(block, 0.0)
        if extra and BIAS in there:  # a correction may be all that a bias is
            wanted.setdefault(BIAS, np.zeros_like(there[BIAS]))
    for role, want in wanted.items():
        allowed = extra if role == BIAS else 0.0
        if problem := _problem(there.get(role), want, precision, allowed):
            yield f"the {_WORDS[role]} of '{node}' {problem}"
    for role in sorted(there.keys() - wanted.keys()):
        yield f"'{node}' has a {_WORDS[role]}, and the checkpoint has none"


def _problem(got: Array | None, want: Array, precision: str, extra: float) -> str | None:
    if got is None:
        return "is missing"
    if got.size != want.size or got.shape[:1] != want.shape[:1]:
        return f"has shape {list(got.shape)} instead of {list(want.shape)}"
    values = got.reshape(want.shape)
    error = np.abs(values - want)
    roundoff = arithmetic(precision).roundoff
    greatest = float(np.abs(want).max(initial=0.0))
    allowed = 1.001 * (roundoff * np.abs(want) + extra) + FOLD * greatest + least(precision) / 2
    if (error <= allowed).all():  # so written, NaN fails too
        return None
    worst = int(np.nan_to_num(error / allowed, nan=np.inf).argmax())
    place = tuple(map(int, np.unravel_index(worst, want.shape)))
    wrong = int(np.count_nonzero(~(error <= allowed)))
    shown = apart(float(values[place]), float(want[place]))
    corrected = f", corrected by {extra:.2g} at most," if extra else ""
    return (
        f"is {shown[0]} at {list(place)}, and the checkpoint folds to {shown[1]}"
        f"{corrected} ({wrong} of {want.size} differ by more than {precision} rounds)"
    )


def _rescaled(node: onnx.NodeProto) -> str | None:
    """The block whose convolution's output this multiplies by its kernel's factors, or None."""
    block, dot, role = node.name.partition(".conv.")
    return block if dot and role == "rescaled" else None


def _roles(node: onnx.NodeProto, values: list[Array | None]) -> dict[str, Array]:
    """An operator's constants by their roles; empty where it is none that a network has."""
    if node.op_type in ("Conv", "Gemm"):
        turned = node.op_type == "Gemm" and not any(
            a.name == "transB" and a.i for a in node.attribute
        )
        found = {
            role: value.T if turned and role == WEIGHT else value
            for role, value in zip((WEIGHT, BIAS), values[1:], strict=False)
            if value is not None
        }
        return found if values[0] is None else {}
    if node.op_type == "BatchNormalization":
        weight, bias, mean, variance = values[1:5]
        if weight is None or bias is None or mean is None or variance is None:
            return {}
        eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        return affine(weight, bias, mean, variance, eps)
    given = [value for value in values if value is not None]
    if node.op_type in ("Mul", "Add") and len(given) == 1 and len(values) == 2:
        return {WEIGHT: given[0].reshape(-1)}
    return {}
