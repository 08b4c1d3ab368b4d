"""A float32 graph and the images on which it is tried out, quantised this way and that.

The graphs run in ONNX Runtime as they are written: a value is rounded where a QuantizeLinear
stands, and convolutions compute in float32 with the numbers that quantised ones would see. Integer
kernels would give the same up to rounding on some CPUs and saturate on others, and a target's base
precision would add roundings of its own: both would be blamed on a layer's scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from parnet_deploy.lowering import emulate, keeping, layers, lower
from parnet_deploy.quantise.effect import Effect, accuracy_of, effect_of
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.observe import IR_VERSION, run_tensors
from parnet_deploy.spec import IMAGES, LOGITS, Array
from parnet_deploy.spec.precision import Precision
from parnet_deploy.spec.quantisation import Quantisation

Progress = Callable[[str, int, int], None]
"""Called with what was done, and how many of how many steps are."""

BATCH = 16
"""Images per run: of small images, one would not keep the cores busy."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trial:
    """A float32 graph, images, and what it answers.

    Attributes:
        graph: in float32; sorted.
        images: what it reads, with labels where they are known.
        expected: its logits, (N, classes) float32.
        first: the tensor from which on it may be quantised.
        last: its logits' name.
    """

    graph: gs.Graph
    images: CalibrationImages
    expected: Array
    first: str = IMAGES
    last: str = LOGITS

    @property
    def accuracy(self) -> float | None:
        """The float32 network's; None where there are no labels."""
        return accuracy_of(self.expected, self.images.labels)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Those with a convolution that can be quantised, in the graph's order."""
        return tuple(layer.block for layer in layers(self.graph))

    def effect(self, quantisation: Quantisation, graph: gs.Graph | None = None) -> Effect:
        """Quantise, run on all images, and compare with the float32 graph.

        Args:
            quantisation: how; its base precision is taken to be float32.
            graph: what to quantise instead of the trial's own: one that is to be as good.

        Raises:
            RunnerError: a run failed, or an answer is not finite.
        """
        quantised = self.quantised(self.graph if graph is None else graph, quantisation)
        answers = run(quantised, (self.last,), self.images, quantisation)[self.last]
        return effect_of(self.expected, answers, self.images.labels)

    def effect_of_kept(self, quantisation: Quantisation, kept: Sequence[str]) -> Effect:
        """The same with these blocks' convolutions in float32.

        Args:
            quantisation: with a quantiser for every tensor that is left to quantise.
            kept: names of blocks.
        """
        return self.effect(keeping(self.graph, quantisation, kept))

    def quantised(self, graph: gs.Graph, quantisation: Quantisation) -> gs.Graph:
        """A graph lowered to what is quantised and, for the rest, float32.

        Args:
            graph: in float32; it is left as it is.
            quantisation: how.
        """
        scheme = replace(quantisation.scheme, base="fp32")
        return lower(
            graph,
            _precision(quantisation),
            first=self.first,
            last=self.last,
            quantisation=replace(quantisation, scheme=scheme),
        )


def make_trial(
    graph: gs.Graph, images: CalibrationImages, *, first: str = IMAGES, last: str = LOGITS
) -> Trial:
    """Run a float32 graph on images, so that others can be compared with it.

    Args:
        graph: in float32; sorted.
        images: what it reads, with labels where they are known.
        first: the tensor from which on it may be quantised.
        last: its logits' name.

    Raises:
        RunnerError: a run failed.
    """
    expected = run(graph, (last,), images)[last]
    return Trial(graph=graph, images=images, expected=expected, first=first, last=last)


def run(
    graph: gs.Graph,
    names: Sequence[str],
    images: CalibrationImages,
    quantisation: Quantisation | None = None,
) -> dict[str, Array]:
    """Run a graph on all images.

    Args:
        graph: as it is written.
        names: of tensors that are small: all images' are held in memory.
        images: what it reads.
        quantisation: how it is quantised, where it is.

    Returns:
        Each tensor, with a row for each image.

    Raises:
        RunnerError: the graph does not load, or a run failed.
    """
    model: onnx.ModelProto = gs.export_onnx(with_outputs(graph, names), do_type_check=False)
    model.ir_version = IR_VERSION
    if quantisation is not None and _precision(quantisation) == "fp8":
        model = emulate(model)
    _open_batch(model)
    parts = list(run_tensors(model, names, images, batch=BATCH))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _open_batch(model: onnx.ModelProto) -> None:
    """Let a model take any number of images: nothing in a network depends on it."""
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    del model.graph.value_info[:]  # shapes with the batch that it had


def _precision(quantisation: Quantisation) -> Precision:
    return "int8" if quantisation.scheme.weight == "int8" else "fp8"


def with_outputs(graph: gs.Graph, wanted: Sequence[str]) -> gs.Graph:
    """A copy that gives other tensors, and computes nothing else.

    Args:
        graph: it is left as it is.
        wanted: names of its tensors.
    """
    copied = graph.copy()
    tensors = copied.tensors()
    copied.outputs = [tensors[name] for name in wanted]
    return copied.cleanup()


def run_reduced(
    graph: gs.Graph,
    op: str,
    names: Sequence[str],
    images: CalibrationImages,
    quantisation: Quantisation | None = None,
) -> dict[str, Array]:
    """Run a graph on all images, and get a figure for each image and channel of its tensors.

    Args:
        graph: as it is written, of opset 18 or later; it is left as it is.
        op: ``ReduceMean`` of values, or ``ReduceMax`` of magnitudes, over height and width.
        names: of float32 tensors (N, C, H, W).
        images: what it reads.
        quantisation: how it is quantised, where it is.

    Returns:
        (N, C) by the tensor's name.

    Raises:
        RunnerError: the graph does not load, or a run failed.
    """
    if not names:
        return {}
    copied = graph.copy()
    tensors = copied.tensors()
    for name in names:
        value = tensors[name]
        if op == "ReduceMax":
            magnitude = gs.Variable(f"{name}.Abs", dtype=np.float32)
            copied.nodes.append(gs.Node("Abs", inputs=[value], outputs=[magnitude]))
            value = magnitude
        axes = gs.Constant(f"{name}.{op}.axes", np.array([2, 3], np.int64))
        figure = gs.Variable(f"{name}.{op}", dtype=np.float32)
        attrs = {"keepdims": 0}
        copied.nodes.append(gs.Node(op, attrs=attrs, inputs=[value, axes], outputs=[figure]))
    found = run(copied, [f"{name}.{op}" for name in names], images, quantisation)
    return {name: found[f"{name}.{op}"] for name in names}
