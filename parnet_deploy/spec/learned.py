"""Ranges of activations that a training found: what a checkpoint knows of being quantised."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.layout import IMAGES, layout
from parnet_deploy.spec.parnet import ParNetSpec
from parnet_deploy.spec.quantisation import Calibration, Quantisation, Scheme
from parnet_deploy.spec.ranges import Range, spanning


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedRanges:
    """What a quantisation-aware training found, beside the weights.

    Attributes:
        scheme: what the training quantised, and into what.
        calibration: what the ranges were found on; its method is ``qat``. Its hash is of the
            training split's names and labels: the arrays were augmented, and no two alike.
        ranges: by tensors' names in the float32 graph (`quantisable_tensors`), whatever the
            scheme needs of them; what the network reads is ``images``.
    """

    scheme: Scheme
    calibration: Calibration
    ranges: Mapping[str, Range]


def quantisable_tensors(
    spec: ParNetSpec, scheme: Scheme | None = None, kept: Collection[str] = ()
) -> tuple[str, ...]:
    """The activations that a scheme quantises, by their names in the float32 graph.

    What blocks' convolutions read, the values that a fusion joins, and where the scheme says so
    what the convolutions give. What only the head reads is not quantised.

    Args:
        spec: the network.
        scheme: what is quantised; None gives the tensors of all schemes.
        kept: blocks whose convolution is not quantised: what only they read or give is left out.
    """
    names: dict[str, None] = {}
    for block in layout(spec):
        if block.kind == "head" or block.name in kept:
            continue
        names |= dict.fromkeys(block.inputs)
        if block.kind == "fusion":
            names[joined(block.name)] = None
        if scheme is None or scheme.outputs:
            names[convolved(block.name)] = None
    return tuple(names)


def joined(block: str) -> str:
    """The name of what a fusion's convolution reads: its inputs, normalised and joined."""
    return f"{block}.join"


def convolved(block: str) -> str:
    """The name of what a block's convolution gives, in deploy form."""
    return f"{block}.conv"


def quantisation_of(
    learned: LearnedRanges, scheme: Scheme, tensors: Iterable[str], *, first: str = IMAGES
) -> Quantisation:
    """A quantisation with the ranges that a training found, for any scheme.

    Args:
        learned: what the training found.
        scheme: what is to be quantised, and into what; ranges are those of the values, so that it
            need not be the scheme of the training.
        tensors: names of the activations that are quantised (`lowering.observed`).
        first: name, among those, of what the network reads.

    Raises:
        SpecError: the training found no range for one of them: it was of another network.
    """
    names = tuple(tensors)
    known = {name: IMAGES if name == first else name for name in names}
    if missing := [name for name in names if known[name] not in learned.ranges]:
        raise SpecError(
            f"the checkpoint was trained for quantisation without '{missing[0]}', of which this "
            "network needs the range; train it with --qat again, or give --calibrate"
        )
    return Quantisation(
        scheme=scheme,
        calibration=learned.calibration,
        tensors={name: spanning(learned.ranges[known[name]], scheme.activation) for name in names},
    )
