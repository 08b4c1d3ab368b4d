"""What networks give, as it is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parnet_deploy.errors import RunnerError
from parnet_deploy.spec import Array

SMALLEST_PROBABILITY = 1e-30
"""Smaller ones are taken for this: float32 rounds them away, differently on every backend."""


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
