"""Whether a graph's quantised kernels are the checkpoint's, folded: scale by scale, value by value.

A symmetric scale is ``max|w| / limit`` of its channel, and a value at most half a step from what it
stands for. A step of float8 is its own: 2^-3 of the value's power of two, and 2^-9 of the scale
below. Scales are rounded to the scheme's base, so that float16's may be off by 2^-11, and then a
value at the end of the range by 127 times that. Among a type's least numbers a scale may be off by
half of the smallest one, and there is none below that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 by name from here on
import numpy as np

from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import arithmetic
from parnet_deploy.spec.quantisation import LIMITS, Quantisation, QuantisedType
from parnet_deploy.verify.written import WrittenKernel


def least(precision: str) -> float:
    """The smallest positive number of a precision's type: what is below its half is rounded to 0.

    Args:
        precision: of floating point.

    Raises:
        SpecError: there is no such precision.
    """
    zero, one = np.array([0.0, 1.0]).astype(np.dtype(arithmetic(precision).dtype))
    return float(np.nextafter(zero, one))


def kernel_problems(
    kernels: Mapping[str, WrittenKernel],
    expected: Mapping[str, Array],
    quantisation: Quantisation,
) -> Iterator[str]:
    """What is wrong with quantised kernels, a sentence for each that is not as it must be.

    Args:
        kernels: what a graph holds, by block.
        expected: what the checkpoint folds to, by block, (O, I / groups, K, K) float64; scaled as
            the graph's channels are where these were evened out (`folded.evened_out`).
        quantisation: how they were to be quantised.
    """
    for block, kernel in kernels.items():
        folded = expected.get(block)
        if folded is None:
            yield f"the kernel of {block} is quantised, and the network has no such layer"
        elif problem := _problem(kernel, folded, quantisation):
            yield f"the kernel of {block} {problem}"


def _problem(kernel: WrittenKernel, want: Array, quantisation: Quantisation) -> str | None:
    kind = quantisation.scheme.weight
    if kernel.values.shape != want.shape:
        return f"has shape {list(kernel.values.shape)} instead of {list(want.shape)}"
    if kernel.values.dtype != np.dtype(kind):
        return f"is {kernel.values.dtype.name} instead of {kind}"
    if kernel.scale.size not in (1, len(want)):
        return f"has {kernel.scale.size} scales for {len(want)} channels"
    base, per_channel = quantisation.scheme.base, quantisation.per_channel
    return _scale_problem(kernel, want, kind, base, per_channel) or _value_problem(
        kernel, want, kind, base
    )


def _scale_problem(
    kernel: WrittenKernel, want: Array, kind: QuantisedType, base: str, per_channel: bool
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
    allowed = np.maximum((4 * arithmetic(base).roundoff + 1e-5) * should, least(base))
    if not (error <= allowed).all():
        worst = np.unravel_index(int(np.argmax(error / allowed)), np.shape(error))
        where = f" of channel {worst[0]}" if per_channel else ""
        got, wanted = apart(float(scale[worst]), float(should[worst]))
        return f"has the scale {got}{where}, and the checkpoint's folded kernel makes it {wanted}"
    return None


def _value_problem(
    kernel: WrittenKernel, want: Array, kind: QuantisedType, base: str
) -> str | None:
    """A value that is further than half a step from what it stands for."""
    shape = (-1, *(1,) * (want.ndim - 1)) if kernel.scale.ndim else ()
    scale = kernel.scale.astype(np.float64).reshape(shape)
    error = np.abs(kernel.dequantised() - want)
    clipped = LIMITS[kind][1] * ((arithmetic(base).roundoff + 1e-5) * scale + least(base) / 2)
    if kind == "float8_e4m3fn":
        half = np.maximum(np.abs(want) * 2.0**-4, scale * 2.0**-10)
    else:
        half = scale * np.ones_like(want) / 2
    allowed = 1.001 * half + clipped
    if (error <= allowed).all():  # so written, NaN fails too
        return None
    worst = int(np.nan_to_num(error / allowed, nan=np.inf).argmax())
    place = np.unravel_index(worst, want.shape)
    got, wanted = apart(float(kernel.dequantised()[place]), float(want[place]))
    return (
        f"stands for {got} at {list(map(int, place))}, and the checkpoint's folded kernel has "
        f"{wanted}: more than half a step apart"
    )


def apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers in words with as many digits, from four on, as it takes to tell them apart."""
    for digits in range(4, 17):
        words = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if words[0] != words[1]:
            return words
    return repr(one), repr(other)
