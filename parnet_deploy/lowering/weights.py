"""Weights rounded to a narrower type, and quantised ones with their scales."""

from __future__ import annotations

from dataclasses import dataclass

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
    """A weight that stands for ``scale * values``.

    Attributes:
        values: in the quantised type.
        scale: in the base's type: of shape (O,), or () where one serves all output channels.
    """

    values: Array
    scale: Array

    def dequantised(self) -> Array:
        """What it stands for, float64."""
        scale = self.scale.astype(np.float64)
        axes = (1,) * (self.values.ndim - 1)
        shaped = scale.reshape(-1, *axes) if scale.ndim else scale
        result: Array = self.values.astype(np.float64) * shaped
        return result


def quantised(
    name: str, values: Array, kind: QuantisedType, *, base: Precision, per_channel: bool
) -> QuantisedWeight:
    """A weight with a scale for each output channel (or one), and no zero point.

    The scale is ``max|w| / limit``, rounded to the base's type; the weight is divided by what
    then stands in the graph.

    Args:
        name: of the weight, for the message.
        values: float32, (O, ...).
        kind: type of the quantised values.
        base: what is not quantised computes in, and so the scales' type.
        per_channel: a scale for each output channel.

    Raises:
        ExportError: the weight is not finite, or beyond the base's range.
    """
    axes = tuple(range(1, values.ndim)) if per_channel else None
    greatest = np.abs(values.astype(np.float64)).max(axis=axes)
    rounded(name, np.asarray(greatest), base)
    limit = LIMITS[kind][1]
    scale = rounded_scale(np.where(greatest > 0, greatest / limit, 1.0), base)
    shaped = scale.astype(np.float64)
    if per_channel:
        shaped = shaped.reshape(-1, *(1,) * (values.ndim - 1))
    steps = np.clip(values / shaped, -limit, limit)
    return QuantisedWeight(values=_nearest(steps, kind), scale=scale)


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
