"""Range equalisation: channels that share one scale are brought to ranges of like width.

An activation tensor has one scale for all of its channels, so that a narrow channel beside a wide
one gets few steps. Where what makes a channel can be multiplied by ``s`` and what reads it by
``1 / s``, the network stays the same, and the ranges can be chosen (Nagel and others, "Data-Free
Quantization Through Weight Equalization and Bias Correction", section 4.1,
https://arxiv.org/abs/1906.04721).

That is exact in two places of a ParNet. What a fusion joins comes from batch normalisations and is
read by a convolution and a squeeze: all three are linear in each channel. And a ReLU passes a
positive factor on, so that what a block gives can be scaled by its convolution, its identity and
whatever reads it. A SiLU does not: ``silu(s x) != s silu(x)``, so that in a network of SiLUs
blocks' values are left as they are.

Factors are powers of two: multiplying by them rounds nothing, and the float32 graph's answers stay
the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from parnet_deploy.errors import ExportError
from parnet_deploy.lowering import layers
from parnet_deploy.quantise.effect import effect_of
from parnet_deploy.quantise.images import CalibrationImages
from parnet_deploy.quantise.scaling import find_scaling
from parnet_deploy.quantise.trial import Trial, run, run_reduced
from parnet_deploy.spec import Array
from parnet_deploy.spec.quantisation import Scheme

TOLERANCE = 1e-5
"""How far the answers may move, relative to the greatest of them: none at all is expected."""

OCTAVES = 6
"""Greatest factor as a power of two: so weights stay far from what a narrow base cannot hold."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scaled:
    """One tensor whose channels were scaled.

    Attributes:
        tensor: its name: what a fusion joined, or a block's value.
        factors: by what each channel is greater than it was, (C,) float32.
        spread_before: the widest channel's greatest magnitude, over the median channel's.
        spread_after: likewise, now.
    """

    tensor: str
    factors: Array
    spread_before: float
    spread_after: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Equalisation:
    """A network with other ranges.

    Attributes:
        graph: in float32; its ranges are to be found anew.
        scaled: the tensors that were scaled, in the graph's order.
        moved: how far the answers moved, relative to the greatest of them.
        verdict: what was done, and what could not be, in a sentence.
    """

    graph: gs.Graph
    scaled: tuple[Scaled, ...]
    moved: float
    verdict: str


def equalise(trial: Trial, images: CalibrationImages, scheme: Scheme) -> Equalisation:
    """Even out the ranges of the channels that a quantised convolution reads, where it is exact.

    Args:
        trial: the network; the answers to its images must not change.
        images: what ranges are found on.
        scheme: what is quantised: where convolutions' outputs are, too, their channels are scaled
            with those of the blocks' values, and count as much.

    Raises:
        ExportError: the answers changed.
        RunnerError: a run failed.
    """
    graph = trial.graph.copy()
    names = tuple(dict.fromkeys(layer.input for layer in layers(graph)))
    scalings = {name: scaling for name in names if (scaling := find_scaling(graph, name))}
    # What a block's convolution gives is scaled with what the block gives.
    made = {layer.block: layer.output for layer in layers(graph)} if scheme.outputs else {}
    wanted = {*scalings, *(made[name] for name in scalings if name in made)}
    ranges = channel_ranges(trial.graph, sorted(wanted), images)
    scaled = []
    for name, scaling in scalings.items():
        kernel = scaling.kernel
        columns = column_ranges(kernel.inputs[1].values, kernel.attrs.get("group", 1))
        widest = relative(ranges[name])
        if name in made:
            widest = np.maximum(widest, relative(ranges[made[name]]))
        factors = balanced(widest, columns)
        scaling.apply(factors)
        before, after = spread(ranges[name]), spread(ranges[name] * factors)
        scaled.append(
            Scaled(tensor=name, factors=factors, spread_before=before, spread_after=after)
        )
    moved = _moved(trial, graph)
    if not moved <= TOLERANCE:  # so written, NaN fails too
        raise ExportError(
            f"equalising ranges moved the answers by {moved:.1e} relative (allowed is "
            f"{TOLERANCE:.0e}); nothing was written"
        )
    verdict = _verdict(trial.graph, names, tuple(scalings))
    return Equalisation(graph=graph, scaled=tuple(scaled), moved=moved, verdict=verdict)


def balanced(activations: Array, columns: Array) -> Array:
    """Factors that make a channel and the weights that read it equally wide, (C,) float32.

    ``a s == w / s``: a channel whose weights are small can do with fewer steps, and the other way
    round. What is the same for all channels is left out, since a scale makes up for it.

    Args:
        activations: greatest magnitude of each channel, (C,).
        columns: greatest magnitude of the weights that read it, (C,).
    """
    alive = (activations > 0) & (columns > 0)
    octaves = np.zeros(len(activations))
    if alive.any():
        octaves[alive] = (np.log2(columns[alive]) - np.log2(activations[alive])) / 2
        octaves[alive] -= np.median(octaves[alive])
    powers = np.clip(np.rint(octaves), -OCTAVES, OCTAVES)
    factors: Array = np.exp2(powers).astype(np.float32)
    return factors


def relative(ranges: Array) -> Array:
    """Ranges as parts of the widest, (C,); 0 where all are."""
    return ranges / max(float(ranges.max()), 1e-30)


def column_ranges(kernel: Array, groups: int) -> Array:
    """The greatest magnitude among the weights that read each channel, (I,) float64.

    Each output channel has a scale of its own: so weights count relative to the greatest of
    their output channel.

    Args:
        kernel: (O, I / groups, ...).
        groups: of the convolution.
    """
    flat = np.abs(kernel.astype(np.float64)).reshape(*kernel.shape[:2], -1).max(axis=2)
    greatest = flat.max(axis=1, keepdims=True)
    relative = flat / np.where(greatest > 0, greatest, 1.0)
    return np.concatenate([part.max(axis=0) for part in np.split(relative, groups)])


def channel_ranges(
    graph: gs.Graph, names: Sequence[str], images: CalibrationImages
) -> dict[str, Array]:
    """The greatest magnitude of each channel over all images and places, (C,), by the name.

    Args:
        graph: in float32.
        names: of its tensors (N, C, H, W).
        images: what it reads.

    Raises:
        RunnerError: a run failed.
    """
    found = run_reduced(graph, "ReduceMax", names, images)
    return {name: each.max(axis=0) for name, each in found.items()}


def spread(ranges: Array) -> float:
    """The widest channel over the median one; 1 where nothing is wider than 0.

    Args:
        ranges: greatest magnitude of each channel, (C,).
    """
    alive = ranges[ranges > 0]
    return float(alive.max() / np.median(alive)) if len(alive) else 1.0


def _moved(trial: Trial, graph: gs.Graph) -> float:
    """How far the answers are from the trial's own, relative to the greatest of these."""
    answers = run(graph, (trial.last,), trial.images)[trial.last]
    return effect_of(trial.expected, answers).relative


def _verdict(graph: gs.Graph, names: Sequence[str], scaled: Sequence[str]) -> str:
    done = f"{len(scaled)} of {len(names)} tensors that convolutions read were equalised"
    which = f" ({', '.join(scaled)})" if scaled else ""
    active = any(node.op == "Relu" for node in graph.nodes)
    why = (
        "the others are read or made in a way that a factor cannot be taken out of"
        if active
        else "the others come from a SiLU, which a factor does not pass: silu(s x) != s silu(x)"
    )
    return f"{done}{which}; {why}" if len(scaled) < len(names) else f"{done}{which}"
