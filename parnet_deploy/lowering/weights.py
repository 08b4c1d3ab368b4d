"""Weights rounded to a narrower type, and quantised ones with their scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes  # noqa: F401  # numpy knows bfloat16 and float8_e4m3fn by name from here on
import numpy as np

from parnet_deploy.errors import ExportError
from parnet_deploy.spec import Array
from parnet_deploy.spec.precision import Precision, arithmetic
from parnet_deploy.spec.quantisation import LIMITS, QuantisedType


def rounded(name: str, values: Array, precision: Precision) -> Array:
    """A weight in a floating-point type.

    Args:
        name: of the weight, for the message.
        values: float32.
        precision: whose type.

    Raises:
        ExportError: the weight is beyond its range, or not finite.
    """
    numbers = arithmetic(precision)
    greatest = float(np.abs(values).max(initial=0.0))
    if not greatest <= numbers.greatest:
        raise ExportError(
            f"the weight '{name}' reaches {greatest:.3g}, and {precision} ends at "
            f"{numbers.greatest:.6g}: export this network with --precision fp32; "
            "nothing was written"
        )
    return values.astype(np.dtype(numbers.dtype))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantisedWeight:
    """A weight that stands for ``scale * factor * values``.

    Attributes:
        values: in the quantised type, (O, ...).
        scale: in the base's type: what dequantises it, of shape (O,), or () where one serves all
            output channels.
        factor: in the base's type, (O,), at most 1: what the convolution's output is multiplied
            by, where `scale` serves all channels and each has its own scale nevertheless.
    """

    values: Array
    scale: Array
    factor: Array | None = None

    def scales(self) -> Array:
        """The scale of every output channel, (O,), float64."""
        factor = 1.0 if self.factor is None else self.factor.astype(np.float64)
        scales = self.scale.astype(np.float64) * factor
        result: Array = np.broadcast_to(scales, self.values.shape[:1])
        return result

    def dequantised(self) -> Array:
        """What it stands for, float64."""
        result: Array = self.values.astype(np.float64) * _by_channel(self.scales(), self.values)
        return result


def quantised(
    name: str,
    values: Array,
    kind: QuantisedType,
    *,
    base: Precision,
    per_channel: bool,
    factored: bool = False,
) -> QuantisedWeight:
    """A weight with a scale for each output channel (or one), and no zero point.

    The scale is ``max|w| / limit``, rounded to the base's type; the weight is divided by what
    then stands in the graph. A channel of noughts has the scale of the greatest.

    Args:
        name: of the weight, for the message.
        values: float32, (O, ...).
        kind: type of the quantised values.
        base: what is not quantised computes in, and so the scales' type.
        per_channel: a scale for each output channel.
        factored: write channels' scales as the greatest of them and a factor for each.

    Raises:
        ExportError: the weight is not finite, or beyond the base's range.
    """
    axes = tuple(range(1, values.ndim)) if per_channel else None
    greatest = np.asarray(np.abs(values.astype(np.float64)).max(axis=axes))
    rounded(name, greatest, base)
    limit = LIMITS[kind][1]
    exact = np.where(greatest > 0, greatest, greatest.max() or limit) / limit
    scale, factor = rounded_scale(exact, base), None
    if factored and per_channel:
        scale = rounded_scale(exact.max(), base)
        factor = rounded_scale(np.minimum(exact / float(scale), 1.0), base)
    shell = QuantisedWeight(values=values, scale=scale, factor=factor)
    steps = np.clip(values / _by_channel(shell.scales(), values), -limit, limit)
    return replace(shell, values=_nearest(steps, kind))


def _by_channel(scales: Array, values: Array) -> Array:
    """Scales of output channels, (O,), as an array that multiplies the values."""
    result: Array = scales.reshape(-1, *(1,) * (values.ndim - 1))
    return result


def rounded_scale(scale: Array | float, base: Precision) -> Array:
    """A positive scale in the base's type, not rounded to nought."""
    dtype = np.dtype(arithmetic(base).dtype)
    least = np.finfo(dtype).smallest_subnormal
    result: Array = np.asarray(np.maximum(np.asarray(scale).astype(dtype), least))
    return result


def _nearest(steps: Array, kind: QuantisedType) -> Array:
    """Half to even, as ONNX's QuantizeLinear rounds."""
    result: Array = (steps if kind == "float8_e4m3fn" else np.rint(steps)).astype(np.dtype(kind))
    return result
