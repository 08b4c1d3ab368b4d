"""Bias correction: what quantising shifts on average is taken off again.

A rounded kernel gives, on real images, another mean than the kernel does, channel by channel, and
the next layers pass that on. The mean error over the calibration images goes into the bias (Nagel
and others, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2,
https://arxiv.org/abs/1906.04721, there without images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.lowering import Layer, layers
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.trial import Progress, Trial, run_reduced
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import Quantisation


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BiasCorrection:
    """A network with other biases.

    Attributes:
        graph: in float32; to be quantised as the correction was found, and of use only then.
        shifts: what was added to the biases, (O,) float32 each, by the block's name.
    """

    graph: gs.Graph
    shifts: Mapping[str, Array]

    @property
    def greatest(self) -> dict[str, float]:
        """The greatest magnitude that was added to a bias, by the block's name."""
        return {block: float(np.abs(shift).max()) for block, shift in self.shifts.items()}

    @property
    def verdict(self) -> str:
        """What was done, in a sentence."""
        greatest = self.greatest
        if not greatest:
            return "no bias was corrected: nothing is quantised"
        block = max(greatest, key=greatest.__getitem__)
        return (
            f"the biases of {len(greatest)} layers were corrected, most by {greatest[block]:.2g} "
            f"({block})"
        )


def correct_bias(
    trial: Trial,
    quantisation: Quantisation,
    images: CalibrationImages,
    graph: gs.Graph | None = None,
    *,
    progress: Progress = lambda *step: None,
) -> BiasCorrection:
    """Correct the biases of all quantised convolutions, one after the other in the graph's order.

    Each is corrected in the network whose earlier layers already are, so that no error is taken
    off twice.

    Args:
        trial: says from where to where the network is quantised.
        quantisation: of the whole network.
        images: what the means are taken over: those that ranges were found on.
        graph: in float32, to correct instead of the trial's own; it is left as it is.
        progress: called behind each layer.

    Raises:
        RunnerError: a run failed.
    """
    source = trial.graph if graph is None else graph
    found = [layer for layer in layers(source) if layer.block not in quantisation.kept]
    right = channel_means(source, [layer.output for layer in found], images)
    corrected = source.copy()
    shifts: dict[str, Array] = {}
    for number, layer in enumerate(found, 1):
        quantised = trial.quantised(corrected, quantisation)
        # Its output may bear another name where it is quantised in turn.
        (given,) = next(node for node in quantised.nodes if node.name == layer.node).outputs
        now = channel_means(quantised, [given.name], images, quantisation)[given.name]
        shifts[layer.block] = (right[layer.output] - now).astype(np.float32)
        _add_to_bias(corrected, layer, shifts[layer.block])
        progress(layer.block, number, len(found))
    return BiasCorrection(graph=corrected, shifts=shifts)


def channel_means(
    graph: gs.Graph,
    names: Sequence[str],
    images: CalibrationImages,
    quantisation: Quantisation | None = None,
) -> dict[str, Array]:
    """The mean of each channel over all images and places, (C,) float64, by the tensor's name.

    Args:
        graph: as it is written.
        names: of its float32 tensors (N, C, H, W).
        images: what it reads.
        quantisation: how it is quantised, where it is.

    Raises:
        RunnerError: a run failed.
    """
    found = run_reduced(graph, "ReduceMean", names, images, quantisation)
    return {name: each.astype(np.float64).mean(axis=0) for name, each in found.items()}


def _add_to_bias(graph: gs.Graph, layer: Layer, shift: Array) -> None:
    """Add to a convolution's bias in place; one that has none gets one."""
    node = next(node for node in graph.nodes if node.name == layer.node)
    old = node.inputs[2].values if len(node.inputs) > 2 else np.zeros_like(shift)
    bias = gs.Constant(f"{layer.node}.bias", (old + shift).astype(np.float32))
    node.inputs = [*node.inputs[:2], bias]
