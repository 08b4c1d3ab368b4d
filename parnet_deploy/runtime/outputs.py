"""What networks give, as it is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import RunnerError
from parnet_deploy.spec import Array

SMALLEST_PROBABILITY = 1e-30
"""Smaller ones are taken for this: float32 rounds them away, differently on every backend."""


COARSE = 1e-2
"""Where more than that is allowed, an answer that is always the same may be within it."""

LEAST_RESPONSE = 0.1
"""Least `response` of answers that are about the images. Measured on networks of the tests' size in
int8 and fp8, on images and on noise: 0.86 and more on 16 to 32 images, 0.44 on 4, and never less
than 0.18 on 2; a trained digits network on noise: 0.50 and more."""

_TELLING = 1 / 8
"""Part of what is allowed that expected answers must differ by, if others are to follow them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A class and its probability; `index` is its place in the outputs."""

    label: str
    index: int
    probability: float


def log_probabilities(probabilities: Array) -> Array:
    """Logarithms, float64.

    A sure network's probabilities are 0 and 1 whatever its logits are; their logarithms still tell
    the logits' differences.
    """
    logarithms: Array = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    return logarithms


def response(expected: Array, actual: Array) -> float | None:
    """How much answers differ from image to image, in parts of what the expected ones do.

    The root of the squares of the one over that of the other, both without their mean over the
    images: about 1 where they follow, 0 where an answer is the same whatever is asked, noughts for
    one. It does not ask whether they are right: on images that a quantised network was not
    calibrated for they need not be.

    Args:
        expected: (N, classes), finite.
        actual: the same.

    Returns:
        None where there is one image, or all have the same expected answer.
    """
    wanted, got = (rows.astype(np.float64) for rows in (expected, actual))
    wanted, got = wanted - wanted.mean(axis=0), got - got.mean(axis=0)
    power = float(np.square(wanted).sum())
    return math.sqrt(float(np.square(got).sum()) / power) if power > 0 else None


def unresponsive(
    expected: Array, actual: Array, tolerance: float, *, softmax: bool = False
) -> str | None:
    """What is wrong with answers that do not follow the images; None where nothing is.

    A tolerance of a few percent or more passes what a coarse precision rounds, and with it what a
    network may give that looks at no image. It is not asked where the expected answers themselves
    are alike: then nothing can be told.

    Args:
        expected: (N, classes), finite.
        actual: the same.
        tolerance: greatest error that passes, relative to the greatest magnitude that is expected;
            where any passes (infinity), nothing is asked.
        softmax: they are probabilities, which are looked at by their logarithms.
    """
    if softmax:
        expected, actual = log_probabilities(expected), log_probabilities(actual)
    if expected.shape != actual.shape:
        return f"has shape {list(actual.shape)} instead of {list(expected.shape)}"
    if not COARSE < tolerance < math.inf:
        return None
    spread = np.abs(expected - expected.mean(axis=0)).max()
    if spread < _TELLING * min(tolerance, 1.0) * np.abs(expected).max():
        return None
    found = response(expected, actual)
    if found is None or found >= LEAST_RESPONSE:
        return None
    return (
        f"does not follow the images: it differs from one to another {found:.2g} times as much as "
        f"the reference does, and {LEAST_RESPONSE} is needed"
    )


def softmax_rows(logits: Array) -> Array:
    """Logits (N, classes), finite, as probabilities: float64, each row adding up to 1."""
    values = logits.astype(np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result


def probabilities(rows: Array, *, softmax: bool) -> Array:
    """What an engine gave for each image, as probabilities.

    Args:
        rows: (N, classes) logits, or probabilities where the engine has its softmax inside.
        softmax: whether it has.

    Returns:
        (N, classes) float64, each row adding up to 1.

    Raises:
        RunnerError: a value is not finite.
    """
    if not np.isfinite(rows).all():
        raise RunnerError("the engine gave values that are not finite")
    return rows.astype(np.float64) if softmax else softmax_rows(rows)


def likeliest(row: Array, labels: Sequence[str], top: int) -> tuple[Guess, ...]:
    """The `top` likeliest classes of one image, or all of them where there are fewer.

    Among equals the first class comes first.
    """
    order = np.argsort(-row, kind="stable")[:top]
    return tuple(
        Guess(label=labels[index], index=int(index), probability=float(row[index]))
        for index in order
    )
