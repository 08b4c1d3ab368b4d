"""A float32 graph in a lower precision: the types stand in the graph. No torch in it.

layers    the convolutions that can be quantised, and the tensors whose ranges that takes
weights   rounded weights, and quantised ones with their scales
half      float16 and bfloat16 between two casts
qdq       int8 and fp8: QuantizeLinear and DequantizeLinear around what is quantised
lowering  `lower`: a graph in any precision
emulate   the same graph in float32, for a runtime that lacks kernels
faults    whether a quantised graph is what its quantisation says
types     what each block's convolution computes in, as a graph's nodes say it
"""

from parnet_deploy.lowering.emulate import EMULATED, EXACTLY, emulate, emulated_spec
from parnet_deploy.lowering.faults import quantisation_faults, stored_weights
from parnet_deploy.lowering.layers import Layer, keeping, layers, observed
from parnet_deploy.lowering.lowering import lower, opset_for
from parnet_deploy.lowering.types import layer_types

__all__ = [
    "EMULATED",
    "EXACTLY",
    "Layer",
    "emulate",
    "emulated_spec",
    "keeping",
    "layer_types",
    "layers",
    "lower",
    "observed",
    "opset_for",
    "quantisation_faults",
    "stored_weights",
]
