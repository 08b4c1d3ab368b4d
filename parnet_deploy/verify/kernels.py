"""Whether a graph's quantised kernels are the checkpoint's, folded: scale by scale, value by value.

A symmetric scale is ``max|w| / limit`` of its channel, and a value at most half a step from what it
stands for. A step of float8 is its own: 2^-3 of the value's power of two, and 2^-9 of the scale
below. Scales are rounded to the scheme's base, so that float16's may be off by 2^-11, and then a
value at the end of the range by 127 times that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.spec.quantisation import LIMITS, Quantisation, QuantisedType
from parnet_deploy.verify.written import WrittenKernel

FITS = 20
"""How often factors of outputs and inputs are fitted in turn; three are enough where they fit."""

LEAST = 2.0**-24
"""The smallest number of float16: a scale below it is rounded up."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoldedKernel:
    """A block's kernel as the checkpoint folds to it.

    Attributes:
        values: (O, I / groups, K, K) float64.
        groups: of the convolution.
        scaled: whether equalisation may have scaled its output channels, too: behind a ReLU.
    """

    values: Array
    groups: int
    scaled: bool


def kernel_problems(
    kernels: Mapping[str, WrittenKernel],
    expected: Mapping[str, FoldedKernel],
    quantisation: Quantisation,
) -> Iterator[str]:
    """What is wrong with quantised kernels, a sentence for each that is not as it must be.

    Args:
        kernels: what a graph holds, by block.
        expected: what the checkpoint folds to, by block.
        quantisation: how they were to be quantised. Where channels' ranges were evened out, the
            kernels need only be the checkpoint's up to a power of two for every channel.
    """
    for block, kernel in kernels.items():
        folded = expected.get(block)
        if folded is None:
            yield f"the kernel of {block} is quantised, and the network has no such layer"
        elif problem := _problem(kernel, folded, quantisation):
            yield f"the kernel of {block} {problem}"


def _problem(kernel: WrittenKernel, folded: FoldedKernel, quantisation: Quantisation) -> str | None:
    kind, want = quantisation.scheme.weight, folded.values
    if kernel.values.shape != want.shape:
        return f"has shape {list(kernel.values.shape)} instead of {list(want.shape)}"
    if kernel.values.dtype != np.dtype(kind):
        return f"is {kernel.values.dtype.name} instead of {kind}"
    if kernel.scale.size not in (1, len(want)):
        return f"has {kernel.scale.size} scales for {len(want)} channels"
    if quantisation.equalised:
        want = _evened_out(kernel, folded)
    roundoff = arithmetic(quantisation.scheme.base).roundoff
    return _scale_problem(kernel, want, kind, roundoff, quantisation.per_channel) or _value_problem(
        kernel, want, kind, roundoff
    )


def _scale_problem(
    kernel: WrittenKernel, want: Array, kind: QuantisedType, roundoff: float, per_channel: bool
) -> str | None:
    """A scale that is not ``max|w| / limit``, or not one for each channel."""
    axes = tuple(range(1, want.ndim)) if per_channel else None
    greatest = np.abs(want).max(axis=axes)
    if kernel.scale.size != np.size(greatest):
        how = "one for each output channel" if per_channel else "one for all"
        return f"has {kernel.scale.size} scales, and the manifest says {how}"
    scale = kernel.scale.astype(np.float64).reshape(np.shape(greatest))
    should = greatest / LIMITS[kind][1]
    error = np.where(greatest > 0, np.abs(scale - should), 0.0)
    # float32: the fold of the export and this one differ in the last bits.
    allowed = np.maximum((4 * roundoff + 1e-5) * should, LEAST)
    if not (error <= allowed).all():
        worst = np.unravel_index(int(np.argmax(error / allowed)), np.shape(error))
        where = f" of channel {worst[0]}" if per_channel else ""
        return (
            f"has the scale {float(scale[worst]):.4g}{where}, and the checkpoint's folded kernel "
            f"makes it {float(should[worst]):.4g}"
        )
    return None


def _value_problem(
    kernel: WrittenKernel, want: Array, kind: QuantisedType, roundoff: float
) -> str | None:
    """A value that is further than half a step from what it stands for."""
    shape = (-1, *(1,) * (want.ndim - 1)) if kernel.scale.ndim else ()
    scale = kernel.scale.astype(np.float64).reshape(shape)
    error = np.abs(kernel.dequantised() - want)
    clipped = LIMITS[kind][1] * (roundoff + 1e-5)
    if kind == "float8_e4m3fn":
        half = np.maximum(np.abs(want) * 2.0**-4, scale * 2.0**-10)
    else:
        half = scale * np.ones_like(want) / 2
    allowed = 1.001 * half + clipped * scale
    if (error <= allowed).all():  # so written, NaN fails too
        return None
    worst = int(np.nan_to_num(error / allowed, nan=np.inf).argmax())
    place = np.unravel_index(worst, want.shape)
    return (
        f"stands for {float(kernel.dequantised()[place]):.4g} at {list(map(int, place))}, and "
        f"the checkpoint's folded kernel has {float(want[place]):.4g}: more than half a step apart"
    )


def _evened_out(kernel: WrittenKernel, folded: FoldedKernel) -> Array:
    """The checkpoint's kernel, its channels scaled by the powers of two that a graph's have.

    Least squares, outputs and inputs in turn: for every fixed factor of the one, those of the
    other are a division of two sums.
    """
    parts = zip(
        np.split(folded.values, folded.groups),
        np.split(kernel.dequantised(), folded.groups),
        strict=True,
    )
    scaled = [_scaled(want, got, outputs=folded.scaled) for want, got in parts]
    return np.concatenate(scaled)


def _scaled(want: Array, got: Array, *, outputs: bool) -> Array:
    flat, near = (values.reshape(*values.shape[:2], -1) for values in (want, got))
    rows, columns = np.ones((len(flat), 1, 1)), np.ones((1, flat.shape[1], 1))
    for _ in range(FITS if outputs else 1):
        columns = _factors(flat * rows, near, (0, 2))
        if outputs:
            rows = _factors(flat * columns, near, (1, 2))
    # Only products of both are known: with the first column's factor 1, all are powers of two.
    first = columns[:, :1] if outputs else 1.0
    result: Array = flat * _power_of_two(rows * first) * _power_of_two(columns / first)
    return result.reshape(want.shape)


def _factors(given: Array, got: Array, axes: tuple[int, int]) -> Array:
    """What to multiply with, along the axis that is left, to come nearest."""
    power = (given * given).sum(axes, keepdims=True)
    product = (given * got).sum(axes, keepdims=True)
    fits = (power > 0) & (product > 0)
    result: Array = np.divide(product, power, out=np.ones_like(power), where=fits)
    return result


def _power_of_two(factors: Array) -> Array:
    result: Array = np.exp2(np.rint(np.log2(factors)))
    return result
