"""torch -> ONNX: the whole network as one graph.

The graph is emitted from the blocks themselves, operator by operator, because the operators decide
how many kernels a backend runs and in how many streams (docs/kernel-counts.md), and because the
same weights then give the same file under every version of torch. That it computes the same as the
torch network is proven at every export and by `verify`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.bundle import BatchRange
from parnet_deploy.errors import SpecError
from parnet_deploy.export.blocks import emit
from parnet_deploy.export.builder import GraphBuilder, declare
from parnet_deploy.lowering import lower, opset_for
from parnet_deploy.net import BlockGraph
from parnet_deploy.spec import (
    IMAGES,
    LOGITS,
    PREPROCESSED,
    BlockSpec,
    DeployForm,
    ParNetSpec,
    Preprocessing,
    StemMode,
    TensorSpec,
)
from parnet_deploy.spec.precision import QUANTISED, Precision, arithmetic
from parnet_deploy.spec.quantisation import Quantisation

PROBABILITIES = "probabilities"

MIN_OPSET, MAX_OPSET = 18, 21


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        name: name of the bundle.
        batch: images per run.
        stem: whether each stage computes its own stem, or the stem is a stage of its own.
        softmax: give ``probabilities`` instead of ``logits``.
        preprocessing: how images are prepared; with `in_graph` the graph does the arithmetic.
        form: deploy form.
        precision: what the network computes in; images and answers are the same in all.
        quantisation: how int8 and fp8 are quantised; without it such a graph cannot be made.
        opset: version of the ONNX operator set, at least; bf16, int8 and fp8 need later ones
            (`graph_opset`).
    """

    name: str
    preprocessing: Preprocessing
    batch: BatchRange = field(default_factory=BatchRange)
    stem: StemMode = "replicate"
    softmax: bool = False
    form: DeployForm = field(default_factory=DeployForm)
    precision: Precision = "fp32"
    quantisation: Quantisation | None = None
    opset: int = 18

    def __post_init__(self) -> None:
        """Refuse an operator set that lacks an operator or that TensorRT 10 does not read.

        Raises:
            SpecError: the opset is out of range, there is no such precision, or a quantisation
                goes with a precision that quantises nothing.
        """
        arithmetic(self.precision)
        if self.quantisation is not None and self.precision not in QUANTISED:
            raise SpecError(f"{self.precision} takes no quantisation; {' and '.join(QUANTISED)} do")
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise SpecError(f"an opset of {MIN_OPSET} to {MAX_OPSET}, not {self.opset}")

    @property
    def output(self) -> str:
        """Name of the network's output."""
        return PROBABILITIES if self.softmax else LOGITS

    @property
    def base(self) -> Precision:
        """What is not quantised computes in."""
        return self.precision if self.quantisation is None else self.quantisation.scheme.base

    @property
    def graph_opset(self) -> int:
        """The operator set of the graphs."""
        return opset_for(self.precision, self.opset)

    @property
    def first(self) -> str:
        """The tensor that the network reads."""
        return PREPROCESSED if self.preprocessing.in_graph else IMAGES

    def dtype(self, name: str) -> str:
        """The element type of a block's value."""
        tensors = {} if self.quantisation is None else self.quantisation.tensors
        return tensors[name].dtype if name in tensors else arithmetic(self.base).dtype


def images_spec(spec: ParNetSpec, options: ExportOptions) -> TensorSpec:
    """The network's input."""
    return TensorSpec(
        name=IMAGES,
        shape=(options.batch.axis, 3, *spec.image_size),
        dtype=options.preprocessing.dtype,
    )


def value_spec(spec: ParNetSpec, block: BlockSpec, options: ExportOptions) -> TensorSpec:
    """The contract of a block's output."""
    axis = options.batch.axis
    if block.kind == "head":
        return TensorSpec(name=options.output, shape=(axis, spec.classes), dtype="float32")
    height, width = (size // block.scale for size in spec.image_size)
    shape = (axis, block.out_channels, height, width)
    return TensorSpec(name=block.name, shape=shape, dtype=options.dtype(block.name))


def whole_graph(model: BlockGraph, options: ExportOptions) -> gs.Graph:
    """A network, in deploy or training form, as one graph in the precision that is asked for.

    Args:
        model: the network, in inference mode.
        options: how to export it.

    Returns:
        A sorted graph with input ``images`` and one output; every block's output bears the
        block's name.

    Raises:
        ExportError: a weight is beyond the precision's range, or the quantisation does not fit.
        UsageError: the quantisation keeps a layer that is not there.
    """
    return lower_graph(float_graph(model, options), options)


def lower_graph(graph: gs.Graph, options: ExportOptions) -> gs.Graph:
    """A float32 graph in the precision that is asked for; see `whole_graph`."""
    return lower(
        graph,
        options.precision,
        first=options.first,
        last=LOGITS,
        quantisation=options.quantisation,
    )


def float_graph(model: BlockGraph, options: ExportOptions) -> gs.Graph:
    """The same graph in float32: what `whole_graph` lowers, and what is calibrated."""
    options = replace(options, precision="fp32", quantisation=None)
    spec = model.spec
    images = images_spec(spec, options)
    graph = GraphBuilder(f"parnet-{options.name}", [images], opset=options.opset)
    values = {IMAGES: graph.values[IMAGES]}
    if options.preprocessing.in_graph:
        values[IMAGES] = _preprocess(graph, options.preprocessing)
        declare(
            values[IMAGES],
            TensorSpec(name=values[IMAGES].name, shape=images.shape, dtype="float32"),
        )
    for block in model.layout:
        inputs = [values[name] for name in block.inputs]
        output = emit(model.blocks[block.name], graph, block.name, inputs, options.form)
        contract = value_spec(spec, block, options)
        if block.kind == "head" and options.softmax:
            output = graph.node("Softmax", PROBABILITIES, [output], axis=1)
        declare(output, contract)
        values[block.name] = output
    return graph.finish([value_spec(spec, model.layout[-1], options)])


def _preprocess(graph: GraphBuilder, preprocessing: Preprocessing) -> gs.Variable:
    """``(x / 255 - mean) / std`` as one multiplication and one addition per element."""
    mean, std = (
        np.array(value, np.float64).reshape(1, 3, 1, 1)
        for value in (preprocessing.mean, preprocessing.std)
    )
    scale = graph.constant("preprocess.scale", (1 / (255 * std)).astype(np.float32))
    shift = graph.constant("preprocess.shift", (-mean / std).astype(np.float32))
    x = graph.node("Cast", "preprocess.float", [graph.values[IMAGES]], to=np.float32)
    scaled = graph.node("Mul", "preprocess.scaled", [x, scale])
    return graph.node("Add", PREPROCESSED, [scaled, shift])
