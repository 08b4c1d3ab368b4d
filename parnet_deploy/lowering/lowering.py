"""A graph in any precision.

The graph is emitted in float32, whatever it is to compute in, and lowered as a whole: so every
precision has the operators of the same form, and what a rounding may change is told from what it
may not: the float32 graph is proven first (`export.gate`).
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering.half import to_half
from parnet_deploy.lowering.qdq import quantise
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Quantisation

_LEAST_OPSET: dict[Precision, int] = {
    "fp32": 18,
    "fp16": 18,
    "bf16": 22,  # Conv, GlobalAveragePool and AveragePool take bfloat16 from here on
    "int8": 19,  # QuantizeLinear takes float16 and float8 from here on
    "fp8": 19,
}


def opset_for(precision: Precision, least: int) -> int:
    """The operator set that a graph of this precision needs, and at least this one."""
    return max(_LEAST_OPSET[precision], least)


def lower(
    graph: gs.Graph,
    precision: Precision,
    *,
    first: str,
    last: str,
    quantisation: Quantisation | None = None,
) -> gs.Graph:
    """A graph in a precision.

    Args:
        graph: in float32; it is left as it is.
        precision: what to compute in.
        first: the tensor that the network reads. What makes it stays in float32.
        last: the tensor that the network gives. It stays float32, and so does what reads it.
        quantisation: of int8 and fp8: what is quantised, and how.

    Returns:
        A graph of the same inputs and outputs, and of the opset that the precision needs.

    Raises:
        ExportError: a weight is beyond the precision's range; int8 or fp8 without a quantisation,
            or with one that does not fit the graph.
        UsageError: the quantisation keeps a layer that is not there.
    """
    if precision == "fp32":
        return graph
    if precision in ("fp16", "bf16"):
        result = to_half(graph, precision, first=first, last=last)
    elif quantisation is None:
        raise ExportError(f"{precision} needs ranges: give images to calibrate on (--calibrate)")
    else:
        result = quantise(graph, quantisation, first=first)
        if quantisation.scheme.base != "fp32":
            result = to_half(result, quantisation.scheme.base, first=first, last=last)
    result.opset = opset_for(precision, graph.opset)
    result.import_domains = None
    return result
