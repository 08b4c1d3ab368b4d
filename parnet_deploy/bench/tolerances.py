"""How far a contestant's answers may be from the training form's, to count as right."""

from __future__ import annotations

from dataclasses import dataclass

from parnet_deploy.spec import ParNetSpec
from parnet_deploy.spec.counts import depth
from parnet_deploy.spec.precision import QUANTISED, ROUNDINGS, quantised_tolerance
from parnet_deploy.verify.tolerances import FLOAT32

_ROUNDOFF = {"tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
"""Greatest relative error of one rounding, of what is below float32."""

UNKNOWN_DEPTH = 50
"""Layers of a network without a spec: as many as ResNet-50, the deepest of the paper's others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What a contestant was made of.

    Attributes:
        spec: the network, None where it is none of ours.
        precision: that of its weights.
    """

    spec: ParNetSpec | None = None
    precision: str = "fp32"


def tolerance(graph: Graph, computes: str) -> float:
    """The greatest error, relative to the greatest magnitude in the answers, that counts as right.

    In float32 what verification allows it; below, what one rounding after the other may make
    (`spec.precision.rounding_tolerance`, and TF32's factors have as many bits as float16). What is
    computed in float32 with weights in float16 was rounded, too. What is quantised is allowed
    `spec.precision.quantised_tolerance`.

    Args:
        graph: what the contestant was made of.
        computes: the precision that it computes in. One that is not known is held to float32's.
    """
    layers = UNKNOWN_DEPTH if graph.spec is None else depth(graph.spec)
    names = (graph.precision, computes)
    roundoff = max(_ROUNDOFF.get(name, 0.0) for name in names)
    quantised = (quantised_tolerance(name, layers) for name in names if name in QUANTISED)
    return max(FLOAT32, ROUNDINGS * layers * roundoff, *quantised)
