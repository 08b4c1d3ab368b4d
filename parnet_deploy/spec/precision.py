"""Precision: what a deployed network computes in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parnet_deploy.errors import SpecError
from parnet_deploy.spec.counts import depth
from parnet_deploy.spec.parnet import ParNetSpec

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """What numbers of a precision are.

    Attributes:
        dtype: numpy's name of the type of weights and of what crosses from stage to stage.
        roundoff: greatest relative error of one rounding, half the distance from 1 to the next
            number.
        greatest: greatest finite number.
    """

    dtype: str
    roundoff: float
    greatest: float


_ARITHMETIC: dict[Precision, Arithmetic] = {
    "fp32": Arithmetic(dtype="float32", roundoff=2**-24, greatest=(2 - 2**-23) * 2.0**127),
    "fp16": Arithmetic(dtype="float16", roundoff=2**-11, greatest=65504.0),
    "bf16": Arithmetic(dtype="bfloat16", roundoff=2**-8, greatest=(2 - 2**-7) * 2.0**127),
    # Of a tensor's range, which its scale makes of the 127 steps to either side.
    "int8": Arithmetic(dtype="int8", roundoff=1 / 254, greatest=127.0),
    "fp8": Arithmetic(dtype="float8_e4m3fn", roundoff=2**-4, greatest=448.0),
}


def arithmetic(precision: str) -> Arithmetic:
    """The numbers of a precision.

    Args:
        precision: its name, as a manifest gives it.

    Raises:
        SpecError: there is no such precision.
    """
    for name, found in _ARITHMETIC.items():
        if name == precision:
            return found
    raise SpecError(f"there is no precision '{precision}'; there are {', '.join(PRECISIONS)}")


ROUNDINGS = 4
"""Values that are rounded one after the other in a layer: the convolution, its sum with the gated
identity or its product with the gate, the sigmoid, and the product with it."""


QUANTISED: Mapping[str, float] = {"int8": 32.0, "fp8": 2.0}
"""Of what is quantised: times the roundoff and the root of the roundings on the longest path.
int8's roundoff is of a tensor's greatest value, and most values are far smaller: it is allowed as
much as fp8, whose roundoff is of the value itself."""

GREATEST = 0.9
"""More than this is never allowed: an answer of noughts is off by 1."""

AGREEMENT: Mapping[str, float] = {"int8": 0.95, "fp8": 0.9}
"""Share of images that keep their class at least, of what is quantised: its tolerance is so wide
that it decides no image's class. Measured in docs/precision.md: what is sound keeps 98 % and more,
what quantises badly loses 5 to 12 points."""

AGREEMENT_CHANCE = 0.01
"""Greatest chance that a network which keeps just that share of all images is found to keep fewer
of those that were looked at than are needed."""


def rounding_tolerance(precision: str, spec: ParNetSpec) -> float:
    """How far a network's answers may part because every value of it was rounded.

    Relative to the greatest magnitude in the answers; the one source of it, for the export's gate,
    `verify` and `bench`. In floating point (fp32, fp16, bf16): the roundings one after the other on
    the longest path, each by as much as the precision can: ``ROUNDINGS * depth * roundoff``. Errors
    of rounding are of either sign and mostly cancel, but a layer also passes on what came before:
    on noise, the tests' network, digits, cifar-s and s, sane and scrambled (`verify.tolerances`),
    were found at 0.01 to 0.41 of it, in ONNX Runtime and in torch's own half arithmetic. A top-1
    class can change only where the best two are nearer than twice that. For int8 and fp8 see
    `quantised_tolerance`.

    Args:
        precision: its name.
        spec: the network.

    Raises:
        SpecError: there is no such precision.
    """
    if precision in QUANTISED:
        return quantised_tolerance(precision, depth(spec))
    return ROUNDINGS * depth(spec) * arithmetic(precision).roundoff


def quantised_tolerance(precision: str, layers: int) -> float:
    """How far the answers of so many layers may part that compute in one of `QUANTISED`.

    As a sum, the roundings would be beyond the answers themselves, and bound nothing. Their errors
    are taken as independent, and add up as the root of how many there are:
    ``QUANTISED * roundoff * sqrt(ROUNDINGS * layers)``, at most `GREATEST`. `verify.tolerances` has
    what was measured. It tells garbage from answers, and no more: an answer that is the same
    whatever it is asked may be within it (`runtime.outputs.response` finds that), scales, zero
    points and kernels are compared one by one (`lowering.quantisation_faults`), and what is lost is
    judged by top-1 agreement.

    Args:
        precision: ``int8`` or ``fp8``.
        layers: on the longest path.
    """
    allowed = QUANTISED[precision] * arithmetic(precision).roundoff * math.sqrt(ROUNDINGS * layers)
    return min(allowed, GREATEST)


def needed_alike(images: int, share: float) -> int:
    """How many of so many images must keep their class, where a share of all images must.

    The few that are looked at may be more of the others: so it is the greatest number below which
    a network that keeps just that share stays with a chance of `AGREEMENT_CHANCE` at most, by the
    binomial distribution. 0 where so few images tell nothing.

    Args:
        images: how many are looked at.
        share: from 0 to below 1.
    """
    lost = 1.0 - share
    below = 0.0  # the chance of fewer than `number`
    for number in range(images):
        below += math.exp(
            math.lgamma(images + 1)
            - math.lgamma(number + 1)
            - math.lgamma(images - number + 1)
            + (number * math.log(share) if number else 0.0)
            + (images - number) * math.log(lost)
        )
        if below > AGREEMENT_CHANCE:
            return number
    return images
