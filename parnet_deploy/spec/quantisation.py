"""How a network is quantised: which numbers stand for which, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.form import Backend
from parnet_deploy.spec.precision import QUANTISED, Precision
from parnet_deploy.spec.targets import NAMES, TAKES, check_precision

CalibrationMethod = Literal["minmax", "entropy", "percentile", "mse", "qat"]
"""How a tensor's range is found; ``qat``: it was learned in training."""

QuantisedType = Literal["int8", "uint8", "float8_e4m3fn"]
"""numpy's (and ml_dtypes') name of a quantised element type."""

LIMITS: Mapping[QuantisedType, tuple[float, float]] = {
    "int8": (-127.0, 127.0),  # symmetric: -128 is left out, as TensorRT does for weights
    "uint8": (0.0, 255.0),
    "float8_e4m3fn": (-448.0, 448.0),
}
"""Least and greatest number that a quantised value takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """What is quantised, and into what; each target has its own (`scheme_of`).

    Attributes:
        activation: type of quantised activations; ``uint8`` has a zero point, others have none.
        weight: type of weights, with one scale for each output channel.
        base: what is not quantised computes in.
        outputs: whether convolutions' own outputs are quantised, too: without that ONNX Runtime
            does not compute in int8.
    """

    activation: QuantisedType
    weight: QuantisedType
    base: Literal["fp32", "fp16"]
    outputs: bool


def scheme_of(precision: Precision, backend: Backend) -> Scheme | None:
    """What a backend takes of a precision; None where nothing is quantised.

    TensorRT takes symmetric int8, and computes what is between in float16. ONNX Runtime on x86 has
    fast kernels for uint8 activations with int8 weights, and slow ones for int8 with int8.

    Raises:
        SpecError: the backend has no such precision.
    """
    if precision not in QUANTISED:
        return None
    check_precision(precision, backend)
    if backend in ("tensorrt", "tensorrt-rtx"):
        kind: QuantisedType = "int8" if precision == "int8" else "float8_e4m3fn"
        return Scheme(activation=kind, weight=kind, base="fp16", outputs=False)
    return Scheme(activation="uint8", weight="int8", base="fp32", outputs=True)


def backends_of(precision: Precision, scheme: Scheme) -> tuple[Backend, ...]:
    """The backends that take graphs which are quantised so."""
    known = (backend for backend, taken in TAKES.items() if precision in taken)
    return tuple(backend for backend in known if scheme_of(precision, backend) == scheme)


def takers(precision: Precision, scheme: Scheme) -> str:
    """Those backends in words: ``ONNX Runtime and OpenVINO``."""
    return " and ".join(NAMES[backend] for backend in backends_of(precision, scheme))


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiser:
    """How one activation tensor is quantised: ``real = scale * (quantised - zero_point)``.

    Attributes:
        dtype: of the quantised tensor.
        scale: positive.
        zero_point: what stands for 0; 0 unless `dtype` is ``uint8``.
    """

    dtype: QuantisedType
    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no quantiser.

        Raises:
            SpecError: a scale that is not positive and finite, or a zero point where there is none.
        """
        if not 0.0 < self.scale < float("inf"):
            raise SpecError(f"a scale is positive and finite, not {self.scale}")
        low, high = LIMITS[self.dtype] if self.dtype == "uint8" else (0.0, 0.0)
        if not low <= self.zero_point <= high:
            raise SpecError(f"a zero point of {self.dtype} is not {self.zero_point}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What ranges were found on.

    Attributes:
        method: how.
        percentile: share of values, in percent, that lie within a range of ``percentile``.
        images: how many.
        sha256: of the set of arrays that the network read, in no order (`quantise.images`).
        source: where they came from, in a few words, without a path of this machine.
    """

    method: CalibrationMethod
    percentile: float | None = None
    images: int
    sha256: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How a whole network is quantised.

    Attributes:
        scheme: what, and into what.
        calibration: what the activations' ranges were found on.
        tensors: quantised activations by their name in the float32 graph: a block's name for its
            output, ``images`` (or ``preprocess``) for what the network reads.
        kept: blocks whose convolution is not quantised, but computes in the scheme's base.
        per_channel: whether weights have a scale for each output channel, or one for all.
        equalised: whether channels' ranges were evened out before.
        bias_corrected: whether biases were corrected for what quantisation shifts.
        shifts: by how much at most, channel by channel, by the block's name.
    """

    scheme: Scheme
    calibration: Calibration
    tensors: Mapping[str, Quantiser]
    kept: tuple[str, ...] = ()
    per_channel: bool = True
    equalised: bool = False
    bias_corrected: bool = False
    shifts: Mapping[str, float] = field(default_factory=dict)


def base_of(precision: str, quantisation: Quantisation | None) -> str:
    """What computes that is not quantised: the scheme's base, or the precision itself.

    Args:
        precision: of the whole network.
        quantisation: how it is quantised; None where it is not.
    """
    return precision if quantisation is None else quantisation.scheme.base
